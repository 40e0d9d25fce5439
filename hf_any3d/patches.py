"""Every change that `import hf_any3d` makes to other libraries, beyond what they offer for it, each with its reason.

- Functions of PEFT and transformers are wrapped, see `PATCHES`. Each wrapper acts on our models only and calls the
  original for all others. `tests/test_patches.py` shows for each that the original still does what its reason says:
  where that test fails, a release has made the patch unnecessary.
- `add_entries` writes to tables of theirs that have no function for it.
- `PeftType` gets a member for each of our methods, as PEFT refuses others. That alone is elsewhere, in
  `extend_peft_type` of `hf_any3d.tuners.tuners_utils`, since methods register while they are imported.

The test holds all other modules to it.
"""

import functools
import importlib.util
import json
import os
import sys
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from inspect import getattr_static, signature
from pathlib import Path
from types import ModuleType
from typing import Any, cast

import torch
import transformers
from huggingface_hub import model_info
from peft import PeftConfig, PeftModel, PeftType, auto as peft_auto
from peft.utils import TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING
from transformers import PreTrainedModel
from transformers.utils import CONFIG_NAME, FEATURE_EXTRACTOR_NAME as PREPROCESSOR
from transformers.utils.hub import cached_file
from transformers.utils.peft_utils import ADAPTER_CONFIG_NAME

from hf_any3d.modeling.card_info import CardMixin
from hf_any3d.modeling.config_checks import check_settings_files, check_stored_fields, stored_settings
from hf_any3d.modeling.hub_names import check_repository_name, hub_choice
from hf_any3d.modeling.minigpt3d import MiniGPT3DPreTrainedModel
from hf_any3d.modeling.pretrained_parts import AdapterLoadingMixin
from hf_any3d.modeling.pretrained_parts.loading import EarlierNamesMixin, built_on_meta, refuse_non_finite
from hf_any3d.modeling.pretrained_parts.mixin import refuse_merged_adapters
from hf_any3d.modeling.pretrained_parts.stored_adapters import (
    check_adapter_config,
    check_base,
    refuse_foreign_adapters,
    refuse_odd_weights,
    refuse_offloaded_base,
    use_todays_names,
)
from hf_any3d.modeling.published import is_published
from hf_any3d.processing import PointCloudProcessor
from hf_any3d.tuners.targets import left_out_modules

_PACKAGE = __name__.partition(".")[0]
_HUB_KEYS = ("cache_dir", "revision", "token", "subfolder")
_MODELS: dict[str, tuple[type[PreTrainedModel], ...]] = {}
"""`model_type` -> our model classes of that type, the one without a head first; set by `apply_patches`."""


@dataclass(frozen=True)
class Patch:
    """A function that is wrapped.

    Attributes:
        target: Where it is looked up, as `module:attribute`.
        reason: What the original does that does not fit our models.
        wrap: Makes the wrapper from the original.
    """

    target: str
    reason: str
    wrap: Callable[[Callable], Callable]

    @property
    def module(self) -> str:
        """Name of the module that holds the target."""
        return self.target.partition(":")[0]

    def owner_and_name(self) -> tuple[Any, str]:
        """The module or class that holds the function, and the function's name there."""
        *path, name = self.target.partition(":")[2].split(".")
        return functools.reduce(getattr, path, sys.modules[self.module]), name

    def apply(self) -> None:
        """Replace the function by its wrapper, once."""
        owner, name = self.owner_and_name()
        getattr(owner, name)  # transformers looks up what is in it only when it is asked for
        found = getattr_static(owner, name)
        original = found.__func__ if isinstance(found, classmethod) else found
        if getattr(original, "_patched_by_hf_any3d", False):
            return
        wrapper: Any = functools.wraps(original)(self.wrap(original))
        wrapper._patched_by_hf_any3d = True
        setattr(owner, name, classmethod(wrapper) if isinstance(found, classmethod) else wrapper)


PATCHES: list[Patch] = []


def add_entries(auto_classes: Iterable[type], lora_targets: Mapping[str, list[str]]) -> None:
    """Add to tables of the libraries what they look up there.

    Args:
        auto_classes: Auto classes of our tasks, which pipelines and saved repositories look up by name in
            transformers.
        lora_targets: `model_type` of our language models -> the modules that LoRA adapts by default.
    """
    # There can be two module objects of transformers: importing peft replaces the one that was there before.
    for module in (transformers, sys.modules["transformers"], transformers.models.auto):
        for auto_class in auto_classes:
            setattr(module, auto_class.__name__, auto_class)
    TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING.update(lora_targets)


