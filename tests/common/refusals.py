"""Features that some model classes or PEFT methods do not support: one list, each entry with its error and reason.

The common suites run a feature inside `check_refusal(feature, subject)`. If the pair is in `REFUSALS`, the block must
raise the documented error; otherwise it must pass. So a feature that becomes supported, or that raises another error,
fails its test, and no test is skipped silently.

`python -m tests.common.refusals` prints the list as a table.
"""

from __future__ import annotations

import sys
from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import pytest
from transformers import GenerationMixin, PreTrainedConfig, PreTrainedModel

from hf_any3d.integration.auto import (
    AutoModelForPointCloudObjectDetection,
    AutoModelForPointCloudSegmentation,
    AutoModelForZeroShotPointCloudClassification,
    AutoModelForZeroShotPointCloudSegmentation,
)
from hf_any3d.integration.registration import ENCODERS, LANGUAGE_MODELS, MODELS
from hf_any3d.modeling.act import (
    ActAutoencoder,
    ActConfig,
    ActForPreTraining,
    PointBERTForPreTraining,
    PointMAEForPreTraining,
)
from hf_any3d.modeling.detr3d import Detr3DConfig, Detr3DForPointCloudObjectDetection
from hf_any3d.modeling.layers.forward_contract import NoAttentionMixin
from hf_any3d.modeling.minigpt3d import MiniGPT3DConfig, MiniGPT3DForConditionalGeneration, NormedPhiForCausalLM
from hf_any3d.modeling.point_features import PointFeaturesConfig
from hf_any3d.modeling.point_transformer_v3 import PointTransformerV3Config, PointTransformerV3Model
from hf_any3d.modeling.pointgpt import PointGPTConfig, PointGPTForPreTraining
from hf_any3d.modeling.recon import ReconConfig, ReconForPreTraining
from hf_any3d.modeling.spatiallm import SpatialLMConfig, SpatialLMForConditionalGeneration, SpatialLMModel


@dataclass(frozen=True)
class Refusal:
    """The error of an unsupported feature.

    Args:
        error: Its type.
        match: Regular expression of its message.
        reason: Why the feature is not supported.
    """

    error: type[Exception]
    match: str
    reason: str


FEATURES: dict[str, str] = {}
"""Descriptions of the features that the suites test, by name."""
REFUSALS: dict[tuple[str, str], Refusal] = {}
"""By (feature, name of a model class or method)."""


def feature(name: str, description: str) -> str:
    """Register a feature that the suites test."""
    FEATURES[name] = description
    return name


def refuse(name: str, subjects: Iterable[str | type], error: type[Exception], match: str, reason: str) -> None:
    """Register subjects, model classes or names, that refuse a feature for one reason."""
    for subject in subjects:
        REFUSALS[name, subject if isinstance(subject, str) else subject.__name__] = Refusal(error, match, reason)


def registered_classes(*configs: type[PreTrainedConfig]) -> tuple[type[PreTrainedModel], ...]:
    """Return every model class of `hf_any3d.integration.registration`, in order, or those of the given configs."""
    heads = {
        config: (base, *(model for some in of.values() for model in some)) for config, (base, of) in MODELS.items()
    }
    encoders = {config: (encoder,) for config, encoder in ENCODERS.items()}
    families = heads | encoders | {config: models for config, *models in LANGUAGE_MODELS}
    return tuple(dict.fromkeys(model for config in configs or families for model in families[config]))


def refusal_of(name: str, subject: str) -> Refusal | None:
    """Return the refusal of a pair, or None if the feature is supported.

    Raises:
        KeyError: If there is no such feature.
    """
    if name not in FEATURES:
        raise KeyError(f"no feature {name!r}; expected one of {', '.join(sorted(FEATURES))}")
    return REFUSALS.get((name, subject))


@contextmanager
def check_refusal(name: str, subject: str) -> Iterator[bool]:
    """Check that a block passes, or raises the documented error.

    Yields whether the feature is supported. The block should contain only the feature; compare results after it.
    """
    refusal = refusal_of(name, subject)
    if refusal is None:
        yield True
        return
    with pytest.raises(refusal.error, match=refusal.match):
        yield False


def table() -> str:
    """Return all refusals as a Markdown table."""
    lines = ["| feature | refused by | error | reason |", "|---|---|---|---|"]
    grouped: dict[tuple[str, Refusal], list[str]] = {}
    for (name, subject), refusal in REFUSALS.items():
        grouped.setdefault((name, refusal), []).append(subject)
    for (name, refusal), subjects in grouped.items():
        shown = f"{name}: {FEATURES[name]}" if name in FEATURES else name
        lines.append(f"| {shown} | {', '.join(subjects)} | `{refusal.error.__name__}` | {refusal.reason} |")
    return "\n".join(lines) + "\n"


