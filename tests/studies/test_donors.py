"""Real pretrained encoders out of packages: files of other programs, and the library around what is in them."""

import struct

import pytest
import torch
from peft import get_peft_model
from transformers import WhisperConfig, WhisperForConditionalGeneration

from hf_any3d import Any2PointForPointCloudClassification, GuidedAdapterConfig
from studies.donors import donors_folder
from studies.donors.checkpoints import WHISPER_PARTS, read_ctranslate2, whisper_state
from tests.tiny_encoders import clouds, train_step

FAMILIES = {"minilm": "bert", "smollm2": "llama", "dinov2": "dinov2", "whisper": "whisper"}


def ctranslate2(model):
    """Write a Whisper as CTranslate2 stores it: float16, with keys, queries and values together."""
    state, variables = model.model.state_dict(), {"decoder/num_heads": torch.tensor(2, dtype=torch.int16)}
    for tower in ("encoder", "decoder"):
        layers = {name.split(".")[2] for name in state if name.startswith(f"{tower}.layers.")}
        for part, modules in WHISPER_PARTS.items():
            for layer in sorted(layers) if "/" in part else [None]:
                place = "" if layer is None else f"layers.{layer}."
                for kind in ("weight", "bias"):
                    names = [f"{tower}.{place}{module}.{kind}" for module in modules]
                    if names[0] in state or names[-1] in state:
                        # Keys have no bias, and zeros stand for it.
                        like = state[names[-1]]
                        value = torch.cat([state.get(name, torch.zeros_like(like)) for name in names])
                        other = {"weight": "gamma", "bias": "beta"}[kind] if "norm" in part else kind
                        other = "encodings" if part == "position_encodings" else other
                        path = f"{tower}/{part}" if layer is None else f"{tower}/layer_{layer}/{part}"
                        variables[f"{path}/{other}"] = value.half()

    def text(value):
        return struct.pack("<H", len(value) + 1) + value.encode() + b"\0"

    data = struct.pack("<I", 6) + text("WhisperSpec") + struct.pack("<II", 3, len(variables))
    for name, value in variables.items():
        raw, code = value.numpy().tobytes(), {torch.int16: 2, torch.float16: 4}[value.dtype]
        data += text(name) + struct.pack(f"<B{value.ndim}I", value.ndim, *value.shape)
        data += struct.pack("<BI", code, len(raw)) + raw
    return data + struct.pack("<I", 0)


def test_a_ctranslate2_whisper_becomes_one_of_transformers():
    config = WhisperConfig(
        d_model=16,
        vocab_size=60,
        encoder_layers=2,
        decoder_layers=2,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
        encoder_ffn_dim=24,
        decoder_ffn_dim=24,
        pad_token_id=0,
    )
    model = WhisperForConditionalGeneration(config)
    expected = model.half().state_dict()
    state = whisper_state(read_ctranslate2(ctranslate2(model)))
    assert set(state) == set(expected) - {"proj_out.weight"}
    assert all(torch.equal(state[name], expected[name].float()) for name in state)


@pytest.mark.parametrize("name", FAMILIES)
def test_a_model_around_a_donor_is_trained_and_opens_again(name, tmp_path):
    folder = donors_folder() / name
    if not folder.is_dir():
        pytest.skip(f"{folder} is missing: make donors")
    torch.manual_seed(0)
    build = Any2PointForPointCloudClassification.from_encoder_pretrained
    model = build(folder, num_layers=2, num_labels=3, tokenizer_neighbors=8, num_tokens=16)
    assert model.any2point.family.model_types == (FAMILIES[name],)
    adapted = get_peft_model(model, GuidedAdapterConfig.light())
    frozen = {key: value.clone() for key, value in model.any2point.encoder.state_dict().items() if "guided" not in key}
    train_step(adapted)
    assert all(torch.equal(value, model.any2point.encoder.state_dict()[key]) for key, value in frozen.items())
    adapted.eval().save_pretrained(tmp_path)
    again = Any2PointForPointCloudClassification.from_pretrained(tmp_path)
    with torch.no_grad():
        logits = adapted(points=clouds()).logits
        assert logits.isfinite().all() and torch.equal(again(clouds()).logits, logits)
