"""A small version of ImageBind's file, converted to a directory that AutoModel opens."""

import pytest
import torch
from transformers import AutoModel

from hf_any3d.conversions import convert_imagebind_audio
from hf_any3d.modeling.imagebind_audio import ImageBindAudioConfig
from tests.reference.fill import fill
from tests.tiny_encoders import random_encoder, tiny_config

AUDIO = "modality_trunks.audio.blocks.{}."


def original(config: ImageBindAudioConfig) -> dict[str, torch.Tensor]:
    """An ImageBind checkpoint under the authors' names, with some tensors of another modality."""
    width, wide = config.hidden_size, config.intermediate_size
    rows, columns = config.patch_grid
    shapes = {
        "modality_preprocessors.audio.cls_token": (1, 1, width),
        "modality_preprocessors.audio.pos_embedding_helper.pos_embed": (1, 1 + rows * columns, width),
        "modality_preprocessors.audio.rgbt_stem.proj.weight": (width, 1, config.patch_size, config.patch_size),
        "modality_preprocessors.audio.rgbt_stem.norm_layer.weight": (width,),
        "modality_preprocessors.audio.rgbt_stem.norm_layer.bias": (width,),
        "modality_heads.audio.0.weight": (width,),
        "modality_heads.audio.0.bias": (width,),
        "modality_heads.audio.2.weight": (20, width),
        "modality_postprocessors.audio.1.log_logit_scale": (1,),
        "modality_trunks.vision.blocks.0.norm_1.weight": (width,),
        "modality_heads.text.proj.0.weight": (width,),
    }
    for number in range(config.num_hidden_layers):
        block = AUDIO.format(number)
        shapes |= {
            block + "attn.in_proj_weight": (3 * width, width),
            block + "attn.in_proj_bias": (3 * width,),
            block + "attn.bias_k": (1, 1, width),
            block + "attn.bias_v": (1, 1, width),
            block + "attn.out_proj.weight": (width, width),
            block + "attn.out_proj.bias": (width,),
            block + "mlp.fc1.weight": (wide, width),
            block + "mlp.fc1.bias": (wide,),
            block + "mlp.fc2.weight": (width, wide),
            block + "mlp.fc2.bias": (width,),
        }
        shapes |= {block + f"norm_{norm}.{part}": (width,) for norm in (1, 2) for part in ("weight", "bias")}
    return {name: torch.from_numpy(fill(name, shape)) for name, shape in shapes.items()}


@pytest.fixture
def config():
    return tiny_config("imagebind_audio")


def test_every_audio_tensor_is_converted(config, tmp_path):
    state = original(config)
    torch.save(state, tmp_path / "imagebind.pth")
    facts = convert_imagebind_audio(tmp_path / "imagebind.pth", tmp_path / "out", config=config)
    model = AutoModel.from_pretrained(tmp_path / "out")
    assert facts["parameters"] == model.num_parameters()
    attention = model.layers[1].attention
    for number, linear in enumerate((attention.q_proj, attention.k_proj, attention.v_proj)):
        expected = state[AUDIO.format(1) + "attn.in_proj_weight"].chunk(3)[number]
        assert torch.equal(linear.weight, expected)
    assert torch.equal(attention.bias_k.flatten(), state[AUDIO.format(1) + "attn.bias_k"].flatten())
    assert torch.equal(model.layernorm.bias, state["modality_heads.audio.0.bias"])
    # Every tensor that differs from a new model came from the file.
    ours = {name: tensor.flatten() for name, tensor in model.state_dict().items()}
    fresh = random_encoder(config, seed=5).state_dict()
    assert not [name for name, tensor in ours.items() if torch.equal(tensor, fresh[name].flatten())]
    total = sum(t.numel() for name, t in state.items() if "audio" in name and "audio.2" not in name)
    assert sum(tensor.numel() for tensor in ours.values()) == total - 1, "all but the scale of the logits"
