"""Make the models, processors and pipelines of `hf_any3d.registry` known to transformers and datasets.

Importing `hf_any3d` runs `register()`. PEFT methods register themselves in `hf_any3d.tuners`, as soon as anything
imports PEFT. What needs more than a registration is in `hf_any3d.integration.patches`.
"""

import functools
import importlib
import itertools
import os
from collections.abc import Mapping
from typing import Any

import transformers
from transformers import AutoConfig, AutoFeatureExtractor, AutoModel, AutoModelForCausalLM, AutoProcessor
from transformers.pipelines import PIPELINE_REGISTRY

from hf_any3d import pipelines
from hf_any3d.data.epochs import when_made
from hf_any3d.data.files.point_cloud import when_built
from hf_any3d.extensions import EXTENSIONS
from hf_any3d.hub.names import check_name
from hf_any3d.hub.published_table import published_for_task
from hf_any3d.hub.weights import find_weights
from hf_any3d.integration import auto
from hf_any3d.integration.patches import apply_patches
from hf_any3d.modeling.config_checks import stored_settings
from hf_any3d.modeling.hooks import Hooks, set_hooks
from hf_any3d.processing.point_clouds import PointCloudProcessor
from hf_any3d.registry import MODEL_TYPES, RECORDS, TASKS, check_model_type, pipeline_task
from hf_any3d.utils.atomic_files import usual_mode
from hf_any3d.utils.import_watcher import when_imported
from hf_any3d.utils.messages import listed
from hf_any3d.version import __version__

# Published models that an error lists.
_MOST_NAMES = 8


def _import(package: str, name: str) -> Any:
    return getattr(importlib.import_module(package), name)


def _auto_class(task: str) -> Any:
    name = TASKS[task].auto_class
    return getattr(auto, name, None) or getattr(transformers, name)


# The classes that `hf_any3d.registry` names. Config: (base model, {auto class: models with a head}).
MODELS: dict[Any, tuple[Any, dict[Any, tuple[Any, ...]]]] = {
    _import(kind.package, kind.config): (
        _import(kind.package, kind.base),
        {
            _auto_class(task): tuple(_import(kind.package, name) for name in names)
            for task, names in kind.heads.items()
        },
    )
    for kind in MODEL_TYPES.values()
}
# Config: processor.
PROCESSORS = {
    _import(kind.package, kind.config): _import(*kind.processor.rsplit(".", 1)) for kind in MODEL_TYPES.values()
}
# Task: (pipeline, auto class).
PIPELINES = {name: (task.pipeline_class(), _auto_class(name)) for name, task in TASKS.items() if task.pipeline}
# Encoders that transformers lacks.
ENCODERS = {
    _import(package, config): _import(package, encoder)
    for package, record in RECORDS.items()
    for config, encoder in record.encoders.items()
}
# Language models that transformers lacks: config, body, body with a language modeling head.
LANGUAGE_MODELS: list[tuple[Any, Any, Any]] = []
# What LoRA adapts in them by default, by their model types.
LORA_TARGETS: dict[str, list[str]] = {}
for _package, _record in RECORDS.items():
    for _kind in _record.language_models:
        _config, _body, _model = (_import(_package, name) for name in (_kind.config, _kind.body, _kind.model))
        LANGUAGE_MODELS.append((_config, _body, _model))
        LORA_TARGETS[_config.model_type] = list(_kind.lora_targets)


class _WithoutModel(dict):
    """Entry of a task without a model that comes with the package; asking for it names the published ones."""

    def __init__(self, task: str, entry: Mapping[str, Any]):
        super().__init__(entry)
        self.task = task

    def __missing__(self, key: str) -> Any:
        if key != "default":
            raise KeyError(key)
        names = published_for_task(self.task)
        which = f", or one of the published ones: {listed(names, _MOST_NAMES)}" if names else "; none is published"
        raise ValueError(f"pipeline({self.task!r}): no model is named; pass model=…, a directory{which}")


