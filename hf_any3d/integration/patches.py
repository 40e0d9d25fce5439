"""Every change that `import hf_any3d` makes to other libraries, beyond what they offer for it, each with its reason.

- Seven functions of PEFT and transformers are wrapped, see `PATCHES`. Each wrapper asks whether it is about one of our
  models, by the model itself, its config.json or the name of a published checkpoint, and calls the original with what
  it was given for all others. `tests/integration/test_patches.py` shows for each that the original still does what
  its reason says: where that test fails, a release has made the patch unnecessary. What would replace each upstream
  is in docs/upstream.md.
- `apply_patches` also writes to tables of theirs that have no function for it: our auto classes become attributes of
  `transformers` and `transformers.models.auto`, our language models get entries in PEFT's table of what LoRA adapts
  by default, and every Trainer gets a callback that acts on our adapters alone. Where transformers asks for a PEFT
  that has not been released, it asks for ours.
- `PeftType` gets a member for each of our methods in its tables of names and values, as PEFT refuses others. That
  alone is elsewhere, in `register_method` of `hf_any3d.tuners.tuners_utils`, since methods register while they are
  imported.

The test holds all other modules to it.
"""

import contextlib
import functools
import json
import os
import pkgutil
import re
import sys
import warnings
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from inspect import getattr_static
from pathlib import Path
from typing import Any, cast

import torch
import transformers
import transformers.integrations.peft as peft_integration
from accelerate.state import AcceleratorState
from accelerate.utils import DistributedType
from peft import PeftConfig, PeftModel, PeftType, auto as peft_auto
from peft.tuners.lora import LoraModel
from peft.utils import (
    TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING,
    ModulesToSaveWrapper,
    load_peft_weights,
)
from transformers import PreTrainedModel, TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
from transformers.utils import CONFIG_NAME, FEATURE_EXTRACTOR_NAME as PREPROCESSOR, PROCESSOR_NAME
from transformers.utils.hub import CHAT_TEMPLATE_FILE, cached_file
from transformers.utils.peft_utils import ADAPTER_CONFIG_NAME

from hf_any3d.hub.names import check_name
from hf_any3d.hub.published_table import is_published
from hf_any3d.modeling.config_checks import stored_settings
from hf_any3d.modeling.hooks import hooks
from hf_any3d.modeling.pretrained_parts.adapter_loading import (
    cast_base,
    check_adapter_to_load,
    keep_stored_precision,
    refuse_folder_of_adapters,
    refuse_merged_adapters,
    save_with_adapter,
    warn_of_another_base,
)
from hf_any3d.modeling.pretrained_parts.loading import HUB_ARGUMENTS, dtype_named
from hf_any3d.modeling.pretrained_parts.mixin import LibraryModelMixin, opens_from_adapter
from hf_any3d.registry import MODEL_TYPES, pipeline_task
from hf_any3d.tuners.targets import left_out_modules, with_default_modules
from hf_any3d.utils.import_watcher import when_imported

