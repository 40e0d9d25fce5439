"""Changes to other libraries, beyond what they offer for it, each with its reason.

Models, processors, pipelines, PEFT methods and the column of clouds are registered by public functions, in
`hf_any3d.integration.registration`. What has no public function is here and in `peft_patches`, `trainer_patches`,
`loader_patches` and `datasets_patches` beside this module:

- Ten functions are wrapped, see `PATCHES`. Three of them open a saved model by its name, and are wrapped from the
  import on, as nothing else sees a name before others take it for theirs. The others wait until the first of our
  models, clouds or training rows is built. Whatever is not ours gets what the original answers to what was given:
  wrappers of names ask only once the original has found an adapter, or nothing at all, and only read what it found.
- Two tables that have no function for it get entries of our own model types: which models have the loss of a language
  model, by which Trainer shifts labels, and what LoRA adapts in our language models by default.
- `PeftType` gets a member for each of our methods in its tables of names and values, as PEFT refuses others. That
  alone is elsewhere, in `register_method` of `hf_any3d.tuners.tuners_utils`, since methods register while they are
  imported.

`tests/integration` compares plain programs with and without the import, shows for each wrapper that the original still
does what its reason says (where that test fails, a release has made it unnecessary), and holds all other modules to
this. What would replace each upstream is in docs/upstream.md.
"""

import functools
import json
import os
import pkgutil
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from inspect import getattr_static
from pathlib import Path
from typing import Any, cast

from transformers import PreTrainedModel
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
from transformers.utils import CONFIG_NAME, FEATURE_EXTRACTOR_NAME as PREPROCESSOR, PROCESSOR_NAME
from transformers.utils.hub import CHAT_TEMPLATE_FILE
from transformers.utils.peft_utils import ADAPTER_CONFIG_NAME

from hf_any3d.extensions import EXTENSIONS, missing_package
from hf_any3d.hub.published_table import is_published
from hf_any3d.modeling.pretrained_parts.adapter_loading import refuse_folder_of_adapters
from hf_any3d.modeling.pretrained_parts.contents import find_file
from hf_any3d.modeling.pretrained_parts.loading import HUB_ARGUMENTS
from hf_any3d.modeling.pretrained_parts.mixin import LibraryModelMixin
from hf_any3d.utils.import_watcher import when_imported

_PACKAGE = __name__.partition(".")[0]
_PROCESSOR_FILES = frozenset(
    {PREPROCESSOR, PROCESSOR_NAME, CHAT_TEMPLATE_FILE, "tokenizer.json", "tokenizer_config.json"}
)
OUR_MODELS: dict[str, tuple[type[PreTrainedModel], ...]] = {}
"""`model_type` -> our model classes of that type, the one without a head first; set by `apply_patches`."""


@dataclass
class Patch:
    """A decorator that makes a function the wrapper of one of the libraries, which it gets as its first argument.

    Attributes:
        targets: Where that is looked up, as `module:attribute`: one place for each module that has imported it.
        reason: What it does that does not fit our models.
    """

    targets: tuple[str, ...]
    reason: str
    call: Callable | None = None

    def __call__(self, call: Callable) -> Callable:
        """Enter the patch in the table."""
        self.call = call
        PATCHES.append(self)
        return call

    def apply(self) -> None:
        """Replace the function by its wrapper where it is looked up, once."""
        for target in self.targets:
            self._apply_to(target)

    def _apply_to(self, target: str) -> None:
        module, _, path = target.partition(":")
        place, _, name = path.rpartition(".")
        # Without a place, the owner is the module itself.
        owner: Any = pkgutil.resolve_name(f"{module}:{place}")
        # Not getattr, which binds a class method to its class.
        attribute = getattr_static(owner, name)
        original = attribute.__func__ if isinstance(attribute, classmethod) else attribute
        # Wrapped already, by an earlier call.
        if getattr(original, "_patched_by_hf_any3d", False):
            return
        call = cast(Callable, self.call)
        # A function, as an object such as a partial would not become a method of its class.
        wrapper: Any = functools.wraps(original)(lambda *args, **kwargs: call(original, *args, **kwargs))
        wrapper._patched_by_hf_any3d = True
        setattr(owner, name, classmethod(wrapper) if isinstance(attribute, classmethod) else wrapper)


PATCHES: list[Patch] = []


def apply_patches(models: Mapping[str, tuple[type[PreTrainedModel], ...]], next_token_models: Iterable[type]) -> None:
    """Wrap what opens saved models by their names, and fill the table of transformers.

    Args:
        models: `model_type` -> our model classes of that type, the one without a head first.
        next_token_models: Models with the loss of a language model; Trainer shifts labels to smooth for these names.
    """
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.update(
        {model.config_class.model_type: model.__name__ for model in next_token_models}
    )
    OUR_MODELS.update(models)
    apply_patches_of(__name__)


def apply_patches_of(module: str) -> None:
    """Apply the patches that a module of this package has entered, as soon as the libraries are imported."""
    for patch in PATCHES:
        if cast(Callable, patch.call).__module__ == module:
            when_imported(patch.targets[0].partition(":")[0], patch.apply)