def apply_patches(models: Mapping[str, tuple[type[PreTrainedModel], ...]]) -> None:
    """Apply all patches, those of modules that are not imported yet as soon as they are.

    Args:
        models: `model_type` -> our model classes of that type, the one without a head first.
    """
    _MODELS.update(models)
    for patch in PATCHES:
        when_imported(patch.module, patch.apply)


def _patch(target: str, reason: str) -> Callable[[Callable], Callable]:
    def enter(wrap: Callable) -> Callable:
        PATCHES.append(Patch(target, reason, wrap))
        return wrap

    return enter


@_patch(
    "peft.peft_model:PeftModel.save_pretrained",
    "writes the adapter without the config of the model around it, so the directory does not open as a model, and "
    "asks the hub for the vocabulary of models that read no words",
)
def _save_config_with_adapter(original: Callable) -> Callable:
    def save_pretrained(self: PeftModel, save_directory: str, *args: Any, **kwargs: Any) -> None:
        model = cast(PreTrainedModel, self.get_base_model())
        for config in self.peft_config.values():
            if config.base_model_name_or_path is None and getattr(model.config, "encoder_name_or_path", None):
                # A model that was not loaded from a repository is its encoder and what is saved here.
                config.base_model_name_or_path = model.config.encoder_name_or_path
                config.revision = config.revision or model.config.encoder_revision
        if isinstance(model, AdapterLoadingMixin):
            refuse_merged_adapters(model)  # before anything is written
            # PEFT would ask the hub whether the base model has another vocabulary, and warn without a network: these
            # models read no words, and an adapter with embeddings would not open.
            asked = signature(original).bind_partial(self, save_directory, *args, **kwargs).arguments
            if "save_embedding_layers" not in asked:
                kwargs["save_embedding_layers"] = False
        original(self, save_directory, *args, **kwargs)
        if not isinstance(model, AdapterLoadingMixin) or not kwargs.get("is_main_process", True):
            return
        model.config.architectures = [type(model).__name__]
        for name in kwargs.get("selected_adapters") or self.peft_config:
            if missing := left_out_modules(self, name):
                warnings.warn(
                    f"this adapter leaves out {', '.join(missing)}; it opens only with the base model as it is now, "
                    "so share that too, or train with modules_to_save=trainable_module_names(model)",
                    UserWarning,
                    stacklevel=2,
                )
            else:
                directory = save_directory if name == "default" else f"{save_directory}/{name}"
                model.save_with_adapter(directory)
        if isinstance(model, CardMixin):
            # Again: saving may have found that a pretrained part has changed, and stored it.
            _write_adapter_cards(self, save_directory, kwargs.get("selected_adapters"))

    return save_pretrained


def _write_adapter_cards(wrapper: PeftModel, directory: str | os.PathLike, selected: Sequence[str] | None) -> None:
    """Write the card of each saved adapter where it is; without a default adapter, that of the active one on top."""
    model, active = cast(CardMixin, wrapper.get_base_model()), wrapper.active_adapter
    saved = list(selected or wrapper.peft_config)
    if "default" not in saved:
        model.write_card(directory, wrapper=wrapper)
    try:
        for name in saved:
            wrapper.active_adapter = name  # the one that is described; nothing is switched
            model.write_card(directory if name == "default" else Path(directory, name), wrapper=wrapper)
    finally:
        wrapper.active_adapter = active


@_patch(
    "peft.peft_model:PeftModel.create_or_update_model_card",
    "writes PEFT's template instead of a card that describes the model",
)
def _write_card_of_adapter(original: Callable) -> Callable:
    def create_or_update_model_card(self: PeftModel, output_dir: str) -> None:
        model = self.get_base_model()
        if isinstance(model, CardMixin):
            model.write_card(output_dir, wrapper=self)
        else:
            original(self, output_dir)

    return create_or_update_model_card


@_patch("peft.peft_model:PeftModel._upload_modified_files", "a push puts transformers' template over the card")
def _write_card_of_pushed_adapter(original: Callable) -> Callable:
    def _upload_modified_files(self: PeftModel, working_dir: str, repo_id: str, *args: Any, **kwargs: Any) -> Any:
        model = self.get_base_model()
        if isinstance(model, CardMixin):
            model.write_card(working_dir, repo_id, wrapper=self)
            for name in self.peft_config:  # their examples open directories, not subfolders of a repository
                Path(working_dir, name, "README.md").unlink(missing_ok=True)
        return original(self, working_dir, repo_id, *args, **kwargs)

    return _upload_modified_files