# Model types with words between the clouds of a prompt.
_READ_CLOUDS_AND_WORDS = {name for name, kind in MODEL_TYPES.items() if "point-cloud-text-to-text" in kind.heads}
# Settings by which an adapter computes with its weights, where their shapes do not show it.
_SETTINGS_OF_COMPUTING = re.compile(r"alpha|scal|^use_|block_size|fan_in|neighbors|distances|signs|cell")
_PACKAGE = __name__.partition(".")[0]
_PROCESSOR_FILES = frozenset(
    {PREPROCESSOR, PROCESSOR_NAME, CHAT_TEMPLATE_FILE, "tokenizer.json", "tokenizer_config.json"}
)
_MODELS: dict[str, tuple[type[PreTrainedModel], ...]] = {}
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
    lora_targets: Mapping[str, list[str]],
    next_token_models: Iterable[type],
) -> None:
    """Apply all patches, those of modules that are not imported yet as soon as they are, and fill tables.

    Args:
        models: `model_type` -> our model classes of that type, the one without a head first.
        auto_classes: Auto classes of our tasks, which pipelines and saved repositories look up by name in
            transformers.
        lora_targets: `model_type` of our language models -> the modules that LoRA adapts by default.
        next_token_models: Models with the loss of a language model; Trainer shifts labels to smooth for these names.
    """
    # There can be two module objects of transformers: importing peft replaces the one that was there before.
    for module in (transformers, sys.modules["transformers"], transformers.models.auto):
        for auto_class in auto_classes:
            setattr(module, auto_class.__name__, auto_class)
    TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING.update(lora_targets)
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.update(
        {model.config_class.model_type: model.__name__ for model in next_token_models}
    )
    # 5.24 asks for 0.22, with the same code as 5.23; without this no model that was opened with an adapter is saved.
    peft_integration.MIN_PEFT_VERSION = "0.20.0"
    _MODELS.update(models)
    for patch in PATCHES:
        when_imported(patch.targets[0].partition(":")[0], patch.apply)
    when_imported("transformers.trainer", _add_callback)


