"""The tables of models, processors, pipelines and tasks, and their registration with transformers and datasets.

Importing `hf_any3d` runs `register()`. PEFT methods register themselves in `hf_any3d.tuners`. What needs more than a
registration is in `hf_any3d.patches`.
"""

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

from hf_any3d import auto, pipelines, tuners as _tuners  # noqa: F401  importing tuners registers our PEFT methods
from hf_any3d.chat.processing import MiniGPT3DProcessor
from hf_any3d.modeling import (
    act,
    any2point,
    minigpt3d,
    openshape,
    patchalign3d,
    point_transformer_v3,
    pointnet,
    uni3d,
)
from hf_any3d.modeling.card_info import set_card_writer
from hf_any3d.modeling.imagebind_audio import ImageBindAudioConfig, ImageBindAudioModel
from hf_any3d.patches import apply_patches, when_imported
from hf_any3d.processing import PointCloudProcessor
from hf_any3d.version import __version__
from hf_any3d.voxel_processing import PointTransformerV3Processor

# config: (base model, {auto class: models with a head}). Of several models the saved architecture decides.
MODELS = {
    act.ActConfig: (
        act.ActModel,
        {
            auto.AutoModelForPointCloudClassification: (act.ActForPointCloudClassification,),
            auto.AutoModelForPointCloudSegmentation: (act.ActForSemanticSegmentation, act.ActForPartSegmentation),
            AutoModelForPreTraining: (act.ActForPreTraining,),
        },
    ),
    any2point.Any2PointConfig: (
        any2point.Any2PointModel,
        {
            auto.AutoModelForPointCloudClassification: (any2point.Any2PointForPointCloudClassification,),
            auto.AutoModelForPointCloudSegmentation: (
                any2point.Any2PointForSemanticSegmentation,
                any2point.Any2PointForPartSegmentation,
            ),
            auto.AutoModelForZeroShotPointCloudClassification: (
                any2point.Any2PointForZeroShotPointCloudClassification,
            ),
        },
    ),
    any2point.PointTokenizerConfig: (
        any2point.PointTokenizerModel,
        {auto.AutoModelForPointCloudClassification: (any2point.PointTokenizerForPointCloudClassification,)},
    ),
    minigpt3d.MiniGPT3DConfig: (
        minigpt3d.MiniGPT3DForConditionalGeneration,
        {auto.AutoModelForPointCloudTextToText: (minigpt3d.MiniGPT3DForConditionalGeneration,)},
    ),
    act.ActAutoencoderConfig: (act.ActAutoencoder, {auto.AutoModelForPointCloudReconstruction: (act.ActAutoencoder,)}),
    pointnet.PointNetConfig: (
        pointnet.PointNetModel,
        {auto.AutoModelForPointCloudClassification: (pointnet.PointNetForPointCloudClassification,)},
    ),
    pointnet.PointNet2Config: (
        pointnet.PointNet2Model,
        {auto.AutoModelForPointCloudClassification: (pointnet.PointNet2ForPointCloudClassification,)},
    ),
    openshape.OpenShapeConfig: (
        openshape.OpenShapeModel,
        {
            auto.AutoModelForPointCloudClassification: (openshape.OpenShapeForPointCloudClassification,),
            auto.AutoModelForPointCloudSegmentation: (openshape.OpenShapeForPointCloudSegmentation,),
            auto.AutoModelForZeroShotPointCloudClassification: (
                openshape.OpenShapeForZeroShotPointCloudClassification,
            ),
        },
    ),
    patchalign3d.PatchAlign3DConfig: (
        patchalign3d.PatchAlign3DModel,
        {
            auto.AutoModelForPointCloudClassification: (patchalign3d.PatchAlign3DForPointCloudClassification,),
            auto.AutoModelForPointCloudSegmentation: (patchalign3d.PatchAlign3DForPointCloudSegmentation,),
            auto.AutoModelForZeroShotPointCloudSegmentation: (
                patchalign3d.PatchAlign3DForZeroShotPointCloudSegmentation,
            ),
            AutoModelForPreTraining: (patchalign3d.PatchAlign3DForPreTraining,),
        },
    ),
    point_transformer_v3.PointTransformerV3Config: (
        point_transformer_v3.PointTransformerV3Model,
        {
            auto.AutoModelForPointCloudClassification: (
                point_transformer_v3.PointTransformerV3ForPointCloudClassification,
            ),
            auto.AutoModelForPointCloudSegmentation: (
                point_transformer_v3.PointTransformerV3ForPointCloudSegmentation,
            ),
        },
    ),
    uni3d.Uni3DConfig: (
        uni3d.Uni3DModel,
        {
            auto.AutoModelForPointCloudClassification: (uni3d.Uni3DForPointCloudClassification,),
            auto.AutoModelForPointCloudSegmentation: (uni3d.Uni3DForPointCloudSegmentation,),
            auto.AutoModelForZeroShotPointCloudClassification: (uni3d.Uni3DForZeroShotPointCloudClassification,),
        },
    ),
}
# Encoders that transformers lacks.
ENCODERS = {ImageBindAudioConfig: ImageBindAudioModel}
# Language models that transformers lacks: config, body, body with a language modeling head.
LANGUAGE_MODELS = ((minigpt3d.NormedPhiConfig, minigpt3d.NormedPhiModel, minigpt3d.NormedPhiForCausalLM),)
# Processors of models that take more than points; all others have a PointCloudProcessor.
PROCESSORS = {
    minigpt3d.MiniGPT3DConfig: MiniGPT3DProcessor,
    point_transformer_v3.PointTransformerV3Config: PointTransformerV3Processor,
}
PIPELINES = {
    "point-cloud-classification": (
        pipelines.PointCloudClassificationPipeline,
        auto.AutoModelForPointCloudClassification,
    ),
    "point-cloud-feature-extraction": (pipelines.PointCloudFeatureExtractionPipeline, AutoModel),
    "point-cloud-reconstruction": (
        pipelines.PointCloudReconstructionPipeline,
        auto.AutoModelForPointCloudReconstruction,
    ),
    "point-cloud-segmentation": (pipelines.PointCloudSegmentationPipeline, auto.AutoModelForPointCloudSegmentation),
    "point-cloud-text-to-text": (pipelines.PointCloudTextToTextPipeline, auto.AutoModelForPointCloudTextToText),
    "zero-shot-point-cloud-classification": (
        pipelines.ZeroShotPointCloudClassificationPipeline,
        auto.AutoModelForZeroShotPointCloudClassification,
    ),
    "zero-shot-point-cloud-segmentation": (
        pipelines.ZeroShotPointCloudSegmentationPipeline,
        auto.AutoModelForZeroShotPointCloudSegmentation,
    ),
}


