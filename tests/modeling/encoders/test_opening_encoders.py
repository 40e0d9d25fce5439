"""Encoders that are opened, converted, frozen and replaced, without what encoding tokens does not need."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from hf_any3d.modeling.encoders.loading import convert_encoder, open_encoder
from tests.tiny_encoders import random_encoder, saved_encoder, tiny_config


def dtypes_of(encoder: nn.Module) -> dict[str, torch.dtype]:
    return {name: parameter.dtype for name, parameter in encoder.named_parameters()}


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("model_type", ["bert", "t5", "deberta"])
def test_encoders_are_converted_as_they_are_loaded(model_type, dtype):
    opened, missing = open_encoder(saved_encoder(model_type), tiny_config(model_type), dtype)
    full, _ = open_encoder(saved_encoder(model_type), tiny_config(model_type))
    assert missing == [] and set(dtypes_of(full).values()) == {torch.float32}
    convert_encoder(full, dtype)
    assert dtypes_of(full) == dtypes_of(opened) and full.config.dtype == dtype
    # Of T5, transformers keeps some in full precision in float16.
    mixed = model_type == "t5" and dtype == torch.float16
    assert set(dtypes_of(full).values()) == ({dtype, torch.float32} if mixed else {dtype})
    for one, other in zip(full.parameters(), opened.parameters(), strict=True):
        assert torch.equal(one, other)


def without(model_type: str, folder: Path, *endings: str, **changes) -> str:
    """A checkpoint that lacks the weights with these endings."""
    random_encoder(tiny_config(model_type, **changes)).save_pretrained(folder)
    file = folder / "model.safetensors"
    state = {name: tensor for name, tensor in load_file(file).items() if not name.endswith(endings)}
    save_file(state, file, metadata={"format": "pt"})
    return str(folder)


@pytest.mark.parametrize(
    ("model_type", "changes", "lacks", "missing"),
    [
        ("bert", {}, ("pooler.dense.weight",), []),
        ("bert", {}, ("output.dense.bias", "pooler.dense.bias"), ["attention.output.dense.bias", "output.dense.bias"]),
        ("bert", {}, ("embeddings.LayerNorm.bias",), ["embeddings.LayerNorm.bias"]),
        ("beit", {"use_mean_pooling": True}, ("pooler.layernorm.weight",), ["pooler.layernorm.weight"]),
        ("whisper", {}, ("decoder.embed_tokens.weight", "fc1.bias"), ["fc1.bias"]),
    ],
)
def test_weights_that_tokens_need_must_be_there(model_type, changes, lacks, missing, tmp_path):
    config = tiny_config(model_type, **changes)
    encoder, found = open_encoder(without(model_type, tmp_path, *lacks, **changes), config)
    assert found == sorted(found)
    assert {ending for name in found for ending in missing if name.endswith(ending)} == set(missing)
    assert all(name.endswith(tuple(missing)) for name in found)
    assert not any(name.startswith("decoder.") for name, _ in encoder.named_parameters())