class PointCloudPeftModel(PeftModel):
    """A `PeftModel` around one of our models: it saves what the model needs, and checks what it loads.

    PEFT chooses the class by the task type, so a model around one of ours becomes one of these while it is built; see
    `adapted_class`.
    """

    def save_pretrained(
        self,
        save_directory: str,
        safe_serialization: bool = True,
        selected_adapters: list[str] | None = None,
        save_embedding_layers: str | bool = "auto",
        is_main_process: bool = True,
        *args: Any,
        **kwargs: Any,
    ) -> None:
        """Save as PEFT does, with the config of the model, without which the directory does not open, and cards."""
        model = cast(PreTrainedModel, self.get_base_model())
        # Adapters whose model was not loaded from a repository name the encoder as their base. Without a name it is
        # None, or an empty text before PEFT 0.21.
        encoder = getattr(model.config, "encoder_name_or_path", None)
        for config in self.peft_config.values():
            if encoder and not config.base_model_name_or_path:
                config.base_model_name_or_path = encoder
                config.revision = config.revision or model.config.encoder_revision
        if isinstance(model, LibraryModelMixin) and model._adapted_part is not None:
            refuse_merged_adapters(model)  # before anything is written
            # PEFT would ask the hub whether the base model has another vocabulary, and warn without a network: these
            # models read no words, and an adapter with embeddings would not open.
            if save_embedding_layers == "auto":
                save_embedding_layers = False
        given = (safe_serialization, selected_adapters, save_embedding_layers, is_main_process, *args)
        super().save_pretrained(save_directory, *given, **kwargs)
        if not opens_from_adapter(type(model), model.config) or not is_main_process:
            return
        model.config.architectures = [type(model).__name__]
        names = list(selected_adapters or self.peft_config)
        for name in names:
            missing = left_out_modules(self, name)
            if missing:
                warnings.warn(
                    f"this adapter leaves out {', '.join(missing)}; it opens only with the base model as it is now, "
                    "so share that too, or train with modules_to_save=trainable_module_names(model)",
                    stacklevel=2,
                )
            else:
                # PEFT saves the adapter called default in the directory itself, and others in folders of their names.
                save_with_adapter(
                    cast(LibraryModelMixin, model), save_directory if name == "default" else f"{save_directory}/{name}"
                )
        if isinstance(model, LibraryModelMixin):
            # Again: saving may have found that a pretrained part has changed, and stored it.
            self._write_cards(save_directory, names)

    def _write_cards(self, save_directory: str, names: Sequence[str]) -> None:
        """Write a card for each adapter, on top that of the default or the active one."""
        active = self.active_adapter
        # Nothing is saved in the directory itself but its card, which is then that of the active adapter.
        if "default" not in names:
            hooks().describe(self, save_directory, None)
        try:
            for name in names:
                self.active_adapter = name  # the one that is described; nothing is switched
                hooks().describe(self, save_directory if name == "default" else Path(save_directory, name), None)
        finally:
            self.active_adapter = active

    def create_or_update_model_card(self, output_dir: str) -> None:
        """Write a card that describes the model instead of PEFT's template."""
        if isinstance(self.get_base_model(), LibraryModelMixin):
            hooks().describe(self, output_dir, None)
        else:
            super().create_or_update_model_card(output_dir)

    def _upload_modified_files(self, working_dir: str | os.PathLike, repo_id: str, *args: Any, **kwargs: Any) -> Any:
        # transformers has just put its template over the card.
        if isinstance(self.get_base_model(), LibraryModelMixin):
            hooks().describe(self, working_dir, repo_id)
            for name in self.peft_config:  # their examples open directories, not subfolders of a repository
                Path(working_dir, name, "README.md").unlink(missing_ok=True)
        return super()._upload_modified_files(working_dir, repo_id, *args, **kwargs)

    def load_adapter(self, model_id: str | os.PathLike, adapter_name: str, *args: Any, **kwargs: Any) -> Any:
        """Load an adapter as PEFT does, after a comparison of the base model with the one that it was trained on.

        From a directory of several adapters, as `save_pretrained` writes it, the one of this name is loaded; PEFT
        loads the one that is called default under any name.

        Raises:
            EncoderMismatchError: If it was trained on other pretrained weights than this model has.
            ValueError: If the weights of the base model are offloaded: PEFT would lose the adapter's.
        """
        check_name(model_id, kwargs)
        if Path(model_id, adapter_name, ADAPTER_CONFIG_NAME).is_file():
            model_id = Path(model_id, adapter_name)
        model = cast(LibraryModelMixin, self.get_base_model())
        hub = {name: kwargs[name] for name in HUB_ARGUMENTS if kwargs.get(name) is not None}
        check_adapter_to_load(model, model_id, hub)
        if adapter_name in self.peft_config:
            # PEFT would keep the settings of the adapter that is there, such as LoRA's alpha.
            ours = self.peft_config[adapter_name].to_dict()
            theirs = PeftConfig.from_pretrained(os.fspath(model_id), **hub).to_dict()
            for name in filter(_SETTINGS_OF_COMPUTING.search, sorted(ours.keys() & theirs.keys())):
                if ours[name] != theirs[name]:
                    raise ValueError(
                        f"{model_id}: {name}={theirs[name]!r}; the adapter {adapter_name!r} that is loaded has "
                        f"{ours[name]!r}, so delete_adapter({adapter_name!r}) first, or give another adapter_name"
                    )
        loaded = super().load_adapter(os.fspath(model_id), adapter_name, *args, **kwargs)
        config = self.peft_config[adapter_name]
        if kwargs.get("autocast_adapter_dtype", True) and not config.is_prompt_learning:
            weights = load_peft_weights(
                os.fspath(model_id), device="cpu", key_mapping=kwargs.get("key_mapping"), **hub
            )
            keep_stored_precision(self, weights, adapter_name)
        return loaded

    @contextlib.contextmanager
    def _enable_peft_forward_hooks(self, *args: Any, **kwargs: Any) -> Iterator[None]:
        """Refuse the adapters of single rows where they would be ignored; PEFT's forward pass and `generate` ask here.

        Raises:
            ValueError: The method runs one adapter for a whole batch, or rows of the layers are no clouds.
        """
        if kwargs.get("adapter_names") is not None:
            names = kwargs["adapter_names"]
            refused = f"adapter_names={list(names)}: one adapter runs for a whole batch"
            # Methods that mix adapters have this method, and others leave out the argument without a word.
            if not hasattr(self.base_model, "_enable_peft_forward_hooks"):
                raise ValueError(f"{refused}; choose it by set_adapter(…)")
            for module in self.get_base_model().modules():
                stack = getattr(module, "layer_stack", None) if hasattr(type(module), "layer_stack") else None
                if stack is not None and stack.attention_axis != "tokens":
                    raise ValueError(
                        f"{refused} of a {type(module).__name__}, whose layers mix rows; use set_adapter(…)"
                    )
            # Only LoRA tells trained modules about the rows; those of the active adapter would run for all.
            if not isinstance(self.base_model, LoraModel) and (trained := self._trained_modules(set(names))):
                raise ValueError(f"{refused} of {trained[0]}, which is trained in full; choose it by set_adapter(…)")
        try:
            with super()._enable_peft_forward_hooks(*args, **kwargs):
                yield
        except BaseException:
            # PEFT leaves its hooks after an error, and every later batch would have the adapters of this one.
            for module in self.modules():
                for number, hook in list(module._forward_pre_hooks.items()):
                    if isinstance(hook, functools.partial) and "adapter_names" in hook.keywords:
                        del module._forward_pre_hooks[number]
                        module._forward_pre_hooks_with_kwargs.pop(number, None)
            raise

    def _trained_modules(self, names: Collection[str]) -> list[str]:
        """Return the names of modules that one of these adapters has trained in full."""
        trained = []
        for path, module in self.get_base_model().named_modules():
            if isinstance(module, ModulesToSaveWrapper) and not module.modules_to_save.keys().isdisjoint(names):
                trained.append(path)
        return trained

    def merge_and_unload(
        self, progressbar: bool = False, safe_merge: bool = False, adapter_names: list[str] | None = None
    ) -> torch.nn.Module:
        """Merge adapters into the weights as PEFT does, with the modules that the adapter trained in full.

        Raises:
            ValueError: Several of the adapters trained the same module, or the method cannot be merged.
        """
        with self._trained_modules_in_place(adapter_names):
            return cast(Any, self.base_model).merge_and_unload(progressbar, safe_merge, adapter_names)

    def unload(self) -> torch.nn.Module:
        """Remove the adapters as PEFT does; modules that the active adapter trained in full stay."""
        with self._trained_modules_in_place(None):
            return cast(Any, self.base_model).unload()

    @contextlib.contextmanager
    def _trained_modules_in_place(self, adapter_names: Sequence[str] | None) -> Iterator[None]:
        """Put modules that an adapter trained in full where PEFT has its wrappers; those come back after an error.

        PEFT copies the weight of each, which heads of several layers lack, takes those of the active adapter whatever
        adapters are merged, and with LN tuning leaves its wrappers in the model.
        """
        model = self.get_base_model()
        chosen = list(self.active_adapters if adapter_names is None else adapter_names)
        wrappers = {path: module for path, module in model.named_modules() if isinstance(module, ModulesToSaveWrapper)}
        placed = {}
        for path, wrapper in wrappers.items():
            copies = [name for name in chosen if name in wrapper.modules_to_save]
            if len(copies) > 1:
                raise ValueError(
                    f"the adapters {', '.join(copies)} have each trained {path}, of which a model has one; merge one"
                )
            placed[path] = wrapper.modules_to_save[copies[0]] if copies else wrapper.original_module
        try:
            for path, module in placed.items():
                model.set_submodule(path, module)
            yield
        except BaseException:
            for path, wrapper in wrappers.items():
                model.set_submodule(path, wrapper)
            raise

    def merge_adapter(self, adapter_names: list[str] | None = None, safe_merge: bool = False) -> None:
        """Merge adapters into the weights until `unmerge_adapter`, as PEFT does.

        Raises:
            ValueError: One of them has trained modules in full and is not active: those of another would run.
        """
        for name in adapter_names or ():
            trained = self._trained_modules([name, *self.active_adapters])
            if trained and name not in self.active_adapters:
                raise ValueError(
                    f"the adapter {name!r} is not active, and {trained[0]} is trained in full; "
                    f"call set_adapter({name!r}) first"
                )
        cast(Any, self.base_model).merge_adapter(adapter_names, safe_merge)

    def add_weighted_adapter(self, adapters: list[str], *args: Any, **kwargs: Any) -> None:
        """Add an adapter that is the sum of others, as PEFT does.

        Raises:
            ValueError: One of them has trained modules in full, which the sum would lack.
        """
        trained = self._trained_modules(adapters)
        if trained:
            raise ValueError(
                f"add_weighted_adapter leaves out {trained[0]}, which these adapters have trained in full; train them "
                "with modules_to_save=[] on a saved model whose head is trained"
            )
        cast(Any, self.base_model).add_weighted_adapter(adapters, *args, **kwargs)

    def add_adapter(self, adapter_name: str, peft_config: PeftConfig, *args: Any, **kwargs: Any) -> None:
        """Add an adapter as PEFT does."""
        if not peft_config.is_prompt_learning:
            peft_config = with_default_modules(self.get_base_model(), peft_config)
            super().add_adapter(adapter_name, peft_config, *args, **kwargs)
            return
        model = self.base_model
        method = PeftType(peft_config.peft_type)
        problem = None
        if opens_from_adapter(type(model), cast(PreTrainedModel, model).config):
            problem = "which reads none; expected a method such as PromptTokensConfig of hf_any3d"
        elif getattr(model.config, "model_type", None) in _READ_CLOUDS_AND_WORDS and method != PeftType.PREFIX_TUNING:
            problem = "whose input_ids mark the places of clouds; expected PREFIX_TUNING, or a method such as LORA"
        if problem:
            raise ValueError(f"{method.value} passes embeddings of words to {type(model).__name__}, {problem}")
        super().add_adapter(adapter_name, peft_config, *args, **kwargs)

    def __reduce_ex__(self, protocol: Any) -> tuple[Any, ...]:
        """Copy and pickle by the class of PEFT, as this one has no name that it could be imported by."""
        # The second base is the class of PEFT, see `adapted_class`.
        return _restore, (type(self).__bases__[1],), self.__dict__