# Models (tests/common/test_models.py)
_BASELINES = tuple(kind for kind in registered_classes() if issubclass(kind, NoAttentionMixin))
_FEATURES = registered_classes(PointFeaturesConfig)
_PTV3 = registered_classes(PointTransformerV3Config)
_SPATIALLM = registered_classes(SpatialLMConfig)
_WITHOUT_WORDS = tuple(kind for kind in registered_classes() if kind.main_input_name != "input_ids")
feature("resize_token_embeddings", "a vocabulary of another size")
refuse(
    "resize_token_embeddings",
    _WITHOUT_WORDS,
    AttributeError,
    "object has no attribute 'weight'",
    "tokens are computed from points or audio",
)
feature("return_dict", "tuples if the config has `return_dict=False`")
refuse(
    "return_dict",
    (NormedPhiForCausalLM,),
    AttributeError,
    "last_hidden_state",
    "transformers' own language models do not run with this config; `return_dict=False` in the call is honored",
)
feature("problem_type", "several labels per point, or regression")
refuse(
    "problem_type",
    (kind for _, heads in MODELS.values() for kind in heads.get(AutoModelForPointCloudSegmentation, ())),
    ValueError,
    "every point has one label",
    "segmentation is single-label classification of points",
)
feature("attention", "a choice of attention implementation, and attention weights")
refuse("attention", _BASELINES, ValueError, "does not support an attention implementation", "there is no attention")
feature("activation checkpointing", "layers that are computed again in the backward pass")
refuse(
    "activation checkpointing",
    _BASELINES,
    ValueError,
    "does not support activation checkpointing",
    "every layer has a batch norm, which would measure a batch twice",
)
refuse(
    "activation checkpointing",
    _FEATURES,
    ValueError,
    "does not support activation checkpointing",
    "nothing before the head is trained",
)
feature("gradients", "gradients of a model's own weights")
refuse("gradients", _FEATURES[:1], RuntimeError, "does not require grad", "all weights before the head are frozen")
feature("no waiting", "training steps in which neither accelerator nor host waits for the other")
refuse(
    "no waiting",
    (*_PTV3, *_SPATIALLM),
    RuntimeError,
    "meta",
    "the numbers of voxels and of their neighbors must be known on the host",
)
refuse(
    "no waiting",
    (Detr3DForPointCloudObjectDetection,),
    NotImplementedError,
    "meta",
    "boxes are matched with objects on the host",
)
feature("largest coordinates", "clouds of the largest numbers that the precision allows")
refuse(
    "largest coordinates",
    _PTV3,
    ValueError,
    "expected fewer than 1,048,576; use a larger grid_size|expected 0 to 65534 along each axis",
    "their cells must be numbered",
)
feature("torch.compile", "compilation without graph breaks")
refuse(
    "torch.compile",
    (PointTransformerV3Model, SpatialLMModel),
    RuntimeError,
    "data-dependent",
    "the number of voxels depends on the points; it compiles with graph breaks",
)

# Quantization (tests/common/test_quantization.py)
feature("8 bit", "`from_pretrained` with 8 bits of bitsandbytes")
feature("4 bit", "`from_pretrained` with 4 bits of bitsandbytes")
feature("torchao", "`from_pretrained` with 8-bit weights of torchao")
feature("quantize_dynamic", "torch's dynamic quantization of a model in memory")
for _way in ("8 bit", "4 bit", "torchao"):
    refuse(
        _way,
        (ActForPreTraining,),
        ValueError,
        "trains weights, which must be full",
        "integers have no gradient; its teacher may be a quantized ActAutoencoder",
    )
feature("save quantize_dynamic", "saving a model after torch's dynamic quantization")
_OF_TRANSFORMERS = registered_classes(*ENCODERS, *(config for config, *_ in LANGUAGE_MODELS))
refuse(
    "save quantize_dynamic",
    (kind for kind in registered_classes() if kind not in _OF_TRANSFORMERS),
    ValueError,
    "quantize_dynamic made cannot be saved",
    "safetensors cannot store torch's packed layers",
)
refuse(
    "save quantize_dynamic",
    _OF_TRANSFORMERS,
    AttributeError,
    "'torch.dtype' object has no attribute 'data_ptr'",
    "safetensors cannot store torch's packed layers; transformers' own encoders and language models raise the same",
)