def register() -> None:
    """Register configs, models, processors, auto classes and pipelines; calling it again changes nothing."""
    normed_phi = minigpt3d.NormedPhiConfig.model_type
    TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING[normed_phi] = ["query_key_value", "dense"]
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
        processor = PROCESSORS.get(config, PointCloudProcessor)
        extractor = processor if issubclass(processor, PointCloudProcessor) else PointCloudProcessor
        AutoFeatureExtractor.register(config, extractor, exist_ok=True)
        AutoProcessor.register(config, processor, exist_ok=True)
        for auto_class, models in heads.items():
            auto_class.register(config, models if len(models) > 1 else models[0], exist_ok=True)
    for task, (pipeline, auto_class) in PIPELINES.items():
        # Pipelines and saved repositories look auto classes up by name in transformers, of which there can be two
        # module objects: importing peft replaces the one that was there before.
        for module in (transformers, sys.modules["transformers"], transformers.models.auto):
            setattr(module, auto_class.__name__, auto_class)
        if task not in PIPELINE_REGISTRY.get_supported_tasks():
            defaults = pipelines.DEFAULT_MODELS
            # A default is a name and a revision: here the version of the package that the model came with.
            default = {"model": (str(defaults[task]), __version__)} if task in defaults else None
            PIPELINE_REGISTRY.register_pipeline(
                task, pipeline_class=pipeline, pt_model=auto_class, default=default, type="multimodal"
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


def task_of(model: str, revision: str | None = None) -> str:
    """Return the task of the pipeline for a model.

    Args:
        model: Directory or hub name.
        revision: Branch, tag or commit on the hub.

    Returns:
        A task of `PIPELINES`; feature extraction for models without a head.

    Raises:
        ValueError: It is not a model of this package.
    """
    register()
    config = AutoConfig.from_pretrained(model, revision=revision)
    if type(config) not in MODELS:
        known = ", ".join(sorted(kind.model_type for kind in MODELS))
        raise ValueError(f"{model}: model_type {config.model_type!r} is not of this package; expected {known}")
    saved = (config.architectures or [""])[0]
    for auto_class, models in MODELS[type(config)][1].items():
        if saved in {kind.__name__ for kind in models}:
            own = (task for task, (_, opened_by) in PIPELINES.items() if opened_by is auto_class)
            return next(own, "point-cloud-feature-extraction")
    return "point-cloud-feature-extraction"