@functools.cache
def adapted_class(peft_class: type[PeftModel]) -> type[PointCloudPeftModel]:
    """Return a subclass of a class of PEFT with the methods of `PointCloudPeftModel`, of the same name."""
    members = {"__module__": __name__, "__doc__": peft_class.__doc__}
    return type(peft_class.__name__, (PointCloudPeftModel, peft_class), members)


def _restore(peft_class: type[PeftModel]) -> PointCloudPeftModel:
    adapted = adapted_class(peft_class)
    # Without the constructor: copying and pickling set the state afterwards.
    return adapted.__new__(adapted)


def _is_ours(model: Any) -> bool:
    # Models with adapters are no LibraryModelMixin, but their classes are made in this module.
    return isinstance(model, LibraryModelMixin) or type(model).__module__.startswith(f"{_PACKAGE}.")


@Patch(
    ("peft.peft_model:PeftModel.__init__",),
    "chooses the class by the task type alone; its methods save adapters without the config of the model around them, "
    "write templates as cards, load adapters onto a base with other weights, and leave a new decoder untrained",
)
def _become_ours(
    original: Callable, self: PeftModel, model: torch.nn.Module, peft_config: PeftConfig, *args: Any, **kwargs: Any
) -> None:
    if not _is_ours(model):
        original(self, model, peft_config, *args, **kwargs)
        return
    if isinstance(model, PointCloudPeftModel):
        raise ValueError(
            f"the model has the adapter {', '.join(map(repr, model.peft_config))} already; expected "
            "model.load_adapter(directory, adapter_name=…) or model.add_adapter(name, config), and "
            "model.set_adapter(name)"
        )
    # Before PEFT's constructor, which already calls methods that our class overrides.
    if not isinstance(self, PointCloudPeftModel):
        self.__class__ = adapted_class(type(self))
    peft_config = with_default_modules(model, peft_config)
    original(self, model, peft_config, *args, **kwargs)


