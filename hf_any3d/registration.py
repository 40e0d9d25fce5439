"""The one place that tells transformers, PEFT and datasets what we have, so that their own entry points find it.

Importing `hf_any3d` runs `register()`. Some functions of those libraries have no public way to learn what we need;
they are wrapped here, act on our models only, and are held by tests.
"""

from __future__ import annotations

import functools
import importlib.util
import json
import os
import sys
import warnings
from collections.abc import Callable, Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from inspect import signature
from types import ModuleType
from typing import Any

import torch
import transformers
from peft import PeftConfig, PeftModel, PeftType
from peft import auto as peft_auto
from transformers import (
    AutoConfig,
    AutoFeatureExtractor,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForPreTraining,
    AutoProcessor,
)
from transformers.models.auto import auto_factory
from transformers.pipelines import PIPELINE_REGISTRY
from transformers.utils import cached_file

from hf_any3d import tuners as _tuners  # noqa: F401  enters the guided adapter among PEFT's methods
from hf_any3d.auto import (
    AutoModelForPointCloudClassification,
    AutoModelForPointCloudReconstruction,
    AutoModelForPointCloudSegmentation,
    AutoModelForPointCloudTextToText,
    AutoModelForZeroShotPointCloudClassification,
)
from hf_any3d.chat.processing import MiniGPT3DProcessor
from hf_any3d.modeling.act import (
    ActAutoencoder,
    ActAutoencoderConfig,
    ActConfig,
    ActForPartSegmentation,
    ActForPointCloudClassification,
    ActForPreTraining,
    ActForSemanticSegmentation,
    ActModel,
)
from hf_any3d.modeling.any2point import (
    Any2PointConfig,
    Any2PointForPartSegmentation,
    Any2PointForPointCloudClassification,
    Any2PointForSemanticSegmentation,
    Any2PointForZeroShotPointCloudClassification,
    Any2PointModel,
)
from hf_any3d.modeling.card_info import CardMixin
from hf_any3d.modeling.imagebind_audio import ImageBindAudioConfig, ImageBindAudioModel
from hf_any3d.modeling.minigpt3d import (
    MiniGPT3DConfig,
    MiniGPT3DForConditionalGeneration,
    NormedPhiConfig,
    NormedPhiForCausalLM,
    NormedPhiModel,
)
from hf_any3d.modeling.pretrained_parts import AdapterLoadingMixin
from hf_any3d.pipelines import (
    PointCloudClassificationPipeline,
    PointCloudFeatureExtractionPipeline,
    PointCloudReconstructionPipeline,
    PointCloudSegmentationPipeline,
    PointCloudTextToTextPipeline,
    ZeroShotPointCloudClassificationPipeline,
)
from hf_any3d.processing import PointCloudProcessor
from hf_any3d.tuners.saved_adapters import check_base, left_out_modules, load_adapter_into


def when_imported(name: str, then: Callable[[], None]) -> None:
    """Call `then` as soon as a module is imported: now if it is, else right after its code has run.

    Args:
        name: the full name of the module.
        then: what to do; at that time the packages that hold the module may not be complete.
    """
    if name in sys.modules:
        then()
    else:
        sys.meta_path.insert(0, _Watcher(name, then))


class _Watcher(MetaPathFinder):
    """Finds one module as the other finders do, and adds a call to the end of its loading."""

    def __init__(self, name: str, then: Callable[[], None]):
        self.name, self.then, self.is_looking = name, then, False

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname != self.name or self.is_looking:
            return None
        self.is_looking = True
        try:
            spec = importlib.util.find_spec(fullname)
        finally:
            self.is_looking = False
        if spec is None or spec.loader is None:
            return None
        load = spec.loader.exec_module

        def load_and_call(module: ModuleType) -> None:
            load(module)
            if self in sys.meta_path:  # once, even when the module is loaded again
                sys.meta_path.remove(self)
                self.then()

        spec.loader.exec_module = load_and_call
        return spec