def register() -> None:
    """Register configs, models, processors, auto classes and pipelines; calling it again changes nothing."""
    _register_models()
    # Some pipelines have a model that comes with the package.
    for task, (pipeline, auto_class) in PIPELINES.items():
        if task in PIPELINE_REGISTRY.get_supported_tasks():
            continue
        default = None
        if task in pipelines.DEFAULT_MODELS:
            # A default is a name and a revision: here the version of the package that the model came with.
            default = {"model": (str(pipelines.DEFAULT_MODELS[task]), __version__)}
        PIPELINE_REGISTRY.register_pipeline(
            task, pipeline_class=pipeline, pt_model=auto_class, default=default, type="multimodal"
        )
        if default is None:
            entries = PIPELINE_REGISTRY.supported_tasks
            entries[task] = _WithoutModel(task, entries[task])
    heads_of_all = [head for _, heads in MODELS.values() for models in heads.values() for head in models]
    next_token_models = [head for head in heads_of_all if head.can_generate()]
    next_token_models += [language_model for _, _, language_model in LANGUAGE_MODELS]
    set_hooks(
        Hooks(
            check_name,
            find_weights,
            write_card,
            complete_adapter,
            task_of_config,
            enter_patches_of_models,
            usual_mode,
        )
    )
    when_built(enter_patches_of_clouds)
    when_made(enter_patches_of_rows)
    apply_patches(
        {ours.model_type: (base, *itertools.chain(*heads.values())) for ours, (base, heads) in MODELS.items()},
        next_token_models,
    )
    # Importing these takes seconds, and what opens a model alone needs none.
    when_imported("peft", _register_methods)
    when_imported("datasets.features.features", _register_point_cloud)


@functools.cache
def enter_patches_of_models() -> None:
    """Apply the patches that act on models, when the first of ours is built."""
    when_imported("peft", _patch_peft)
    when_imported("transformers.trainer", _patch_trainer)


@functools.cache
def enter_patches_of_clouds() -> None:
    """Apply the patches that act on clouds, when the first one is built."""
    when_imported("datasets.arrow_dataset", _patch_datasets)


@functools.cache
def enter_patches_of_rows() -> None:
    """Apply the patches that act on loaders, when the first rows with an epoch are made."""
    when_imported("accelerate.data_loader", _patch_loaders)


def _register_models() -> None:
    """Register what the records of models name with the auto classes of configs, models and processors."""
    for config, encoder in ENCODERS.items():
        AutoConfig.register(config.model_type, config, exist_ok=True)
        AutoModel.register(config, encoder, exist_ok=True)
    for config, body, language_model in LANGUAGE_MODELS:
        AutoConfig.register(config.model_type, config, exist_ok=True)
        AutoModel.register(config, body, exist_ok=True)
        AutoModelForCausalLM.register(config, language_model, exist_ok=True)
    for config, (base, heads) in MODELS.items():
        AutoConfig.register(config.model_type, config, exist_ok=True)
        AutoModel.register(config, base, exist_ok=True)
        processor = PROCESSORS[config]
        extractor = processor if issubclass(processor, PointCloudProcessor) else PointCloudProcessor
        AutoFeatureExtractor.register(config, extractor, exist_ok=True)
        AutoProcessor.register(config, processor, exist_ok=True)
        for auto_class, models in heads.items():
            # Of several classes for one config, transformers takes the one that the config's `architectures` names.
            only = next(iter(models)) if len(models) == 1 else None
            auto_class.register(config, only or models, exist_ok=True)


def write_card(model: Any, directory: str | os.PathLike, repository: str | None = None) -> None:
    """Write the model card of a model or PeftModel into a directory; see `hf_any3d.model_card`."""
    from hf_any3d.model_card import write_model_card  # needs packages that loading a model does not

    write_model_card(model, directory, repository)


def complete_adapter(model: Any, config: Any) -> Any:
    """Return the config of a new adapter with default modules; see `hf_any3d.tuners.targets`."""
    from hf_any3d.tuners.targets import with_default_modules  # imports PEFT

    return with_default_modules(model, config)


def task_of_config(config: Any) -> str:
    """Return the task of the pipeline for a config."""
    return pipeline_task(config.architectures)


def _register_methods() -> None:
    from hf_any3d.integration.auto_peft_patches import apply_auto_peft_patches

    # Each method registers with PEFT when its module is imported.
    importlib.import_module("hf_any3d.tuners")
    for extension in EXTENSIONS.values():
        for module in extension.tuners:
            importlib.import_module(module)
    apply_auto_peft_patches(LORA_TARGETS)


def _patch_peft() -> None:
    from hf_any3d.integration.peft_patches import apply_peft_patches

    apply_peft_patches()


def _patch_trainer() -> None:
    from hf_any3d.integration.trainer_patches import apply_trainer_patches

    apply_trainer_patches()


def _patch_loaders() -> None:
    from hf_any3d.integration.loader_patches import apply_loader_patches

    apply_loader_patches()


def _register_point_cloud() -> None:
    from hf_any3d.data.feature import register_point_cloud

    register_point_cloud()


def _patch_datasets() -> None:
    from hf_any3d.integration.datasets_patches import apply_datasets_patches

    apply_datasets_patches()


def task_of(model: str, revision: str | None = None) -> str:
    """Return the task of the pipeline for a model; feature extraction for models without a head."""
    register()
    check_name(model, {"revision": revision})
    with stored_settings(model):
        config = AutoConfig.from_pretrained(model, revision=revision)
    check_model_type(model, config.model_type)
    return pipeline_task(config.architectures)