@Patch(
    (
        "transformers.pipelines:find_adapter_config_file",
        "transformers.models.auto.auto_factory:find_adapter_config_file",
    ),
    "turns from the repository of an adapter to that of its base model; ours hold the config of the model themselves",
)
def _open_adapter_repository_by_its_config(original: Callable, model_id: str, **kwargs: Any) -> str | None:
    _refuse_folder_of_ours(model_id, kwargs.get("subfolder"))
    file = original(model_id, **kwargs)
    # None stands for no adapter here, so that the config in the repository decides.
    return None if file is None or _our_config(model_id, kwargs) else file


@Patch(
    ("transformers.pipelines:get_task",),
    "asks the hub for the task, also of a directory; adapters are there as models of PEFT, and none without a network",
)
def _find_task_in_config(original: Callable, model: str, token: str | None = None, **kwargs: Any) -> str:
    _refuse_folder_of_ours(model)
    if is_published(model):  # whose error says more than one about its name
        from hf_any3d.published import opened_directory

        # Converts the file of the authors, so that there is a config to read.
        opened_directory(model, token=token)
    config = _our_config(model, {} if token is None else {"token": token})
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
    is_name = not os.path.isdir(path_or_repo_id) and kwargs.get("repo_type") in (None, "model")
    if is_name and is_published(path_or_repo_id):
        from hf_any3d.published import opened_directory

        hub = {name: kwargs.get(name) for name in ("token", "local_files_only")}
        path_or_repo_id = opened_directory(os.fspath(path_or_repo_id), kwargs.get("revision"), **hub)
    elif _PROCESSOR_FILES.issuperset(filenames) and Path(path_or_repo_id, ADAPTER_CONFIG_NAME).is_file():
        # Processors are saved once, above the folders of adapters with names of their own.
        folders = (Path(path_or_repo_id), Path(path_or_repo_id).parent)
        if _our_config(path_or_repo_id, {}) and not any((folders[0] / name).exists() for name in filenames):
            path_or_repo_id = folders[1]
    return original(path_or_repo_id, filenames, *args, **kwargs)