# config: (base model, {auto class: models with a head}). Of several models the saved architecture decides.
MODELS = {
    ActConfig: (
        ActModel,
        {
            AutoModelForPointCloudClassification: (ActForPointCloudClassification,),
            AutoModelForPointCloudSegmentation: (ActForSemanticSegmentation, ActForPartSegmentation),
            AutoModelForPreTraining: (ActForPreTraining,),
        },
    ),
    Any2PointConfig: (
        Any2PointModel,
        {
            AutoModelForPointCloudClassification: (Any2PointForPointCloudClassification,),
            AutoModelForPointCloudSegmentation: (Any2PointForSemanticSegmentation, Any2PointForPartSegmentation),
            AutoModelForZeroShotPointCloudClassification: (Any2PointForZeroShotPointCloudClassification,),
        },
    ),
    MiniGPT3DConfig: (
        MiniGPT3DForConditionalGeneration,
        {AutoModelForPointCloudTextToText: (MiniGPT3DForConditionalGeneration,)},
    ),
    ActAutoencoderConfig: (ActAutoencoder, {AutoModelForPointCloudReconstruction: (ActAutoencoder,)}),
}
# Encoders that transformers lacks.
ENCODERS = {ImageBindAudioConfig: ImageBindAudioModel}
# Language models that transformers lacks: config, body, body that tells the next token.
LANGUAGE_MODELS = ((NormedPhiConfig, NormedPhiModel, NormedPhiForCausalLM),)
# Processors of models that take more than points; all models have a PointCloudProcessor.
PROCESSORS = {MiniGPT3DConfig: MiniGPT3DProcessor}
PIPELINES = {
    "point-cloud-classification": (PointCloudClassificationPipeline, AutoModelForPointCloudClassification),
    "point-cloud-feature-extraction": (PointCloudFeatureExtractionPipeline, AutoModel),
    "point-cloud-reconstruction": (PointCloudReconstructionPipeline, AutoModelForPointCloudReconstruction),
    "point-cloud-segmentation": (PointCloudSegmentationPipeline, AutoModelForPointCloudSegmentation),
    "point-cloud-text-to-text": (PointCloudTextToTextPipeline, AutoModelForPointCloudTextToText),
    "zero-shot-point-cloud-classification": (
        ZeroShotPointCloudClassificationPipeline,
        AutoModelForZeroShotPointCloudClassification,
    ),
}


def register() -> None:
    """Enter configs, models, the processor, auto classes and pipelines; calling it again changes nothing."""
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
        AutoFeatureExtractor.register(config, PointCloudProcessor, exist_ok=True)
        AutoProcessor.register(config, PROCESSORS.get(config, PointCloudProcessor), exist_ok=True)
        for auto, models in heads.items():
            auto.register(config, models if len(models) > 1 else models[0], exist_ok=True)
    for task, (pipeline, auto) in PIPELINES.items():
        # Pipelines and saved repositories look auto classes up by name in transformers, of which there can be two
        # module objects: importing peft replaces the one that was there before.
        for module in (transformers, sys.modules["transformers"], transformers.models.auto):
            setattr(module, auto.__name__, auto)
        if task not in PIPELINE_REGISTRY.get_supported_tasks():
            PIPELINE_REGISTRY.register_pipeline(task, pipeline_class=pipeline, pt_model=auto, type="multimodal")
    AdapterLoadingMixin.load_adapter_into = staticmethod(load_adapter_into)
    _save_our_config_beside_adapters()
    _check_bases_of_our_adapters()
    _open_our_adapter_repositories()
    CardMixin.write_card = staticmethod(_write_card)
    _write_our_cards_for_peft()
    _write_our_cards_for_trainers()
    _open_our_adapters_as_peft_models()
    _refuse_prompts_of_words()
    _know_our_feature()


@functools.cache  # one watch is enough
def _know_our_feature() -> None:
    """Let `datasets` open columns of type PointCloud, once it is imported; that takes seconds, so not before."""
    when_imported("datasets.features.features", _register_point_cloud)


def _register_point_cloud() -> None:
    from hf_any3d.data.feature import register_point_cloud

    register_point_cloud()


def _save_our_config_beside_adapters() -> None:
    """Let `PeftModel.save_pretrained` also write our config.json.

    A directory of an adapter on one of our models is then complete: what is pretrained (by name, revision and
    checksum), adapter, and all else. PEFT itself writes the adapter only, whatever its method. An adapter without all
    else stays what it is for PEFT, a part of the model that it was trained on.
    """
    original = PeftModel.save_pretrained
    if getattr(original, "_writes_our_config", False):
        return

    @functools.wraps(original)
    def save_pretrained(self: PeftModel, save_directory: str, *args: Any, **kwargs: Any) -> None:
        model = self.get_base_model()
        for config in self.peft_config.values():
            if config.base_model_name_or_path is None and getattr(model.config, "encoder_name_or_path", None):
                # What was never opened as a whole stands on its encoder alone.
                config.base_model_name_or_path = model.config.encoder_name_or_path
                config.revision = config.revision or model.config.encoder_revision
        if isinstance(model, AdapterLoadingMixin):
            model.refuse_merged_adapters()  # before anything is written
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
            # Once more: saving may have found that a pretrained part has changed, and stored it.
            _write_card(self, save_directory)

    save_pretrained._writes_our_config = True
    PeftModel.save_pretrained = save_pretrained


