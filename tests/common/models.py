"""Tiny models of every registered class, with inputs, labels, and outputs of order one.

`CASES` has one entry for every model class that `hf_any3d.integration.registration` names. The common suites are
driven by it: a new model is covered as soon as it is registered; a registered class without a builder fails at import.

Random weights of a tiny model give logits of 0.002, too small for the tests' tolerances. `settle` therefore measures
the statistics of norms on varied clouds and scales the last layer, so that outputs differ by about one between clouds.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable
from typing import Any

import torch
from transformers import PreTrainedModel

from hf_any3d.integration.registration import MODELS
from hf_any3d.modeling.act import (
    ActAutoencoder,
    ActConfig,
    ActForPartSegmentation,
    ActForPointCloudClassification,
    ActForPreTraining,
    ActForSemanticSegmentation,
    ActModel,
    PointBERTForPartSegmentation,
    PointBERTForPreTraining,
    PointMAEForPreTraining,
)
from hf_any3d.modeling.any2point import (
    Any2PointForPartSegmentation,
    Any2PointForPointCloudClassification,
    Any2PointForSemanticSegmentation,
    Any2PointForZeroShotPointCloudClassification,
    Any2PointModel,
    PointTokenizerForPointCloudClassification,
    PointTokenizerModel,
)
from hf_any3d.modeling.imagebind_audio import ImageBindAudioModel
from hf_any3d.modeling.minigpt3d import (
    MiniGPT3DForConditionalGeneration,
    MiniGPT3DModel,
    NormedPhiConfig,
    NormedPhiForCausalLM,
    NormedPhiModel,
)
from hf_any3d.modeling.openshape import (
    OpenShapeForPointCloudClassification,
    OpenShapeForPointCloudSegmentation,
    OpenShapeForZeroShotPointCloudClassification,
    OpenShapeModel,
)
from hf_any3d.modeling.patchalign3d import (
    PatchAlign3DForPointCloudClassification,
    PatchAlign3DForPointCloudSegmentation,
    PatchAlign3DForPreTraining,
    PatchAlign3DForZeroShotPointCloudSegmentation,
    PatchAlign3DModel,
)
from hf_any3d.modeling.point_encoders.base_model import PointCloudPreTrainedModel
from hf_any3d.modeling.point_features import (
    PointFeaturesForPointCloudClassification as FeaturesHead,
    PointFeaturesModel,
)
from hf_any3d.modeling.pointgpt import (
    PointGPTForPartSegmentation,
    PointGPTForPointCloudClassification,
    PointGPTForPreTraining,
    PointGPTForSemanticSegmentation,
    PointGPTModel,
)
from hf_any3d.modeling.uni3d import (
    Uni3DForPointCloudClassification,
    Uni3DForPointCloudSegmentation,
    Uni3DForZeroShotPointCloudClassification,
    Uni3DModel,
)
from tests import tiny_act, tiny_aligned, tiny_autoencoders, tiny_baselines, tiny_encoders, tiny_text_towers
from tests.common.case import (
    POINTS,
    Case,
    relative_difference as relative_difference,
    settle as settle,
    spread_weights,
    varied_clouds,
)
from tests.common.refusals import registered_classes
from tests.extensions import HAS_SURVEY
from tests.modeling.minigpt3d import tiny_model as tiny_minigpt3d
from tests.tiny_detr3d import CASES as DETECTORS
from tests.tiny_features import tiny_features
from tests.tiny_ptv3 import CASES as VOXEL_MODELS
from tests.tiny_recon import CASES as RECON
from tests.tiny_spatiallm import CASES as LAYOUT_WRITERS

ENCODER = "vit"
"""Encoder family of models that have one; it has a final norm, where dtypes may mix."""
LABELS = 3
PARTS = 5


def _clouds(channels: int = 3, points: int = POINTS) -> Callable[[int, int], dict[str, Any]]:
    return lambda rows, seed: {"points": varied_clouds(rows, points, channels, seed)}


def _class_labels(rows: int) -> dict[str, Any]:
    return {"labels": torch.arange(rows) % LABELS}


def _point_labels(count: int) -> Callable[[int], dict[str, Any]]:
    def labels(rows: int) -> dict[str, Any]:
        numbers = torch.arange(rows * POINTS).view(rows, POINTS) % count
        numbers[:, ::7] = -100
        return {"labels": numbers}

    return labels


def _part_labels(rows: int) -> dict[str, Any]:
    even = (torch.arange(rows) % 2 == 0).unsqueeze(1)
    count = torch.arange(POINTS).expand(rows, -1)
    return {"labels": torch.where(even, count % 2, 2 + count % 3)}


def _with_category(rows: int, seed: int) -> dict[str, Any]:
    return {"points": varied_clouds(rows, seed=seed), "category": torch.arange(rows) % 2}


def _spread(
    tiny: Callable[..., PreTrainedModel], model_class: type[PreTrainedModel]
) -> Callable[..., PreTrainedModel]:
    def build(**settings: Any) -> PreTrainedModel:
        model = tiny(model_class, **settings)
        spread_weights(model)
        return model

    return build


def _classifier_case(
    model_class: type, build: Callable, inputs: Callable, still: dict, last: str = "classifier.out", **more: bool
) -> Case:
    return Case(model_class, build, inputs, _class_labels, "logits", last, still, **more)


_act = functools.partial(_spread, tiny_act.tiny_act)
_baseline = functools.partial(_spread, tiny_baselines.tiny_baseline)
_features = functools.partial(functools.partial, tiny_features)
_ACT_STILL = {"drop_path_rate": 0.0, "head_dropout": 0.0, "segmentation_head_dropout": (0.0, 0.0)}
_PRETRAINING = {"num_groups": 12, "group_size": 8, "hidden_size": 24, "num_attention_heads": 4, "mlp_ratio": 2.0}


def _act_pretraining(**settings: Any) -> ActForPreTraining:
    teacher = tiny_autoencoders.tiny_autoencoder(settings.pop("encoder", ENCODER), num_groups=12)
    torch.manual_seed(0)
    sizes = _PRETRAINING | {"num_hidden_layers": 2, "decoder_num_hidden_layers": 1, "mask_ratio": 0.5}
    model = ActForPreTraining(ActConfig(**(sizes | {"autoencoder_config": teacher.config} | settings)), teacher)
    for part in (model.act, model.decoder, model.prediction_head):
        spread_weights(part)
    return model.eval()


def _point_mae(**settings: Any) -> PointMAEForPreTraining:
    torch.manual_seed(0)
    sizes = _PRETRAINING | {"num_hidden_layers": 2, "decoder_num_hidden_layers": 1, "mask_ratio": 0.5}
    model = PointMAEForPreTraining(ActConfig(**(sizes | settings)))
    for part in (model.act, model.decoder, model.prediction_head):
        spread_weights(part)
    return model.eval()


def _point_bert(**settings: Any) -> PointBERTForPreTraining:
    teacher = tiny_autoencoders.tiny_autoencoder(None, num_groups=12)
    torch.manual_seed(0)
    sizes = _PRETRAINING | {"num_hidden_layers": 2, "patch_pooled_width": 16, "contrast_queue_size": 12}
    model = PointBERTForPreTraining(ActConfig(**(sizes | {"autoencoder_config": teacher.config} | settings)), teacher)
    for part in (model.act, model.feature_head, model.code_head):
        spread_weights(part)
    return model.eval()


def _with_mask(rows: int, seed: int) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(seed)
    order = torch.rand(rows, 12, generator=generator).argsort(dim=1)
    return {"points": varied_clouds(rows, seed=seed), "mask": order < 6}


def _with_hidden_columns(rows: int, seed: int) -> dict[str, Any]:
    return {"points": varied_clouds(rows, seed=seed), "hidden_columns": (torch.arange(12) == 10).repeat(rows, 1)}


def _with_draws(rows: int, seed: int) -> dict[str, Any]:
    masked = _with_mask(rows, seed)
    generator = torch.Generator().manual_seed(seed + 1)
    ratio = torch.rand(rows, generator=generator)
    kept = torch.rand(rows, 12, generator=generator) < ratio.unsqueeze(1)
    return masked | {
        "mixed_mask": masked["mask"].flip(1),
        "average_mask": masked["mask"].flip(0),
        "mix_ratio": ratio,
        "kept": kept,
    }


def _autoencoder(**settings: Any) -> ActAutoencoder:
    return tiny_autoencoders.tiny_autoencoder(settings.pop("encoder", ENCODER), **settings)


def _any2point(model_class: type[PreTrainedModel]) -> Callable[..., PreTrainedModel]:
    def build(**settings: Any) -> PreTrainedModel:
        encoder = settings.pop("encoder", ENCODER)
        if issubclass(model_class, Any2PointForPartSegmentation):
            model = tiny_encoders.tiny_part_model(encoder, **settings)
        elif issubclass(model_class, Any2PointForSemanticSegmentation):
            model = tiny_encoders.tiny_scene_model(encoder, **settings)
        else:
            model = tiny_encoders.tiny_model(encoder, model_class, **settings)
        core = getattr(model, model.base_model_prefix, model)
        for name, child in (*core.named_children(), *model.named_children()):
            if name not in ("encoder", model.base_model_prefix):
                spread_weights(child)
        return model

    return build


_ANY2POINT_STILL = {"head_dropout": 0.0}


def _zero_shot(**settings: Any) -> Any2PointForZeroShotPointCloudClassification:
    tower = settings.pop("encoder", "bert")
    return tiny_text_towers.tiny_zero_shot_model(tower, **({"temperature": 0.5} | settings))


def _with_texts(rows: int, seed: int) -> dict[str, Any]:
    texts = torch.randn(LABELS, tiny_encoders.HIDDEN, generator=torch.Generator().manual_seed(5))
    return {"points": varied_clouds(rows, seed=seed), "text_embeds": texts}


def _text_labels(rows: int) -> dict[str, Any]:
    return {"labels": torch.arange(rows) % LABELS, "text_labels": torch.arange(LABELS)}


def minigpt3d(**settings: Any) -> MiniGPT3DForConditionalGeneration:
    """A tiny MiniGPT-3D; `text` names another language model."""
    model = tiny_minigpt3d.tiny_model(settings.pop("text", "normed_phi"), **settings)
    spread_weights(model)
    return model


def prompts(rows: int = 3, seed: int = 2) -> dict[str, Any]:
    """Return prompts of equal length with a cloud in each row."""
    generator = torch.Generator().manual_seed(seed)
    before, after = (torch.randint(2, 24, (rows, count), generator=generator) for count in (2, 4))
    places = torch.full((rows, tiny_minigpt3d.PLACES), tiny_minigpt3d.POINT_TOKEN)
    input_ids = torch.cat([before, places, after], dim=1)
    clouds = varied_clouds(rows, 20, 6, seed)
    return {"input_ids": input_ids, "points": clouds, "attention_mask": torch.ones_like(input_ids)}


def _prompt_labels(rows: int) -> dict[str, Any]:
    # Labels need not be the tokens of the inputs.
    labels = torch.randint(2, 24, (rows, 6 + tiny_minigpt3d.PLACES), generator=torch.Generator().manual_seed(4))
    labels[:, : 2 + tiny_minigpt3d.PLACES] = -100
    return {"labels": labels}


_MINIGPT3D_STILL = {
    "text_config": {
        "model_type": "normed_phi",
        **tiny_minigpt3d.TEXTS["normed_phi"],
        "bos_token_id": 1,
        "eos_token_id": 1,
        "resid_pdrop": 0.0,
        "embd_pdrop": 0.0,
    }
}


def _imagebind(**settings: Any) -> ImageBindAudioModel:
    return tiny_encoders.random_encoder(tiny_encoders.tiny_config("imagebind_audio", **settings))


def _spectrograms(rows: int, seed: int) -> dict[str, Any]:
    return {"input_values": torch.randn(rows, 1, 36, 56, generator=torch.Generator().manual_seed(seed))}


def _phi(model_class: type[PreTrainedModel]) -> Callable[..., PreTrainedModel]:
    def build(**settings: Any) -> PreTrainedModel:
        torch.manual_seed(0)
        sizes = tiny_minigpt3d.TEXTS["normed_phi"] | {"bos_token_id": 1, "eos_token_id": 1}
        model = model_class(NormedPhiConfig(**(sizes | settings)))
        spread_weights(model)
        return model.eval()

    return build


def _tokens(rows: int, seed: int) -> dict[str, Any]:
    return {"input_ids": torch.randint(2, 24, (rows, 7), generator=torch.Generator().manual_seed(seed))}


def _token_labels(rows: int) -> dict[str, Any]:
    return {"labels": torch.randint(2, 24, (rows, 7), generator=torch.Generator().manual_seed(4))}


def _aligned(model_class: type[PreTrainedModel]) -> Callable[..., PreTrainedModel]:
    def build(**settings: Any) -> PreTrainedModel:
        model = tiny_aligned.tiny_aligned(model_class, **settings)
        spread_weights(model)
        if hasattr(model, "alignment"):
            torch.nn.init.constant_(model.alignment.logit_scale, 1.5)
        return model

    return build


def _with_feature_texts(rows: int, seed: int, channels: int = 6) -> dict[str, Any]:
    texts = torch.randn(LABELS, tiny_aligned.FEATURES, generator=torch.Generator().manual_seed(5))
    return {"points": varied_clouds(rows, channels=channels, seed=seed), "text_embeds": texts}


_ALIGNED_STILL = {"head_dropout": 0.0, "segmentation_head_dropout": (0.0, 0.0)}


def _aligned_cases(base: type, classifier: type, segmenter: type, channels: int = 6) -> tuple[Case, ...]:
    return (
        Case(base, _aligned(base), _clouds(channels), None, "pooler_output", "projection"),
        _classifier_case(classifier, _aligned(classifier), _clouds(channels), _ALIGNED_STILL),
        Case(
            segmenter,
            _aligned(segmenter),
            _clouds(channels),
            _point_labels(LABELS),
            "logits",
            "segmenter.head.out",
            _ALIGNED_STILL,
        ),
    )


def _patch_targets(rows: int) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(5)
    features = torch.randn(rows, 10, tiny_aligned.FEATURES, generator=generator)
    return {"target_features": features, "target_centers": torch.randn(rows, 10, 3, generator=generator)}


def _zero_shot_case(model_class: type) -> Case:
    return Case(model_class, _aligned(model_class), _with_feature_texts, _text_labels, "logits_per_point_cloud")


def _baseline_cases(base: type, classifier: type, *segmenters: type) -> tuple[Case, ...]:
    still, last = {"head_dropout": 0.0}, "segmenter.head.out"
    return (
        Case(base, _baseline(base), _clouds(), None, "pooler_output", is_adapted=False),
        _classifier_case(classifier, _baseline(classifier), _clouds(), still, is_adapted=False),
        *(
            Case(one, _baseline(one), _clouds(), _point_labels(LABELS), "logits", last, still, is_adapted=False)
            for one in segmenters
        ),
    )


def _from_scratch() -> list[tuple[type, ...]]:
    """Model and heads of each config with the base class of models from scratch, so that a new one is tried."""
    kinds = (registered_classes(config) for config in MODELS)
    return [classes for classes in kinds if issubclass(classes[0], PointCloudPreTrainedModel)]


_PHI_STILL = {"resid_pdrop": 0.0, "embd_pdrop": 0.0}
_BUILDERS = (
    Case(ActModel, _act(ActModel), _clouds(), None, "last_hidden_state", still_settings={"drop_path_rate": 0.0}),
    _classifier_case(ActForPointCloudClassification, _act(ActForPointCloudClassification), _clouds(), _ACT_STILL),
    Case(
        ActForSemanticSegmentation,
        _act(ActForSemanticSegmentation),
        _clouds(),
        _point_labels(LABELS),
        "logits",
        "segmenter.head.out",
        _ACT_STILL,
    ),
    Case(
        ActForPartSegmentation,
        _act(ActForPartSegmentation),
        _with_category,
        _part_labels,
        "logits",
        "segmenter.head.out",
        _ACT_STILL,
    ),
    Case(
        ActForPreTraining,
        _act_pretraining,
        _with_mask,
        lambda rows: {},
        "predictions",
        "prediction_head",
        {"drop_path_rate": 0.0, "decoder_drop_path_rate": 0.0},
        owns_encoder=True,
    ),
    Case(PointGPTModel, _act(PointGPTModel), _clouds(), None, "last_hidden_state"),
    _classifier_case(
        PointGPTForPointCloudClassification, _act(PointGPTForPointCloudClassification), _clouds(), _ACT_STILL
    ),
    Case(
        PointGPTForSemanticSegmentation,
        _act(PointGPTForSemanticSegmentation),
        _clouds(),
        _point_labels(LABELS),
        "logits",
        "segmenter.head.out",
        _ACT_STILL,
    ),
    Case(
        PointGPTForPartSegmentation,
        _act(PointGPTForPartSegmentation),
        _with_category,
        _part_labels,
        "logits",
        "segmenter.head.out",
        _ACT_STILL,
    ),
    Case(
        PointGPTForPreTraining,
        _act(PointGPTForPreTraining),
        _with_hidden_columns,
        lambda rows: {},
        "predictions",
    ),
    *RECON,
    Case(
        PointMAEForPreTraining,
        _point_mae,
        _with_mask,
        lambda rows: {},
        "predictions",
        "prediction_head",
        {"drop_path_rate": 0.0, "decoder_drop_path_rate": 0.0},
        is_adapted=False,
    ),
    Case(
        PointBERTForPreTraining,
        _point_bert,
        _with_draws,
        lambda rows: {},
        "code_scores",
        "code_head",
        {"drop_path_rate": 0.0},
        is_adapted=False,
    ),
    Case(
        PointBERTForPartSegmentation,
        functools.partial(
            _act(PointBERTForPartSegmentation), segmentation_layers=(0, 1, 2), segmentation_levels=(32, 16)
        ),
        _with_category,
        _part_labels,
        "logits",
        "segmenter.out",
        {"drop_path_rate": 0.0},
    ),
    Case(Any2PointModel, _any2point(Any2PointModel), _clouds(), None, "last_hidden_state", owns_encoder=True),
    _classifier_case(
        Any2PointForPointCloudClassification,
        _any2point(Any2PointForPointCloudClassification),
        _clouds(),
        _ANY2POINT_STILL,
        owns_encoder=True,
    ),
    Case(
        Any2PointForSemanticSegmentation,
        _any2point(Any2PointForSemanticSegmentation),
        _clouds(),
        _point_labels(LABELS),
        "logits",
        "segmenter.out",
        _ANY2POINT_STILL,
        owns_encoder=True,
    ),
    Case(
        Any2PointForPartSegmentation,
        _any2point(Any2PointForPartSegmentation),
        _with_category,
        _part_labels,
        "logits",
        "segmenter.out",
        _ANY2POINT_STILL,
        owns_encoder=True,
    ),
    Case(
        Any2PointForZeroShotPointCloudClassification,
        _zero_shot,
        _with_texts,
        _text_labels,
        "logits_per_point_cloud",
        owns_encoder=True,
    ),
    Case(
        MiniGPT3DModel,
        lambda **settings: minigpt3d(**settings).base_model,
        prompts,
        None,
        "last_hidden_state",
        still_settings=_MINIGPT3D_STILL,
    ),
    Case(
        MiniGPT3DForConditionalGeneration,
        minigpt3d,
        prompts,
        _prompt_labels,
        "logits",
        "minigpt3d.language_model.lm_head",
        _MINIGPT3D_STILL,
    ),
    Case(
        ActAutoencoder,
        _autoencoder,
        # Given noise instead of random noise in training.
        lambda rows, seed: {"points": varied_clouds(rows, seed=seed), "noise": torch.zeros(())},
        lambda rows: {},
        "fine",
        "decoder.out",
        {"prompt_dropout": 0.0},
        owns_encoder=True,
    ),
    *_baseline_cases(PointTokenizerModel, PointTokenizerForPointCloudClassification),
    *(case for kinds in _from_scratch() for case in _baseline_cases(*kinds)),
    *(*DETECTORS, *LAYOUT_WRITERS),
    *_aligned_cases(OpenShapeModel, OpenShapeForPointCloudClassification, OpenShapeForPointCloudSegmentation),
    _zero_shot_case(OpenShapeForZeroShotPointCloudClassification),
    *_aligned_cases(Uni3DModel, Uni3DForPointCloudClassification, Uni3DForPointCloudSegmentation),
    _zero_shot_case(Uni3DForZeroShotPointCloudClassification),
    *_aligned_cases(
        PatchAlign3DModel, PatchAlign3DForPointCloudClassification, PatchAlign3DForPointCloudSegmentation, channels=3
    ),
    Case(
        PatchAlign3DForZeroShotPointCloudSegmentation,
        _aligned(PatchAlign3DForZeroShotPointCloudSegmentation),
        lambda rows, seed: _with_feature_texts(rows, seed, channels=3),
        _point_labels(LABELS),
        "logits",
    ),
    Case(
        PatchAlign3DForPreTraining,
        _aligned(PatchAlign3DForPreTraining),
        _clouds(),
        _patch_targets,
        "predictions",
        "patchalign3d.projection",
    ),
    Case(PointFeaturesModel, _features(PointFeaturesModel), _clouds(), None, "pooler_output", is_adapted=False),
    _classifier_case(FeaturesHead, _features(FeaturesHead), _clouds(), {}, "classifier", is_adapted=False),
    *VOXEL_MODELS,
    Case(ImageBindAudioModel, _imagebind, _spectrograms, None, "last_hidden_state"),
    Case(NormedPhiModel, _phi(NormedPhiModel), _tokens, None, "last_hidden_state", still_settings=_PHI_STILL),
    Case(NormedPhiForCausalLM, _phi(NormedPhiForCausalLM), _tokens, _token_labels, "logits", "lm_head", _PHI_STILL),
)


@functools.cache
def _of_extensions() -> tuple[Case, ...]:
    if not HAS_SURVEY:
        return ()
    from tests.survey.cases import CASES

    return CASES


def case_of(model_class: type[PreTrainedModel]) -> Case:
    """Return the case of a registered class.

    Raises:
        LookupError: If it has no builder.
    """
    for case in (*_BUILDERS, *_of_extensions()):
        if case.model_class is model_class:
            return case
    raise LookupError(f"{model_class.__name__} is registered, but tests/common/models.py has no builder for it")


def first_of_configs(cases: Iterable[Case]) -> list[Case]:
    """Return the first case of each config, for what does not depend on heads."""
    first: dict[type, Case] = {}
    for case in cases:
        first.setdefault(case.model_class.config_class, case)
    return list(first.values())


CASES: tuple[Case, ...] = tuple(map(case_of, registered_classes()))
"""All registered classes with their builders."""