@Patch(
    ("peft.auto:_BaseAutoPeftModel.from_pretrained",),
    "opens the base model by a class of a library that it knows, which this is not, and not by the config",
)
def _open_adapter_repository_as_peft_model(
    original: Callable,
    cls: Any,
    pretrained_model_name_or_path: str | os.PathLike,
    adapter_name: str = "default",
    is_trainable: bool = False,
    config: PeftConfig | None = None,
    revision: str | None = None,
    import_allowlist: list[str] | None = None,
    **kwargs: Any,
) -> PeftModel:
    hub = {"revision": revision, **kwargs}
    hub = {name: hub[name] for name in ("cache_dir", "revision", "subfolder", "token") if hub.get(name) is not None}
    adapter: dict[str, Any] = {"adapter_name": adapter_name, "is_trainable": is_trainable}
    adapter |= {"config": config, "revision": revision}
    _refuse_folder_of_ours(pretrained_model_name_or_path, hub.get("subfolder"))
    recorded = _our_config(pretrained_model_name_or_path, hub)
    if recorded is not None:
        check_name(pretrained_model_name_or_path, hub)
    # Damaged files of others have the errors of PEFT.
    with contextlib.nullcontext() if recorded is None else stored_settings(pretrained_model_name_or_path, kwargs):
        stored = PeftConfig.from_pretrained(os.fspath(pretrained_model_name_or_path), **hub)
    library = str((stored.auto_mapping or {}).get("parent_library"))
    # Neither the config nor the class of the base model is of this package.
    if recorded is None and library.partition(".")[0] != _PACKAGE:
        return original(cls, pretrained_model_name_or_path, import_allowlist=import_allowlist, **adapter, **kwargs)
    task_type: Any = stored.task_type
    expected = peft_auto.MODEL_TYPE_TO_PEFT_MODEL_MAPPING.get(task_type, PeftModel)
    # For another task type the original names the class to use.
    if recorded is None or cls._target_peft_class is not expected:
        # PEFT imports classes of base models only from packages on this list.
        allowed = import_allowlist or [*peft_auto.get_default_import_allowlist(), _PACKAGE]
        return original(cls, pretrained_model_name_or_path, import_allowlist=allowed, **adapter, **kwargs)
    with stored_settings(pretrained_model_name_or_path, kwargs):
        base = _base_beside_adapter(os.fspath(pretrained_model_name_or_path), recorded, hub, kwargs)
        return expected.from_pretrained(base, os.fspath(pretrained_model_name_or_path), **adapter, **kwargs)