def _write_card(model: Any, directory: str | os.PathLike, name: str | None = None) -> None:
    # Late: cards need packages that opening a model does not.
    from hf_any3d.model_card import write_model_card

    write_model_card(model, directory, name)


def _write_our_cards_for_peft() -> None:
    """Let `PeftModel.save_pretrained` and `push_to_hub` write our card, not PEFT's empty template, for our models.

    PEFT has one method that writes the card of a saved adapter; a push writes another template over it.
    """
    original = PeftModel.create_or_update_model_card
    if getattr(original, "_writes_our_card", False):
        return

    @functools.wraps(original)
    def create_or_update_model_card(self: PeftModel, output_dir: str) -> None:
        if isinstance(self.get_base_model(), CardMixin):
            _write_card(self, output_dir)
        else:
            original(self, output_dir)

    upload = PeftModel._upload_modified_files

    @functools.wraps(upload)
    def _upload_modified_files(self: PeftModel, working_dir: str, repo_id: str, *args: Any, **kwargs: Any) -> Any:
        if isinstance(self.get_base_model(), CardMixin):
            _write_card(self, working_dir, repo_id)
        return upload(self, working_dir, repo_id, *args, **kwargs)

    create_or_update_model_card._writes_our_card = True
    PeftModel.create_or_update_model_card = create_or_update_model_card
    PeftModel._upload_modified_files = _upload_modified_files


@functools.cache  # one watch is enough
def _write_our_cards_for_trainers() -> None:
    """Let `Trainer.create_model_card`, and with it `push_to_hub`, write our card for our models."""
    when_imported("transformers.trainer", _write_our_cards_for_trainer)


def _write_our_cards_for_trainer() -> None:
    from transformers.trainer import Trainer

    original = Trainer.create_model_card

    @functools.wraps(original)
    def create_model_card(self: Trainer, *args: Any, **kwargs: Any) -> None:
        model = self.accelerator.unwrap_model(self.model, keep_torch_compile=False)
        if not isinstance(model.get_base_model() if isinstance(model, PeftModel) else model, CardMixin):
            original(self, *args, **kwargs)
            return
        from hf_any3d.model_card.saving import write_trainer_card

        given = signature(original).bind(self, *args, **kwargs).arguments
        write_trainer_card(**{"trainer" if name == "self" else name: value for name, value in given.items()})

    Trainer.create_model_card = create_model_card


def _check_bases_of_our_adapters() -> None:
    """Let `PeftModel.from_pretrained(base, …)` refuse a base with other weights than the adapter's.

    PEFT never looks at the config beside an adapter.
    """
    original = PeftModel.load_adapter
    if getattr(original, "_checks_our_bases", False):
        return

    @functools.wraps(original)
    def load_adapter(self: PeftModel, model_id: str | os.PathLike, *args: Any, **kwargs: Any) -> Any:
        model = self.get_base_model()
        if isinstance(model, AdapterLoadingMixin) and (recorded := _our_config(model_id, kwargs)):
            check_base(model, recorded, os.fspath(model_id))
        return original(self, model_id, *args, **kwargs)

    load_adapter._checks_our_bases = True
    PeftModel.load_adapter = load_adapter


def _open_our_adapter_repositories() -> None:
    """Let auto classes open a hub repository of an adapter on one of our models by its own config.

    For any repository with an adapter they turn to the repository of the base model. With ours all that is not
    pretrained lies in the adapter's repository, and our `from_pretrained` puts the two together.
    """
    original = auto_factory.find_adapter_config_file
    if getattr(original, "_knows_our_models", False):
        return

    @functools.wraps(original)
    def find_adapter_config_file(model_id: str, **kwargs: Any) -> str | None:
        found = original(model_id, **kwargs)
        return None if found is not None and _our_config(model_id, kwargs) else found

    find_adapter_config_file._knows_our_models = True
    auto_factory.find_adapter_config_file = find_adapter_config_file
    transformers.pipelines.find_adapter_config_file = find_adapter_config_file


