"""3D point clouds in the Hugging Face ecosystem: models, adapters, data, training and pipelines.

Importing this package registers its models with transformers and its adapters with PEFT.
"""

import importlib
import importlib.util
import sys
from pathlib import Path as _Path
from typing import Any

from hf_any3d.version import __version__ as __version__

_folder = _Path(__file__).parent
if not (_folder / "modeling").is_dir():
    # In a checkout, `modeling` and `conversions` are beside the package; a wheel has them inside.
    __path__.append(str(_folder.parent))
from hf_any3d.registry import MODEL_TYPES as _MODEL_TYPES  # noqa: E402

# Module below this package -> its public names, without those of models and their processors. Type checkers read all
# of them in `__init__.pyi`, which `python -m docs.tools.stubs` writes.
_MODULES = {
    "array_segmentation": ("Segmentation", "segment"),
    "chat": ("ChatSession",),
    "data": ("PointCloud", "load_point_dataset"),
    "data.files": ("example_file", "read_point_cloud", "write_labels"),
    "data.classes.las_classes": ("ASPRS_CLASSES",),
    "data.classes.text_bank": ("TextBank",),
    "integration.auto": (
        "AutoModelForPointCloudClassification",
        "AutoModelForPointCloudObjectDetection",
        "AutoModelForPointCloudReconstruction",
        "AutoModelForPointCloudSegmentation",
        "AutoModelForPointCloudTextToText",
        "AutoModelForZeroShotPointCloudClassification",
        "AutoModelForZeroShotPointCloudSegmentation",
    ),
    "modeling.encoders": ("UnsupportedEncoder",),
    "published": ("open_published",),
    "tuners": (
        "APPTConfig",
        "BitFitConfig",
        "DAPTConfig",
        "GuidedAdapterConfig",
        "IDPTConfig",
        "PointGSTConfig",
        "PPTConfig",
        "PromptTokensConfig",
        "SideTuningConfig",
        "encoder_linear_pattern",
        "trainable_module_names",
    ),
}
_PUBLIC = {name: f"{__name__}.{module}" for module, names in _MODULES.items() for name in names}
"""Public name -> module, which is imported when the name is first used."""
# Models and processors have their names in the records, so that a new model needs no line here.
for _kind in _MODEL_TYPES.values():
    _PUBLIC |= dict.fromkeys((_kind.config, *_kind.models()), _kind.package)
    _module, _, _name = _kind.processor.rpartition(".")
    _PUBLIC[_name] = _module
__all__ = sorted(_PUBLIC)
# Names that are looked for here -> what there is instead.
_ELSEWHERE = {
    "show": "hf_any3d.visualization.show has write_views and view_of_cloud, the terminal hf-any3d show FILE",
    "pipeline": "it is that of transformers",
    **{name: f"it is in {__name__}.data" for name in ("AugmentedDataset", "PointCloudCollator", "push_point_dataset")},
}


def __getattr__(name: str) -> Any:
    """Load public names when they are first used."""
    if name in _PUBLIC:
        return getattr(importlib.import_module(_PUBLIC[name]), name)
    hint = _ELSEWHERE.get(name, "")
    raise AttributeError(f"module '{__name__}' has no attribute '{name}'{hint and f'; {hint}'}")


def __dir__() -> list[str]:
    """Public names, loaded or not."""
    return sorted([*globals(), *__all__])


def _is_installed(package: str) -> bool:
    try:
        return importlib.util.find_spec(package) is not None
    except ImportError:
        return False


# What a model alone does not need: without it the classes in `hf_any3d.modeling` work, and nothing is registered.
_ONLY_MODELS = not all(map(_is_installed, ("peft", "scipy")))
# Registering loads torch, transformers and PEFT, which takes seconds; the command line answers --help without them,
# and its commands register when they turn to models.
if "hf_any3d_command" not in sys.modules and not _ONLY_MODELS:
    importlib.import_module(f"{__name__}.integration.registration").register()
