"""Every change that `import hf_any3d` makes to other libraries, beyond what they offer for it, each with its reason.

- Ten functions of PEFT, transformers and datasets are wrapped, see `PATCHES`. Those of PEFT, of Trainer and of
  datasets are in `peft_patches`, `trainer_patches` and `datasets_patches` beside this module, which are imported as
  soon as these are. Each wrapper asks whether it is about one of our models, by the model itself, its config.json or
  the name of a published checkpoint, or about one of our clouds, and calls the original with what it was given for
  all others. `tests/integration` shows
  for each that the original still does what its reason says: where that test fails, a release has made the patch
  unnecessary. What would replace each upstream is in docs/upstream.md.
- Tables of theirs that have no function for it are written to as well: our auto classes become attributes of
  `transformers` and `transformers.models.auto`, our language models get entries in PEFT's table of what LoRA adapts
  by default, and every Trainer gets a callback that acts on our adapters alone. Where transformers asks for a PEFT
  that has not been released, it asks for ours.
- `PeftType` gets a member for each of our methods in its tables of names and values, as PEFT refuses others. That
  alone is elsewhere, in `register_method` of `hf_any3d.tuners.tuners_utils`, since methods register while they are
  imported.

The test holds all other modules to it.
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

import transformers
import transformers.integrations.peft as peft_integration
from transformers import PreTrainedModel
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
from transformers.utils import CONFIG_NAME, FEATURE_EXTRACTOR_NAME as PREPROCESSOR, PROCESSOR_NAME
from transformers.utils.hub import CHAT_TEMPLATE_FILE, cached_file
from transformers.utils.peft_utils import ADAPTER_CONFIG_NAME

from hf_any3d.hub.published_table import is_published
from hf_any3d.modeling.pretrained_parts.adapter_loading import (
    refuse_folder_of_adapters,
)
from hf_any3d.modeling.pretrained_parts.mixin import LibraryModelMixin
from hf_any3d.registry import pipeline_task
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


def apply_patches(
    models: Mapping[str, tuple[type[PreTrainedModel], ...]],
    auto_classes: Iterable[type],
    next_token_models: Iterable[type],
) -> None:
    """Apply the patches of transformers, and fill its tables.

    Args:
        models: `model_type` -> our model classes of that type, the one without a head first.
        auto_classes: Auto classes of our tasks, which pipelines and saved repositories look up by name in
            transformers.
        next_token_models: Models with the loss of a language model; Trainer shifts labels to smooth for these names.
    """
    for module in (transformers, transformers.models.auto):
        for auto_class in auto_classes:
            setattr(module, auto_class.__name__, auto_class)
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.update(
        {model.config_class.model_type: model.__name__ for model in next_token_models}
    )
    # 5.24 asks for 0.22, with the same code as 5.23; without this no model that was opened with an adapter is saved.
    peft_integration.MIN_PEFT_VERSION = "0.20.0"
    OUR_MODELS.update(models)
    apply_entered_patches()


def apply_entered_patches() -> None:
    """Apply the patches of the table, those of modules that are not imported yet as soon as they are."""
    for patch in PATCHES:
        when_imported(patch.targets[0].partition(":")[0], patch.apply)


def is_ours(model: Any) -> bool:
    """Tell whether a model is one of ours, with adapters or without."""
    # Those with adapters are no LibraryModelMixin, but their classes are made in `peft_patches`.
    return isinstance(model, LibraryModelMixin) or type(model).__module__.startswith(f"{_PACKAGE}.")


@Patch(
    (
        "transformers.pipelines:find_adapter_config_file",
        "transformers.models.auto.auto_factory:find_adapter_config_file",
    ),
    "turns from the repository of an adapter to that of its base model; ours hold the config of the model themselves",
)
def _open_adapter_repository_by_its_config(original: Callable, model_id: str, **kwargs: Any) -> str | None:
    if not _is_name(model_id):
        return original(model_id, **kwargs)
    file = original(model_id, **kwargs)
    # None stands for no adapter here, so that the config in the repository decides.
    return None if file is None or our_config(model_id, kwargs) else file


@Patch(
    ("transformers.pipelines:get_task",),
    "asks the hub for the task, also of a directory; adapters are there as models of PEFT, and none without a network",
)
def _find_task_in_config(original: Callable, model: str, token: str | None = None, **kwargs: Any) -> str:
    if not _is_name(model):
        return original(model, token, **kwargs)
    refuse_folder_of_ours(model)
    if is_published(model):  # whose error says more than one about its name
        from hf_any3d.published import opened_directory

        # Converts the file of the authors, so that there is a config to read.
        opened_directory(model, token=token)
    config = our_config(model, {} if token is None else {"token": token})
    return original(model, token, **kwargs) if config is None else pipeline_task(config.get("architectures"))


@Patch(
    ("transformers.utils.hub:cached_files",),
    "finds no config.json and no weights that it knows in repositories that hold the file of the authors alone, or no "
    "processor of an adapter with a name of its own, which is saved one folder above it",
)
def _open_published_checkpoints(
    original: Callable, path_or_repo_id: str | os.PathLike, filenames: list[str], *args: Any, **kwargs: Any
) -> Any:
    # All of transformers opens files here, so that models, configs, processors and pipelines are open alike.
    if not _is_name(path_or_repo_id):
        return original(path_or_repo_id, filenames, *args, **kwargs)
    if filenames == [CONFIG_NAME] and kwargs.get("_raise_exceptions_for_missing_entries", True):
        # Whoever must have a config knows the subfolder, which auto classes do not pass to the look-up of adapters.
        refuse_folder_of_ours(path_or_repo_id, kwargs.get("subfolder"))
    is_name = not os.path.isdir(path_or_repo_id) and kwargs.get("repo_type") in (None, "model")
    if is_name and is_published(path_or_repo_id):
        from hf_any3d.published import opened_directory

        hub = {name: kwargs.get(name) for name in ("token", "local_files_only")}
        path_or_repo_id = opened_directory(os.fspath(path_or_repo_id), kwargs.get("revision"), **hub)
    elif _PROCESSOR_FILES.issuperset(filenames) and os.path.isfile(Path(path_or_repo_id, ADAPTER_CONFIG_NAME)):
        # Processors are saved once, above the folders of adapters with names of their own.
        folders = (Path(path_or_repo_id), Path(path_or_repo_id).parent)
        if our_config(path_or_repo_id, {}) and not any((folders[0] / name).exists() for name in filenames):
            path_or_repo_id = folders[1]
    return original(path_or_repo_id, filenames, *args, **kwargs)


def _is_name(model_id: Any) -> bool:
    """Return whether something is a text or path; the errors about all else are those of the library."""
    return isinstance(model_id, (str, os.PathLike))


def our_config(model_id: str | os.PathLike, kwargs: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return the contents of a repository's config.json if it belongs to one of our models."""
    # Errors of the repository itself are left to the original, which opens it next.
    path = cached_file(
        model_id,
        CONFIG_NAME,
        _raise_exceptions_for_gated_repo=False,
        _raise_exceptions_for_missing_entries=False,
        _raise_exceptions_for_connection_errors=False,
        cache_dir=kwargs.get("cache_dir"),
        revision=kwargs.get("revision"),
        token=kwargs.get("token"),
        subfolder=kwargs.get("subfolder") or "",
    )
    if path is None:
        return None
    return _ours_in(path)


def _ours_in(path: str | os.PathLike) -> dict[str, Any] | None:
    """Return the contents of a config.json if it belongs to one of our models; others may hold anything."""
    try:
        config = json.loads(Path(path).read_text(encoding="utf-8"))
    except (ValueError, RecursionError):
        return None  # whoever opens the model says so
    kind = config.get("model_type") if isinstance(config, dict) else None
    return config if isinstance(kind, str) and kind in OUR_MODELS else None


def refuse_folder_of_ours(folder: str | os.PathLike, subfolder: str | None = None) -> None:
    """Refuse a directory of folders with adapters, if one of them is of one of our models."""
    # Whoever opens the model refuses what cannot be a name, such as a number, or one that is too long.
    if not _is_name(subfolder or "") or not os.path.isdir(place := Path(folder, subfolder or "")):
        return
    if any(_ours_in(path) for path in place.glob(f"*/{CONFIG_NAME}") if path.with_name(ADAPTER_CONFIG_NAME).is_file()):
        refuse_folder_of_adapters(place)
