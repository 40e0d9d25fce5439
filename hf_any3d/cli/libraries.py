"""The libraries that commands need: refused by name where one is missing, and loaded without their remarks."""

from __future__ import annotations

import warnings
from contextlib import suppress
from importlib.util import find_spec


def need_packages(extra: str, *packages: str) -> None:
    """Raise an ImportError that names the extra of the package which installs what is missing."""
    missing = [package for package in packages if find_spec(package) is None]
    if missing:
        text = f"{' and '.join(missing)} is not installed: pip install 'hf-any3d[{extra}]'"
        raise ImportError(text if len(missing) == 1 else text.replace(" is not ", " are not "))


def need_libraries() -> None:
    """Raise an ImportError without the packages that a model alone opens without, see docs/install.md."""
    for name in ("peft", "scipy"):
        package = None
        with suppress(ImportError):
            package = find_spec(name)
        if package is None:
            raise ImportError(f"this command needs {name}: pip install hf-any3d, with all that it requires")


def load_libraries() -> None:
    """Load torch and transformers, register the models with them, and turn off their bars and remarks.

    Commands call this once they have checked what needs no models.
    """
    need_libraries()
    import huggingface_hub.utils
    import transformers

    from hf_any3d.integration.registration import register

    # Remarks of libraries would stand between the lines of the command.
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    huggingface_hub.utils.disable_progress_bars()
    warnings.filterwarnings("ignore", category=FutureWarning)
    # Adapters are stored with the name of their encoder, and opened by their own.
    warnings.filterwarnings("ignore", message="The PEFT config's `base_model_name_or_path` was renamed")
    register()