def _base_beside_adapter(
    name: str, recorded: dict[str, Any], hub: dict[str, Any], kwargs: dict[str, Any]
) -> PreTrainedModel:
    """Build the base model by the config beside an adapter, and take its arguments out of `kwargs`."""
    dtype = dtype_named(kwargs.pop("dtype", None) or kwargs.pop("torch_dtype", None))
    loading = {argument: kwargs.pop(argument, None) for argument in ("attn_implementation", "quantization_config")}
    classes = {model.__name__: model for model in _MODELS[recorded["model_type"]]}
    named = [architecture for architecture in recorded.get("architectures") or () if architecture in classes]
    # Without a recorded class it is the first one of its type, the model without a head.
    model_class: Any = classes[[*named, *classes][0]]
    config = model_class.config_class.from_pretrained(name, **hub)
    base = model_class.build_for_adapter(
        name, config, hub, dtype=dtype, device_map=kwargs.get("device_map"), **loading
    )
    cast_base(base, dtype)
    return base


@Patch(
    ("peft.utils.hotswap:hotswap_adapter_from_state_dict",),
    "swaps the matrices of LoRA alone, fails with a KeyError on a trained head, and does not ask for the base",
)
def _swap_trained_modules_too(
    original: Callable,
    model: Any,
    state_dict: dict[str, torch.Tensor],
    adapter_name: str,
    config: PeftConfig,
    *args: Any,
    **kwargs: Any,
) -> None:
    ours = getattr(model, "_orig_mod", model)  # of a compiled model
    if not isinstance(ours, PointCloudPeftModel):
        original(model, state_dict, adapter_name, config, *args, **kwargs)
        return
    # Names of stored tensors of trained modules, with those in the model.
    trained = {}
    for path, module in ours.named_modules():
        if isinstance(module, ModulesToSaveWrapper):
            for stored, place in module.adapter_state_dict_load_map(adapter_name).items():
                trained[f"{path}.{stored}"] = f"{path}.{place}"
    others = {key for key in state_dict if ".lora_" not in key}
    different = sorted(others ^ trained.keys())
    if different:
        raise ValueError(
            f"only one of the two adapters has trained {different[0]}; load the other one beside it: "
            "load_adapter(directory, adapter_name) and set_adapter(adapter_name)"
        )
    warn_of_another_base(cast(LibraryModelMixin, ours.get_base_model()), config.base_model_name_or_path)
    matrices = {key: tensor for key, tensor in state_dict.items() if key not in trained}
    original(model, matrices, adapter_name, config, *args, **kwargs)
    present = ours.state_dict()
    for key, place in trained.items():
        present[place].copy_(state_dict[key])