# Training (tests/common/test_training_arguments.py)
_OTHER_LOSSES = (
    AutoModelForZeroShotPointCloudClassification,
    AutoModelForZeroShotPointCloudSegmentation,
    AutoModelForPointCloudObjectDetection,
)
refuse(
    "label smoothing",
    (
        kind
        for _, heads in MODELS.values()
        for task in _OTHER_LOSSES
        for kind in heads.get(task, ())
        # A language model, whose labels Trainer shifts as it does for those of transformers
        if kind is not SpatialLMForConditionalGeneration
    ),
    ValueError,
    "is not the cross-entropy of its logits",
    "the Trainer replaces any loss by the cross-entropy of an output named `logits`",
)

# Export (tests/common/test_export.py)
refuse(
    "torch.export", (*_PTV3, *_SPATIALLM), RuntimeError, "data-dependent", "the number of voxels depends on the points"
)
refuse(
    "torch.export",
    (ActForPreTraining, PointMAEForPreTraining),
    TypeError,
    "unhashable type: non-nested SymInt",
    "the number of hidden patches depends on the mask; the student is exported as ActModel",
)

# Generation (tests/common/test_generation.py)
feature("static cache", "a cache of fixed size")
feature("assisted generation", "a smaller model that drafts tokens")
refuse(
    "assisted generation",
    ("a language model without the placeholder",),
    IndexError,
    "index out of range",
    "it cannot embed the prompt, as with transformers' own multimodal models",
)
feature("drafts after a cache", "assisted generation that continues a conversation")
refuse(
    "drafts after a cache",
    (MiniGPT3DForConditionalGeneration,),
    ValueError,
    ".* tokens with assisted generation",
    "transformers reads the whole prompt after the cache; its own models then answer otherwise without an error",
)
feature("prefill in chunks", "a prompt that is read a few tokens at a time")
refuse(
    "prefill in chunks",
    ("use_cache=False",),
    ValueError,
    "Cannot use prefill chunking without a cache",
    "chunks are joined in the cache",
)
feature("prompt lookup", "draft tokens from the prompt")

# Adapters (tests/common/test_tuners.py)
_OWN = ("GUIDED_ADAPTER", "BITFIT", "PROMPT_TOKENS", "SIDE_TUNING", "POINTGST", "IDPT", "DAPT", "PPT", "APPT")
# Methods whose tokens go on from layer to layer.
_ADDS_TOKENS = ("IDPT", "DAPT", "APPT")
# Methods by which a token sees others of its cloud, whatever the attention is.
_MIX_TOKENS = ("GUIDED_ADAPTER", "POINTGST", "PPT", *_ADDS_TOKENS)
# Methods that build graphs of a cloud's tokens.
_ON_TOKENS = ("POINTGST",)
_ADAPTED = tuple(kind for kind in registered_classes() if kind not in (*_BASELINES, *_FEATURES))
# Models that hide patches from ACT's point transformer; the first has a teacher.
_PRETRAINED = (ActForPreTraining, PointMAEForPreTraining, PointBERTForPreTraining, ReconForPreTraining)
_NO_POINT_TOKENS = (
    *_PRETRAINED[1:],
    *registered_classes(Detr3DConfig, *ENCODERS, *(config for config, *_ in LANGUAGE_MODELS)),
    *_BASELINES,
)
# A detector on a pretrained point encoder, see `tests.tiny_detr3d`.
_ON_ENCODER = "Detr3DForPointCloudObjectDetectionOnEncoder"


# Models that give whole clouds to a point transformer that reads further patches of them.
_ON_ACT = tuple(
    kind
    for kind in registered_classes(ActConfig, ReconConfig, PointGPTConfig)
    if kind not in (*_PRETRAINED, PointGPTForPreTraining)
)


def _pairs(methods: Iterable[str], models: Collection[type[PreTrainedModel]]) -> tuple[str, ...]:
    return tuple(f"{method} on {model.__name__}" for method in methods for model in models)