def is_ours(model: Any) -> bool:
    """Tell whether a model is one of ours, with adapters or without."""
    # A subclass of a user counts, too; those with adapters have classes that are made in `peft_patches`.
    return isinstance(model, LibraryModelMixin) or type(model).__module__.startswith(f"{_PACKAGE}.")


@Patch(
    (
        "transformers.pipelines:find_adapter_config_file",
        "transformers.models.auto.auto_factory:find_adapter_config_file",
    ),
    "turns from the repository of an adapter to that of its base model; ours hold the config of the model themselves",
)
def _open_adapter_repository_by_its_config(original: Callable, model_id: str, **kwargs: Any) -> str | None:
    file = original(model_id, **kwargs)
    # None stands for no adapter here, so that the config in the repository decides.
    return None if file is not None and is_our_adapter(file) and our_config(model_id, kwargs) else file


@Patch(
    ("transformers.utils.hub:cached_files",),
    "finds no config.json and no weights that it knows in repositories that hold the file of the authors alone, or no "
    "processor of an adapter with a name of its own, which is saved one folder above it",
)
def _open_published_checkpoints(
    original: Callable, path_or_repo_id: str | os.PathLike, filenames: list[str], *args: Any, **kwargs: Any
) -> Any:
    # All of transformers opens files here, so that models, configs, processors and pipelines are open alike.
    if is_published(path_or_repo_id) and kwargs.get("repo_type") in (None, "model"):
        from hf_any3d.published import opened_directory

        hub = {name: kwargs.get(name) for name in ("token", "local_files_only")}
        path_or_repo_id = opened_directory(os.fspath(path_or_repo_id), kwargs.get("revision"), **hub)
        return original(path_or_repo_id, filenames, *args, **kwargs)
    try:
        found = original(path_or_repo_id, filenames, *args, **kwargs)
    except OSError:
        if filenames == [CONFIG_NAME]:
            refuse_folder_of_ours(path_or_repo_id, kwargs.get("subfolder"))
        above = _place_of_processor(path_or_repo_id, filenames)
        if above is None:
            raise
        return original(above, filenames, *args, **kwargs)
    if found is not None:
        if filenames == [CONFIG_NAME]:
            package = missing_package(str(read_object(found[0]).get("model_type")))
            if package is not None:
                # Transformers would suppose that it is out of date itself; of errors here it passes on this one.
                raise OSError(f"{path_or_repo_id}: its model is of {package}")
        return found
    # Of a directory without config.json, nothing is found, even if errors are asked for.
    if filenames == [CONFIG_NAME] and kwargs.get("_raise_exceptions_for_missing_entries", True):
        refuse_folder_of_ours(path_or_repo_id, kwargs.get("subfolder"))
    above = _place_of_processor(path_or_repo_id, filenames)
    return None if above is None else original(above, filenames, *args, **kwargs)


def _place_of_processor(folder: Any, filenames: list[str]) -> Path | None:
    """Return the folder above that of one of our adapters, if it has a processor that was asked for; else None."""
    # Processors are saved once, above the folders of adapters with names of their own.
    if not _PROCESSOR_FILES.issuperset(filenames) or not isinstance(folder, (str, os.PathLike)):
        return None
    if not is_our_adapter(Path(folder, ADAPTER_CONFIG_NAME)):
        return None
    above = Path(folder).parent
    return above if any((above / name).is_file() for name in filenames) else None


def is_our_adapter(file: str | os.PathLike) -> bool:
    """Return whether an adapter_config.json is that of an adapter on one of our models: it names their class."""
    mapping = read_object(file).get("auto_mapping")
    library = mapping.get("parent_library") if isinstance(mapping, dict) else None
    return isinstance(library, str) and library.partition(".")[0] in (_PACKAGE, *EXTENSIONS)


def our_config(model_id: str | os.PathLike, kwargs: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return the contents of a repository's config.json if it belongs to one of our models."""
    # Errors of the repository itself are left to whoever opens it next.
    path = find_file(model_id, CONFIG_NAME, {name: kwargs[name] for name in HUB_ARGUMENTS if kwargs.get(name)})
    config = {} if path is None else read_object(path)
    kind = config.get("model_type")
    return config if isinstance(kind, str) and kind in OUR_MODELS else None


def read_object(path: str | os.PathLike) -> dict[str, Any]:
    """Return the contents of a JSON file; nothing of one that is not there, or holds anything else."""
    try:
        contents = json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}  # whoever opens the model says so
    return contents if isinstance(contents, dict) else {}


def refuse_folder_of_ours(folder: Any, subfolder: Any = None) -> None:
    """Refuse a directory of folders with adapters, if one of them is of one of our models."""
    # Whoever opens the model refuses what cannot be a name, such as a number, or one that is too long.
    if not all(isinstance(name, (str, os.PathLike)) for name in (folder, subfolder or "")):
        return
    place = Path(folder, subfolder or "")
    if os.path.isdir(place) and any(map(is_our_adapter, place.glob(f"*/{ADAPTER_CONFIG_NAME}"))):
        refuse_folder_of_adapters(place)
