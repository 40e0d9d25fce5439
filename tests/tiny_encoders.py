"""Tiny random encoders of every registered family, and Any2Point models around them."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import torch
from huggingface_hub import HfApi
from peft import PeftModel, get_peft_model
from transformers import AutoConfig, AutoModel, PreTrainedConfig, PreTrainedModel

from hf_any3d.modeling.any2point import (
    Any2PointConfig,
    Any2PointForPartSegmentation,
    Any2PointForPointCloudClassification,
    Any2PointForSemanticSegmentation,
    Any2PointPreTrainedModel,
)
from hf_any3d.modeling.any2point.small_data_defaults import LIGHT_SEGMENTATION
from hf_any3d.modeling.encoders import build_encoder, composite_checkpoints
from hf_any3d.tuners import GuidedAdapterConfig
from tests.copies import Copies

Model = TypeVar("Model", bound=torch.nn.Module)
HIDDEN = 48
LAYERS = 2
_SIZES = {"hidden_size": HIDDEN, "num_hidden_layers": LAYERS, "num_attention_heads": 4, "intermediate_size": 96}
_TEXT = {"vocab_size": 30, "max_position_embeddings": 40, "bos_token_id": 0, "eos_token_id": 2, "pad_token_id": 1}
# Two query heads per key head, and as many frequencies as views.
_ROTARY = _TEXT | {"num_key_value_heads": 2, "head_dim": 12}
_HALF_ROTARY = _TEXT | {
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 0.5},
}
_LOCAL = {"layer_types": ["sliding_attention", "full_attention"]}
_T5 = _TEXT | {"d_kv": 12, "d_ff": 96, "num_decoder_layers": 1, "relative_attention_num_buckets": 8}
_DEBERTA = _TEXT | {
    "relative_attention": True,
    "pos_att_type": ["c2p", "p2c"],
    "max_relative_positions": 32,
    "position_biased_input": False,
    "type_vocab_size": 0,
}
_IMAGE = {"image_size": 64, "patch_size": 16}
_SPEECH = {
    "conv_dim": (8, 8),
    "conv_stride": (5, 2),
    "conv_kernel": (10, 3),
    "num_conv_pos_embeddings": 8,
    "num_conv_pos_embedding_groups": 4,
    "vocab_size": 30,
}
_OWN_SIZES = {
    "bert": _TEXT,
    "ernie": _TEXT,
    "roberta": _TEXT,
    "xlm-roberta": _TEXT,
    "camembert": _TEXT,
    "data2vec-text": _TEXT,
    "electra": _TEXT | {"embedding_size": HIDDEN},
    "clap_text_model": _TEXT,
    "megatron-bert": _TEXT,
    "distilbert": _TEXT | {"hidden_dim": 96},
    "clip_text_model": _TEXT,
    "siglip_text_model": _TEXT,
    "siglip2_text_model": _TEXT,
    "gpt2": _TEXT | {"n_inner": 96},
    "opt": _TEXT | {"ffn_dim": 96, "word_embed_proj_dim": HIDDEN},
    "xglm": _TEXT | {"ffn_dim": 96},
    "t5": _T5,
    "mt5": _T5,
    "umt5": _T5,
    "switch_transformers": _T5 | {"num_sparse_encoder_layers": 0, "num_sparse_decoder_layers": 0},
    "mpnet": _TEXT,
    "deberta": _DEBERTA,
    "deberta-v2": _DEBERTA | {"position_buckets": 8, "share_att_key": True, "norm_rel_ebd": "layer_norm"},
    "modernbert": _TEXT | _LOCAL | {"cls_token_id": 0, "sep_token_id": 2},
    "eurobert": _ROTARY | {"mask_token_id": 3},
    "nomic_bert": _TEXT | {"head_dim": 12},
    "llama": _ROTARY,
    "mistral": _ROTARY,
    "qwen2": _ROTARY,
    "qwen3": _ROTARY,
    "smollm3": _ROTARY | {"no_rope_layers": [1, 0]},
    "starcoder2": _ROTARY,
    "stablelm": _HALF_ROTARY,
    "gemma": _ROTARY,
    "gemma2": _ROTARY | _LOCAL,
    "gemma3_text": _ROTARY | _LOCAL,
    "olmo2": _ROTARY,
    "phi": _HALF_ROTARY,
    "phi3": _ROTARY,
    "gpt_neox": _HALF_ROTARY,
    "clip_vision_model": _IMAGE,
    "siglip_vision_model": _IMAGE,
    "siglip2_vision_model": {"num_patches": 16, "patch_size": 16},
    "vit": _IMAGE,
    "deit": _IMAGE,
    "vit_mae": _IMAGE | {"mask_ratio": 0.0},
    "vit_msn": _IMAGE,
    "ijepa": _IMAGE,
    "dinov2": _IMAGE,
    "dinov2_with_registers": _IMAGE,
    "dinov3_vit": _IMAGE | {"num_attention_heads": 2},
    "dpt": _IMAGE | {"is_hybrid": False},
    "beit": _IMAGE | {"use_relative_position_bias": True, "use_shared_relative_position_bias": True},
    "data2vec-vision": _IMAGE | {"use_relative_position_bias": True, "use_mean_pooling": False},
    # 3 rows of frequency, 5 columns of time
    "imagebind_audio": {"num_mel_bins": 36, "num_frames": 56},
    "audio-spectrogram-transformer": {"num_mel_bins": 36, "max_length": 56, "patch_size": 16},
    "whisper": {
        "encoder_ffn_dim": 96,
        "decoder_ffn_dim": 32,
        "decoder_layers": 1,
        "decoder_attention_heads": 2,
        "vocab_size": 30,
        "max_source_positions": 40,
        "max_target_positions": 8,
        "num_mel_bins": 8,
        "pad_token_id": 1,
        "bos_token_id": 0,
        "eos_token_id": 2,
        "decoder_start_token_id": 0,
    },
    "wav2vec2": _SPEECH,
    "hubert": _SPEECH | {"do_stable_layer_norm": True, "feat_extract_norm": "layer"},
    "data2vec-audio": _SPEECH | {"num_conv_pos_embeddings": 2, "conv_pos_kernel_size": 5},
    "unispeech": _SPEECH,
    "unispeech-sat": _SPEECH,
    "wavlm": _SPEECH | {"num_buckets": 16, "max_bucket_distance": 40},
}
ENCODER_TYPES = tuple(
    model_type
    for model_type in _OWN_SIZES
    # Of encoders with the same layers and positions, one is in the tests of all types.
    if model_type
    not in {
        *("ernie", "xlm-roberta", "camembert", "data2vec-text", "mt5", "qwen2", "mistral", "vit_msn", "unispeech"),
        *("unispeech-sat", "siglip2_text_model", "siglip2_vision_model", "gemma", "gemma2", "olmo2", "phi", "phi3"),
        *("starcoder2", "stablelm", "smollm3"),
        # PEFT takes a classifier in its routers for the head, by the end of its name.
        "switch_transformers",
    }
)
"""Types of encoders that tests go through; `tests.any_encoders` has all of transformers."""
HEADS = ("classifier", "propagation", "segmenter", "category_embedding")
# The config's own defaults, instead of those for little data.
PAPER = {name: getattr(Any2PointConfig(), name) for name in LIGHT_SEGMENTATION}
# The smallest model with all parts: three stages, several tokens per cell, a hidden layer in the head.
SMALL = PAPER | {"num_tokens": 8, "tokenizer_neighbors": 4, "tokenizer_blocks": (1, 1, 1), "head_widths": (16,)}


def tiny_config(model_type: str, **changes: Any) -> PreTrainedConfig:
    """Make a tiny config of an encoder family."""
    assert model_type in _OWN_SIZES, f"'{model_type}' has no tiny config; add its sizes to {__file__}"
    return AutoConfig.for_model(model_type, **(_SIZES | _OWN_SIZES[model_type] | changes))


def random_encoder(config: PreTrainedConfig, seed: int = 0) -> PreTrainedModel:
    """Make an encoder without weights of exactly 0 or 1, so that unused weights are noticed."""
    torch.manual_seed(seed)
    is_composite = config.model_type in composite_checkpoints()
    encoder = AutoModel.from_config(config) if is_composite else build_encoder(config)
    with torch.no_grad():
        for parameter in encoder.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return encoder.eval()


def saved_encoder(model_type: str) -> str:
    """Return the directory of a tiny encoder or composite checkpoint, written once per test run."""
    directory = Path(os.environ["HF_HOME"]) / "tiny-encoders" / model_type
    if not directory.is_dir():
        if model_type in composite_checkpoints():
            towers = {
                f"{tower}_config": tiny_config(f"{model_type}_{tower}_model").to_dict()
                for tower in composite_checkpoints()[model_type]
                if model_type != "clap" or tower == "text"
            }
            config = AutoConfig.for_model(model_type, projection_dim=16, **towers)
        else:
            config = tiny_config(model_type)
        random_encoder(config).save_pretrained(directory)
    return str(directory)


def pushed_encoder(model_type: str) -> str:
    """Return the name of a tiny encoder on the local hub, whose weights models leave there when they are saved."""
    name = f"me/tiny-{model_type.replace('_', '-')}-to-name"
    HfApi().create_repo(name, exist_ok=True)
    HfApi().upload_folder(repo_id=name, folder_path=saved_encoder(model_type))
    return name


def tiny_model(
    encoder: str = "bert",
    model_class: type[Any2PointPreTrainedModel] = Any2PointForPointCloudClassification,
    large_logits: bool = False,
    **kwargs: Any,
) -> Any2PointPreTrainedModel:
    """Make a model with three labels around a tiny encoder: a `model_type`, a directory or a name on the hub.

    A new head's logits are nearly zero; `large_logits` applies `with_large_logits`.
    """
    settings = {"num_labels": 3} | SMALL | kwargs

    def build() -> Any2PointPreTrainedModel:
        source = saved_encoder(encoder) if _is_made_here(encoder) else encoder
        torch.manual_seed(1)
        model = model_class.from_encoder_pretrained(source, **settings)
        return with_large_logits(model) if large_logits else model

    return _copy_of(encoder, build, model_class, large_logits, settings)


def _is_made_here(encoder: str) -> bool:
    """Return whether an encoder is a `model_type`; files of others may change."""
    return encoder in _OWN_SIZES or encoder in composite_checkpoints()


_BUILT: dict[str, tuple[Copies, torch.Tensor]] = {}
_MOST_BUILT = 24  # models, of 1 to 2 MB


def _copy_of(encoder: str, build: Callable[[], Model], *settings: Any) -> Model:
    """Return a model of its own, built only once for its settings; random numbers continue as after building it."""
    if not _is_made_here(encoder):
        return build()
    key = repr((encoder, build.__qualname__, settings))
    if key not in _BUILT:
        built = Copies(build()), torch.get_rng_state()
        if len(_BUILT) >= _MOST_BUILT:
            _BUILT.pop(next(iter(_BUILT)))
        _BUILT[key] = built
    copies, random_state = _BUILT[key]
    torch.set_rng_state(random_state)
    return copies.another()


@torch.no_grad()
def with_large_logits(model: PreTrainedModel, seed: int = 7) -> PreTrainedModel:
    """Set the head's weights so that logits are of order one, far above tolerances."""
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        if name.partition(".")[0] in HEADS and parameter.ndim > 1:
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * (4 / parameter.shape[1]) ** 0.5)
    return model