refuse(
    "adapt",
    _pairs(_OWN, _PRETRAINED[1:]),
    ValueError,
    "is pretrained in full",
    "decoder and moving average are neither pretrained parts nor a head; adapters are for models that start from it",
)
refuse(
    "adapt",
    _pairs(_OWN, [kind for kind in _NO_POINT_TOKENS if kind not in _PRETRAINED]),
    ValueError,
    "does not say where its layers are",
    "these methods adapt layers for point tokens; submodels can use PEFT's own methods",
)
refuse(
    "adapt",
    _pairs(_OWN, (*registered_classes(MiniGPT3DConfig), *_SPATIALLM, *_FEATURES)),
    ValueError,
    "has several pretrained parts",
    "modules_to_save has no default if all parts are pretrained; it works with a given one",
)
refuse(
    "adapt",
    _pairs(("GUIDED_ADAPTER", "POINTGST", *_ADDS_TOKENS), (ActAutoencoder,)),
    ValueError,
    "get no positions of tokens",
    "the teacher of an autoencoder gets no token positions, which guidance and graphs of tokens require",
)
refuse(
    "adapt",
    _pairs(_ON_TOKENS, (*_PTV3, *_SPATIALLM)),
    ValueError,
    "attention_axis='patches'",
    "graphs between all tokens of a cloud, whose cost grows with a power of their number",
)
refuse(
    "adapt",
    _pairs(_ADDS_TOKENS, (*_PTV3, *_SPATIALLM)),
    ValueError,
    "attention_axis='patches'",
    "tokens of a cloud would have to follow its own in a list that patches of voxels are cut from",
)
refuse(
    "adapt",
    (
        *_pairs(
            ("PPT",),
            [
                kind
                for kind in _ADAPTED
                if kind not in (*_NO_POINT_TOKENS, *registered_classes(MiniGPT3DConfig), *_SPATIALLM, *_ON_ACT)
            ],
        ),
        f"PPT on {_ON_ENCODER}",
    ),
    ValueError,
    "^PPT embeds further patches of each cloud, which the encoder of",
    "of point transformers, only ACT's and ReCon's read other patches than the config's, and only of whole clouds",
)
refuse(
    "adapt",
    _pairs(_MIX_TOKENS, (PointGPTForPreTraining,)),
    ValueError,
    "mixes the tokens of a cloud, so that PointGPTForPreTraining would see the patches that it predicts",
    "a patch is predicted from those before it alone",
)
refuse(
    "open",
    (ActForPreTraining,),
    ValueError,
    "autoencoder_config is missing; build the model with from_autoencoder_pretrained",
    "the directory of an adapter contains only the student; pretraining resumes from a complete checkpoint",
)
refuse(
    "merge",
    tuple(method for method in _OWN if method != "BITFIT"),
    ValueError,
    r"cannot be merged into the encoder; use unload\(\) to remove",
    "modules after a non-linear layer, and tokens, cannot be merged into weights",
)
refuse(
    "adapter_names",
    (*_OWN, "IA3", "VERA", "BOFT", "OFT", "LN_TUNING"),
    ValueError,
    "one adapter runs for a whole batch",
    "statistics, positions and masks are those of a batch; PEFT itself ignores the argument, of its own methods too",
)
refuse("adapter_names", ("DORA",), ValueError, "adapter_names.* when DoRA is enabled", "PEFT's own error")
refuse(
    "task_type",
    _pairs(("CAUSAL_LM",), [kind for kind in _ADAPTED if not issubclass(kind, GenerationMixin)]),
    AttributeError,
    "has no attribute 'prepare_inputs_for_generation'",
    "models that do not generate text; transformers' own encoders raise the same error",
)
refuse(
    "prompts",
    (
        *_pairs(
            ("PROMPT_TUNING", "P_TUNING", "PREFIX_TUNING"),
            [
                kind
                for kind in _ADAPTED
                if kind in _WITHOUT_WORDS and kind not in set(_NO_POINT_TOKENS) - {ReconForPreTraining}
            ],
        ),
        *(f"{method} on {_ON_ENCODER}" for method in ("PROMPT_TUNING", "P_TUNING", "PREFIX_TUNING")),
    ),
    ValueError,
    "embeddings of words to .*, which reads none",
    "PEFT prepends prompts to embedded words; PROMPT_TOKENS appends them to point tokens",
)
refuse(
    "prompts",
    _pairs(("PROMPT_TUNING", "P_TUNING"), (*registered_classes(MiniGPT3DConfig), *_SPATIALLM)),
    ValueError,
    "whose input_ids mark the places of clouds",
    "PEFT passes embeddings without input_ids, so clouds would be ignored silently",
)
refuse(
    "prompts",
    _pairs(("PROMPT_TUNING", "P_TUNING", "PREFIX_TUNING"), registered_classes(Detr3DConfig, *ENCODERS)),
    AttributeError,
    "has no attribute 'vocab_size'",
    "an encoder of spectrograms, or a detector; transformers' own audio and vision models raise the same error",
)


if __name__ == "__main__":
    sys.stdout.write(table())