class BestAdaptersCallback(TrainerCallback):
    """At the end of a training that loads the best checkpoint, load every adapter of one of our models from it.

    Trainer loads the active adapter, and only from a checkpoint that holds one called default.
    """

    def on_train_end(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        model: torch.nn.Module | None = None,
        **kwargs: Any,
    ) -> None:
        """Load the adapters; where weights are split over processes, Trainer has loaded them in its own way."""
        if not isinstance(model, PointCloudPeftModel):
            return
        is_split = AcceleratorState().distributed_type in (DistributedType.DEEPSPEED, DistributedType.FSDP)
        if not args.load_best_model_at_end or state.best_model_checkpoint is None or is_split:
            return
        for name in model.peft_config:
            model.load_adapter(state.best_model_checkpoint, name)


def _add_callback() -> None:
    from transformers.trainer import DEFAULT_CALLBACKS  # imports `datasets`, which takes long

    if BestAdaptersCallback not in DEFAULT_CALLBACKS:
        DEFAULT_CALLBACKS.append(BestAdaptersCallback)  # pyright: ignore[reportArgumentType]


@Patch(
    ("transformers.trainer:Trainer.compute_loss",),
    "to smooth labels, replaces any loss by the cross-entropy of the logits, and does not say that nothing is trained",
)
def _keep_the_objective(
    original: Callable, self: Any, model: torch.nn.Module, inputs: dict[str, Any], *args: Any, **kwargs: Any
) -> Any:
    if not _is_ours(self.accelerator.unwrap_model(self.model, keep_torch_compile=False)):
        return original(self, model, inputs, *args, **kwargs)
    # Once in a training, by the first batch with labels.
    if self.label_smoother is not None and "labels" in inputs and not hasattr(self, "_checked_smoothing"):
        losses = _losses_without_smoothing(self, original, model, inputs)
        if not torch.allclose(*losses, rtol=1e-2, atol=1e-3):
            raise ValueError(
                f"--label_smoothing_factor {self.args.label_smoothing_factor}: the loss of this model is not "
                "the cross-entropy of its logits, which Trainer would replace it by; expected 0"
            )
        self._checked_smoothing = True
    computed = original(self, model, inputs, *args, **kwargs)
    loss = computed[0] if isinstance(computed, tuple) else computed
    if model.training and torch.is_grad_enabled() and not loss.requires_grad:
        raise ValueError(
            f"nothing in the {type(model).__name__} is trained; set requires_grad, or open a stored adapter for "
            "training with AutoPeftModel.from_pretrained(directory, is_trainable=True)"
        )
    return computed


def _losses_without_smoothing(
    trainer: Any, compute_loss: Callable, model: torch.nn.Module, inputs: dict[str, Any]
) -> list[torch.Tensor]:
    """Return the loss of a batch, and the one that a Trainer would smooth, both without dropout."""
    smoother = trainer.label_smoother
    is_training = model.training
    losses = []
    model.eval()
    try:
        with torch.no_grad():
            # Not 0: classes that a category excludes have an infinite share, which would go unnoticed.
            for other in (None, type(smoother)(epsilon=1e-6)):
                trainer.label_smoother = other
                losses.append(compute_loss(trainer, model, dict(inputs)).float())
    except (AttributeError, KeyError):  # labels in lists, or no `logits`
        if not losses:
            raise
        # NaN is close to nothing, so the losses count as different.
        losses.append(torch.full_like(losses[0], torch.nan))
    finally:
        trainer.label_smoother = smoother
        model.train(is_training)
    return losses


def _our_config(model_id: str | os.PathLike, kwargs: Mapping[str, Any]) -> dict[str, Any] | None:
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
    return config if isinstance(kind, str) and kind in _MODELS else None


def _refuse_folder_of_ours(folder: str | os.PathLike, subfolder: str | None = None) -> None:
    """Refuse a directory of folders with adapters, if one of them is of one of our models."""
    place = Path(folder, subfolder or "")
    if any(_ours_in(path) for path in place.glob(f"*/{CONFIG_NAME}") if path.with_name(ADAPTER_CONFIG_NAME).is_file()):
        refuse_folder_of_adapters(place)