def tiny_scene_model(encoder: str = "bert", **kwargs: Any) -> Any2PointForSemanticSegmentation:
    """Make a `tiny_model` for semantic segmentation of scenes."""
    return tiny_model(encoder, Any2PointForSemanticSegmentation, **{"propagation_width": 8, **kwargs})


def tiny_part_model(encoder: str = "bert", **kwargs: Any) -> Any2PointForPartSegmentation:
    """Make a `tiny_model` for five parts of two categories."""
    settings = {
        "propagation_width": 8,
        "num_labels": 5,
        "category_parts": [[0, 1], [2, 3, 4]],
        "category_names": ["table", "lamp"],
    }
    return tiny_model(encoder, Any2PointForPartSegmentation, **settings | kwargs)


def adapted_model(encoder: str = "bert", adapter: dict[str, Any] | None = None, **kwargs: Any) -> PeftModel:
    """Make a `tiny_model` with a guided adapter that has an effect before training, in eval mode."""
    adapter = {"r": 4, "init_weights": False, "bottleneck_dropout": 0.0} | (adapter or {})

    def build() -> PeftModel:
        return get_peft_model(tiny_model(encoder, **kwargs), GuidedAdapterConfig(**adapter)).eval()

    return _copy_of(encoder, build, adapter, kwargs)


def clouds(count: int = 3, points: int = 48, channels: int = 3, seed: int = 2) -> torch.Tensor:
    """Draw random clouds `(count, points, channels)` in the cube from -1 to 1."""
    return torch.rand(count, points, channels, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def train_step(model: torch.nn.Module, points: torch.Tensor | None = None) -> torch.Tensor:
    """Run an AdamW step in train mode on fixed labels, and return the loss before it."""
    points = clouds() if points is None else points
    model.train()
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-2)
    loss = model(points=points, labels=torch.arange(len(points)) % 3).loss
    loss.backward()
    optimizer.step()
    return loss.detach()


def is_cancelled_by_batch_norm(name: str) -> bool:
    """Return whether a parameter is a bias before a batch norm, whose gradient is zero in training."""
    return ".blocks." in name and name.endswith(("reduce.bias", "expand.bias"))