@_patch("transformers.trainer:Trainer.create_model_card", "writes a card of the run without the model's own")
def _write_card_of_run(original: Callable) -> Callable:
    def create_model_card(self: Any, *args: Any, **kwargs: Any) -> None:
        model = self.accelerator.unwrap_model(self.model, keep_torch_compile=False)
        if not isinstance(model.get_base_model() if isinstance(model, PeftModel) else model, CardMixin):
            original(self, *args, **kwargs)
            return
        from hf_any3d.model_card.saving import write_trainer_card

        given = signature(original).bind(self, *args, **kwargs).arguments
        write_trainer_card(**{"trainer" if name == "self" else name: value for name, value in given.items()})

    return create_model_card


@_patch(
    "peft.peft_model:PeftModel.load_adapter",
    "does not compare the base model with the one that the adapter was trained on, knows no earlier names of tensors, "
    "takes NaN for weights, and loses an adapter's weights on an offloaded base",
)
def _check_base_of_adapter(original: Callable) -> Callable:
    def load_adapter(self: PeftModel, model_id: str | os.PathLike, *args: Any, **kwargs: Any) -> Any:
        model = cast(PreTrainedModel, self.get_base_model())
        if type(model).__module__.startswith("hf_any3d."):
            refuse_offloaded_base(model, os.fspath(model_id))
        if isinstance(model, AdapterLoadingMixin):
            refuse_odd_weights(os.fspath(model_id), {key: kwargs[key] for key in _HUB_KEYS if key in kwargs})
            if recorded := _our_config(model_id, kwargs):
                check_base(model, recorded, os.fspath(model_id))
        if isinstance(model, EarlierNamesMixin):
            kwargs["key_mapping"] = model.renamings() | (kwargs.get("key_mapping") or {})
        loaded = original(self, model_id, *args, **kwargs)
        if isinstance(model, AdapterLoadingMixin):
            refuse_non_finite(model, os.fspath(model_id))
        return loaded

    return load_adapter


@_patch(
    "peft.tuners.tuners_utils:BaseTuner.inject_adapter",
    "looks for the modules that an adapter names under their names of today alone",
)
def _find_modules_by_earlier_names(original: Callable) -> Callable:
    def inject_adapter(self: Any, model: Any, adapter_name: str, *args: Any, **kwargs: Any) -> Any:
        if isinstance(model, EarlierNamesMixin):
            use_todays_names(self.peft_config[adapter_name], model)
        return original(self, model, adapter_name, *args, **kwargs)

    return inject_adapter


@_patch(
    "transformers.models.auto.auto_factory:find_adapter_config_file",
    "turns from the repository of an adapter to that of its base model; ours hold the config of the model themselves",
)
@_patch("transformers.pipelines:find_adapter_config_file", "the same, for pipelines")
def _open_adapter_repository_by_its_config(original: Callable) -> Callable:
    def find_adapter_config_file(model_id: str, **kwargs: Any) -> str | None:
        found = original(model_id, **kwargs)
        ours = _our_config(model_id, kwargs) if found is not None or os.path.isdir(model_id) else None
        return None if ours else found

    return find_adapter_config_file


# Twice, since the package keeps the function once somebody has asked for it there; decorators apply from below.
@_patch("transformers:pipeline", "the same, under its other name")
@_patch(
    "transformers.pipelines:pipeline",
    "looks a path that does not exist up on the hub, with retries for a minute; reads damaged settings",
)
def _refuse_missing_paths(original: Callable) -> Callable:
    def pipeline(task: str | None = None, model: Any = None, *args: Any, **kwargs: Any) -> Any:
        # Without a task, the hub would be asked for it.
        if isinstance(model, (str, os.PathLike)) and (task is None or "point-cloud" in str(task)):
            check_repository_name(model, **hub_choice(kwargs.get("model_kwargs") or {}), **hub_choice(kwargs))
            check_settings_files(os.fspath(model))
            if Path(model, PREPROCESSOR).is_file():
                PointCloudProcessor.from_pretrained(model)  # auto classes do not say which file they read
        return original(task, model, *args, **kwargs)

    return pipeline


@_patch(
    "transformers.utils.hub:cached_files",
    "finds no config.json and no weights that it knows in repositories that hold the file of the authors alone",
)
def _open_published_checkpoints(original: Callable) -> Callable:
    def cached_files(path_or_repo_id: str | os.PathLike, filenames: list[str], *args: Any, **kwargs: Any) -> Any:
        # All of transformers opens files here, so that models, configs, processors and pipelines are open alike.
        if is_published(path_or_repo_id) and kwargs.get("repo_type") in (None, "model"):
            from hf_any3d.opening import opened_directory

            hub = {name: kwargs.get(name) for name in ("token", "local_files_only")}
            path_or_repo_id = opened_directory(os.fspath(path_or_repo_id), kwargs.get("revision"), **hub)
        return original(path_or_repo_id, filenames, *args, **kwargs)

    return cached_files