def _open_our_adapters_as_peft_models() -> None:
    """Let `AutoPeftModel` open a repository of an adapter on one of our models by its own config.

    It opens the base model by the class that the adapter names, where that class is of a library that it knows, and
    with that class's defaults. With ours all but the pretrained part lies in the adapter's repository.
    """
    original = peft_auto._BaseAutoPeftModel.from_pretrained.__func__
    if getattr(original, "_knows_our_models", False):
        return

    @functools.wraps(original)
    def from_pretrained(
        cls: type,
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
        recorded = _our_config(pretrained_model_name_or_path, hub)
        task_type = PeftConfig.from_pretrained(pretrained_model_name_or_path, **hub).task_type
        expected = PeftModel if task_type is None else peft_auto.MODEL_TYPE_TO_PEFT_MODEL_MAPPING[task_type]
        # With another task type the original says which class opens it.
        if recorded is None or cls._target_peft_class is not expected:
            return original(
                cls,
                pretrained_model_name_or_path,
                adapter_name=adapter_name,
                is_trainable=is_trainable,
                config=config,
                revision=revision,
                import_allowlist=import_allowlist,
                **kwargs,
            )
        dtype = kwargs.pop("dtype", None) or kwargs.pop("torch_dtype", None)
        if isinstance(dtype, str):
            dtype = None if dtype == "auto" else getattr(torch, dtype)
        loading = {name: kwargs.pop(name, None) for name in ("attn_implementation", "quantization_config")}
        model_class = _class_of_saved(recorded)
        base = model_class.build_for_adapter(
            os.fspath(pretrained_model_name_or_path),
            model_class.config_class.from_pretrained(pretrained_model_name_or_path, **hub),
            hub,
            dtype=dtype,
            device_map=kwargs.get("device_map"),
            **loading,
        )
        model = expected.from_pretrained(
            base,
            os.fspath(pretrained_model_name_or_path),
            adapter_name=adapter_name,
            is_trainable=is_trainable,
            config=config,
            revision=revision,
            **kwargs,
        )
        return model.to(dtype) if model_class._has_single_dtype and dtype is not None else model

    from_pretrained._knows_our_models = True
    peft_auto._BaseAutoPeftModel.from_pretrained = classmethod(from_pretrained)


def _refuse_prompts_of_words() -> None:
    """Let PEFT's prompt methods say why they do not fit our models, before they change anything.

    They learn vectors among the embeddings of words. PEFT looks for these by the size of a vocabulary, and where it
    finds none it fails with other words, or with the first call.
    """
    original = PeftModel.add_adapter
    if getattr(original, "_knows_our_models", False):
        return

    @functools.wraps(original)
    def add_adapter(self: PeftModel, adapter_name: str, peft_config: PeftConfig, *args: Any, **kwargs: Any) -> None:
        if peft_config.is_prompt_learning:
            model, method = self.base_model, peft_config.peft_type
            if isinstance(model, AdapterLoadingMixin):
                raise ValueError(
                    f"{method.value} learns embeddings of words, and {type(model).__name__} reads none; expected "
                    "another method, such as PromptTokensConfig of hf_any3d, which puts prompts beside point tokens"
                )
            if isinstance(model, MiniGPT3DForConditionalGeneration) and method != PeftType.PREFIX_TUNING:
                raise ValueError(
                    f"{method.value} hands embeddings to {type(model).__name__} in place of input_ids, which say "
                    "where clouds stand; expected PREFIX_TUNING, or a method of weights such as LORA"
                )
        original(self, adapter_name, peft_config, *args, **kwargs)

    add_adapter._knows_our_models = True
    PeftModel.add_adapter = add_adapter


def _class_of_saved(config: dict[str, Any]) -> type[transformers.PreTrainedModel]:
    """The class that a config.json of ours was saved by."""
    base, heads = next(models for ours, models in MODELS.items() if ours.model_type == config["model_type"])
    classes = {model.__name__: model for model in (base, *(model for models in heads.values() for model in models))}
    return next((classes[name] for name in config.get("architectures") or () if name in classes), base)


def _our_config(model_id: str | os.PathLike, kwargs: dict[str, Any]) -> dict[str, Any] | None:
    """The config.json of a repository, where it is one of ours."""
    path = cached_file(
        model_id,
        "config.json",
        _raise_exceptions_for_gated_repo=False,
        _raise_exceptions_for_missing_entries=False,
        _raise_exceptions_for_connection_errors=False,
        **{key: value for key, value in kwargs.items() if key in ("cache_dir", "revision", "token", "subfolder")},
    )
    if path is None:
        return None
    with open(path, encoding="utf-8") as file:
        config = json.load(file)
    return config if config.get("model_type") in {ours.model_type for ours in MODELS} else None
