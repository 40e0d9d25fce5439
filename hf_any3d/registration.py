"""The tables of models, processors, pipelines and tasks, and their registration with transformers and datasets.

Importing `hf_any3d` runs `register()`. PEFT methods register themselves in `hf_any3d.tuners`. What needs more than a
registration is in `hf_any3d.patches`.
"""

from __future__ import annotations

import itertools
import os
import sys
from typing import Any

import transformers
from peft.utils import TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING
from transformers import (
    AutoConfig,
    AutoFeatureExtractor,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForPreTraining,
    AutoProcessor,
)
from transformers.pipelines import PIPELINE_REGISTRY

from hf_any3d import __version__, tuners as _tuners  # noqa: F401  registers our PEFT methods
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
from hf_any3d.modeling.card_info import set_card_writer
from hf_any3d.modeling.imagebind_audio import ImageBindAudioConfig, ImageBindAudioModel
from hf_any3d.modeling.minigpt3d import (
    MiniGPT3DConfig,
    MiniGPT3DForConditionalGeneration,
    NormedPhiConfig,
    NormedPhiForCausalLM,
    NormedPhiModel,
)
from hf_any3d.patches import apply_patches, when_imported
from hf_any3d.pipelines import (
    DEFAULT_MODELS,
    PointCloudClassificationPipeline,
    PointCloudFeatureExtractionPipeline,
    PointCloudReconstructionPipeline,
    PointCloudSegmentationPipeline,
    PointCloudTextToTextPipeline,
    ZeroShotPointCloudClassificationPipeline,
)
from hf_any3d.processing import PointCloudProcessor

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
# Language models that transformers lacks: config, body, body with a language modeling head.
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
    """Register configs, models, processors, auto classes and pipelines; calling it again changes nothing."""
    TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING[NormedPhiConfig.model_type] = ["query_key_value", "dense"]
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
            # A default is a name and a revision, which says here with which version of the package the model came.
            default = {"model": (str(DEFAULT_MODELS[task]), __version__)} if task in DEFAULT_MODELS else None
            PIPELINE_REGISTRY.register_pipeline(
                task, pipeline_class=pipeline, pt_model=auto, default=default, type="multimodal"
            )
    set_card_writer(write_card)
    apply_patches(
        {ours.model_type: (base, *itertools.chain(*heads.values())) for ours, (base, heads) in MODELS.items()}
    )
    when_imported("datasets.features.features", _register_point_cloud)  # importing datasets takes seconds


def write_card(model: Any, directory: str | os.PathLike, repository: str | None = None) -> None:
    """Write the model card of a model or PeftModel into a directory; see `hf_any3d.model_card`."""
    from hf_any3d.model_card import write_model_card  # needs packages that loading a model does not

    write_model_card(model, directory, repository)


def _register_point_cloud() -> None:
    from hf_any3d.data.feature import register_point_cloud

    register_point_cloud()