@_patch(
    "transformers.pipelines:get_task",
    "refuses a repository whose library is PEFT, although pipelines open those of our adapters",
)
def _find_task_of_adapter(original: Callable) -> Callable:
    def get_task(model: str, token: str | None = None, **deprecated_kwargs: Any) -> str:
        try:
            return original(model, token, **deprecated_kwargs)
        except RuntimeError as error:
            if "is meant to be used with peft" not in str(error):
                raise
            info = model_info(model, token=token)
            if _PACKAGE not in (info.tags or ()):
                raise
            return str(info.pipeline_tag)

    return get_task


@_patch(
    "peft.peft_model:PeftModel.from_pretrained",
    "looks a path that does not exist up on the hub, and says neither which adapter nor which file is damaged",
)
def _refuse_missing_adapters(original: Callable) -> Callable:
    def from_pretrained(cls: Any, model: Any, model_id: str | os.PathLike, *args: Any, **kwargs: Any) -> Any:
        if isinstance(model, AdapterLoadingMixin):
            check_repository_name(model_id, **hub_choice(kwargs))
            hub = {key: kwargs[key] for key in _HUB_KEYS if key in kwargs}
            refuse_foreign_adapters(os.fspath(model_id), hub)
            check_settings_files(Path(model_id, hub.get("subfolder") or ""))
            with stored_settings(model_id):
                check_adapter_config(PeftConfig.from_pretrained(os.fspath(model_id), **hub))
                return original(cls, model, model_id, *args, **kwargs)
        return original(cls, model, model_id, *args, **kwargs)

    return from_pretrained


@_patch(
    "peft.auto:_BaseAutoPeftModel.from_pretrained",
    "opens the base model by a class of a library that it knows, which this is not, and not by the config",
)
def _open_adapter_repository_as_peft_model(original: Callable) -> Callable:
    def from_pretrained(
        cls: Any,
        pretrained_model_name_or_path: str | os.PathLike,
        adapter_name: str = "default",
        is_trainable: bool = False,
        config: PeftConfig | None = None,
        revision: str | None = None,
        import_allowlist: list[str] | None = None,
        **kwargs: Any,
    ) -> PeftModel:
        hub = {name: kwargs[name] for name in ("cache_dir", "subfolder", "token") if name in kwargs}
        hub |= {} if revision is None else {"revision": revision}
        is_ours = _is_our_adapter(pretrained_model_name_or_path, hub)
        if is_ours:
            check_settings_files(Path(pretrained_model_name_or_path, hub.get("subfolder") or ""))
            refuse_foreign_adapters(os.fspath(pretrained_model_name_or_path), hub)
        recorded = _our_config(pretrained_model_name_or_path, hub)
        with stored_settings(pretrained_model_name_or_path) if is_ours else nullcontext():
            task_type = PeftConfig.from_pretrained(os.fspath(pretrained_model_name_or_path), **hub).task_type
        expected = PeftModel if task_type is None else peft_auto.MODEL_TYPE_TO_PEFT_MODEL_MAPPING[task_type]
        adapter: dict[str, Any] = {"adapter_name": adapter_name, "is_trainable": is_trainable}
        adapter |= {"config": config, "revision": revision}
        # For another task type the original names the class to use.
        if recorded is None or cls._target_peft_class is not expected:
            allowed = import_allowlist or [*peft_auto.get_default_import_allowlist(), _PACKAGE]
            with stored_settings(pretrained_model_name_or_path) if is_ours else nullcontext():
                return original(cls, pretrained_model_name_or_path, import_allowlist=allowed, **adapter, **kwargs)
        dtype = kwargs.pop("dtype", None) or kwargs.pop("torch_dtype", None)
        if isinstance(dtype, str):
            dtype = None if dtype == "auto" else getattr(torch, dtype)
        loading = {name: kwargs.pop(name, None) for name in ("attn_implementation", "quantization_config")}
        model_class = _saved_class(recorded)
        own_config: Any = model_class.config_class.from_pretrained(pretrained_model_name_or_path, **hub)
        built_on_meta(model_class, own_config, pretrained_model_name_or_path)
        base = model_class.build_for_adapter(
            os.fspath(pretrained_model_name_or_path),
            own_config,
            hub,
            dtype=dtype,
            device_map=kwargs.get("device_map"),
            **loading,
        )
        model = expected.from_pretrained(base, os.fspath(pretrained_model_name_or_path), **adapter, **kwargs)
        return model.to(dtype) if model_class._has_single_dtype and dtype is not None else model

    return from_pretrained


@_patch(
    "peft.peft_model:PeftModel.add_adapter",
    "fails with prompt methods on models that read no words, with an unrelated error or only at the first call",
)
def _refuse_prompt_methods(original: Callable) -> Callable:
    def add_adapter(self: PeftModel, adapter_name: str, peft_config: PeftConfig, *args: Any, **kwargs: Any) -> None:
        if peft_config.is_prompt_learning:
            model, method = self.base_model, PeftType(peft_config.peft_type)
            if isinstance(model, AdapterLoadingMixin):
                raise ValueError(
                    f"{method.value} learns embeddings of words, and {type(model).__name__} reads none; expected "
                    "another method, such as PromptTokensConfig of hf_any3d, which adds prompts to the point tokens"
                )
            if isinstance(model, MiniGPT3DPreTrainedModel) and method != PeftType.PREFIX_TUNING:
                raise ValueError(
                    f"{method.value} passes embeddings to {type(model).__name__} in place of input_ids, which mark "
                    "the places of clouds; expected PREFIX_TUNING, or a method that adapts weights such as LORA"
                )
        original(self, adapter_name, peft_config, *args, **kwargs)

    return add_adapter


def _saved_class(config: Mapping[str, Any]) -> Any:
    """Return the class that saved a config.json of ours."""
    classes = _MODELS[config["model_type"]]
    by_name = {model.__name__: model for model in classes}
    return next((by_name[name] for name in config.get("architectures") or () if name in by_name), classes[0])


def _our_config(model_id: str | os.PathLike, kwargs: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return the contents of a repository's config.json if it belongs to one of our models."""
    path, config = _settings_in(model_id, CONFIG_NAME, kwargs)
    if str(config.get("model_type")) not in _MODELS:
        return None
    with stored_settings(path):
        check_stored_fields(config)
    return config


def _is_our_adapter(model_id: str | os.PathLike, kwargs: Mapping[str, Any]) -> bool:
    """Return whether an adapter was trained on one of our models, by what it records or by the config beside it."""
    mapping = _settings_in(model_id, ADAPTER_CONFIG_NAME, kwargs)[1].get("auto_mapping")
    library = mapping.get("parent_library") if isinstance(mapping, dict) else None
    return str(library).startswith(f"{_PACKAGE}.") or _our_config(model_id, kwargs) is not None


def _settings_in(
    model_id: str | os.PathLike, name: str, kwargs: Mapping[str, Any]
) -> tuple[str | None, dict[str, Any]]:
    """Return the path of a repository's file of settings and its contents; nothing if it is missing or damaged."""
    path = cached_file(
        model_id,
        name,
        _raise_exceptions_for_gated_repo=False,
        _raise_exceptions_for_missing_entries=False,
        _raise_exceptions_for_connection_errors=False,
        **{key: value for key, value in kwargs.items() if key in _HUB_KEYS},
    )
    try:
        content = {} if path is None else json.loads(Path(path).read_text(encoding="utf-8"))
    except (ValueError, RecursionError):  # that of any model; who opens it says so
        content = {}
    return path, content if isinstance(content, dict) else {}


def when_imported(name: str, call: Callable[[], None]) -> None:
    """Call a function as soon as a module is imported: now if it is, otherwise right after its code has run.

    Args:
        name: Full name of the module.
        call: What to do. The packages that hold the module may still be incomplete at that time.
    """
    if name in sys.modules:
        call()
    elif (name, call) not in [(some.name, some.call) for some in sys.meta_path if isinstance(some, _ImportWatcher)]:
        sys.meta_path.insert(0, _ImportWatcher(name, call))


class _ImportWatcher(MetaPathFinder):
    """Find one module as the other finders do, and add a call to the end of its loading."""

    def __init__(self, name: str, call: Callable[[], None]):
        self.name, self.call, self.is_searching = name, call, False

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname != self.name or self.is_searching:
            return None
        self.is_searching = True
        try:
            spec = importlib.util.find_spec(fullname)
        finally:
            self.is_searching = False
        if spec is None or spec.loader is None:
            return None
        load = spec.loader.exec_module

        def load_and_call(module: ModuleType) -> None:
            load(module)
            if self in sys.meta_path:  # once, even when the module is loaded again
                sys.meta_path.remove(self)
                self.call()

        spec.loader.exec_module = load_and_call
        return spec
