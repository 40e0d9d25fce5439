import pickle

import pytest
import torch
from accelerate import cpu_offload
from transformers import AutoConfig, AutoModel

from hf_any3d.modeling.encoders import (
    LayerPass,
    TokenPlaces,
    UnsupportedEncoder,
    composite_checkpoints,
    encoder_settings,
    find_family,
    hidden_of,
)
from tests.errors import raises
from tests.tiny_encoders import ENCODER_TYPES, HIDDEN, LAYERS, random_encoder, saved_encoder, tiny_config, tiny_model

ALL = list(ENCODER_TYPES)


@pytest.mark.slow
@pytest.mark.parametrize("model_type", ALL)
def test_paths_of_a_family_exist_in_its_encoders(model_type):
    family = find_family(tiny_config(model_type))
    encoder = random_encoder(tiny_config(model_type))
    layers = family.layers_of(encoder)
    assert isinstance(layers, torch.nn.ModuleList) and len(layers) == LAYERS
    for layer in layers:
        assert isinstance(layer.get_submodule(family.branch), torch.nn.Module)
    for path in (family.input_norm, family.final_norm):
        norm = family.norm_of(encoder, path)
        assert norm is not None or path is None or callable(path)
        assert norm is None or norm.weight.shape == (HIDDEN,)
    table = family.positions(encoder)
    if table.weight is not None:
        assert table.weight.shape[1] == HIDDEN and table.rows * table.columns > 8
    elif table.kind == "plane":
        assert (table.rows, table.columns) == (4, 4)
    if family.class_token is not None:
        assert family.class_token(encoder).shape == (HIDDEN,)


@pytest.mark.slow
@pytest.mark.parametrize("model_type", ALL)
def test_branch_is_the_last_term_that_a_layer_adds(model_type):
    # The branch passes through one residual sum only: in pre-norm layers, a constant added to the branch is added
    # to the output.
    family = find_family(tiny_config(model_type))
    encoder = random_encoder(tiny_config(model_type))
    layers = family.layers_of(encoder)
    table = family.positions(encoder)
    size = (table.rows, table.columns or 9)
    entry = torch.rand(2, 6, 4, 1 if table.kind == "line" else 2) * (min(size) - 1)
    tokens, places = torch.randn(2, 5, HIDDEN), TokenPlaces.with_class_token(entry, *size)
    inputs = next(iter(family.layer_inputs(LayerPass(encoder, layers, tokens, None, places, "mean_angle"))))
    branch = layers[0].get_submodule(family.branch)
    with torch.no_grad():
        before = hidden_of(layers[0](tokens, **inputs))
        hook = branch.register_forward_hook(lambda module, args, out: out + 0.5)
        shifted = hidden_of(layers[0](tokens, **inputs))
        hook.remove()
        branch.register_forward_hook(lambda module, args, out: out.flip(-1))
        assert not torch.allclose(hidden_of(layers[0](tokens, **inputs)), before, atol=1e-3)
    if family.norm_of(encoder, family.final_norm) is not None:
        # BEiT scales the channels of its branch before it adds it.
        scale = getattr(layers[0], "lambda_2", None)
        expected = torch.full_like(before, 0.5) * (1 if scale is None else scale)
        torch.testing.assert_close(shifted - before, expected)
    else:
        # Post-norm layers remove a shift that is equal in all channels.
        torch.testing.assert_close(shifted, before, atol=1e-5, rtol=1e-5)


def test_a_family_pickles_by_name():
    assert pickle.loads(pickle.dumps(find_family(tiny_config("bert")))) is find_family(tiny_config("bert"))


@pytest.mark.parametrize(
    ("model_type", "examples"), [("mamba", "bert, llama and qwen3"), ("swin", "vit, dinov2 and clip_vision_model")]
)
def test_a_refusal_names_three_encoders_of_the_same_modality(model_type, examples):
    with raises(UnsupportedEncoder, naming=examples):
        find_family(AutoConfig.for_model(model_type))


@pytest.mark.parametrize(
    ("model_type", "settings", "reason"),
    [
        ("electra", {"embedding_size": 16}, "its words have 16 channels and are normed or projected together"),
        ("deberta-v2", {"conv_kernel_size": 3}, "a convolution over neighboring words"),
        ("deberta-v2", {"conv_kernel_size": 1}, "a convolution over neighboring words"),
        ("deberta-v2", {"relative_attention": False}, "relative_attention=False; expected True"),
        ("dpt", {"is_hybrid": True}, "its layers convolve neighboring tokens"),
    ],
)
def test_unsupported_settings_are_refused_with_the_reason(model_type, settings, reason):
    find_family(tiny_config(model_type))
    with pytest.raises(UnsupportedEncoder, match=reason):
        find_family(tiny_config(model_type, **settings))


@pytest.mark.parametrize("tower", [None, "audio", "txt"])
def test_composite_checkpoint_requires_a_tower(tower):
    with pytest.raises(UnsupportedEncoder, match=f"tower={tower!r}, expected one of 'text', 'vision'"):
        tiny_model("clip", tower=tower)


@pytest.mark.slow
def test_unsupported_tower_of_a_composite_checkpoint_is_refused_with_the_reason():
    with raises(UnsupportedEncoder, naming="'clap_audio_model'"):
        tiny_model("clap", tower="audio")


def test_wrong_tower_is_refused():
    with raises(UnsupportedEncoder, naming="tower='vision' does not fit: 'bert'"):
        tiny_model("bert", tower="vision")
    assert tiny_model("bert", tower="text").config.encoder_tower == "text"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("checkpoint", "tower"),
    [(c, t) for c, towers in composite_checkpoints().items() for t in towers if (c, t) != ("clap", "audio")],
)
def test_towers_of_a_composite_checkpoint_have_its_weights(checkpoint, tower, tmp_path):
    model = tiny_model(checkpoint, tower=tower)
    assert model.config.encoder_config.model_type == f"{checkpoint}_{tower}_model"
    full = AutoModel.from_pretrained(saved_encoder(checkpoint))
    expected = full.get_submodule(f"{tower}_model").state_dict()
    found = model.any2point.encoder.state_dict()
    assert found and all(torch.equal(tensor, expected[name]) for name, tensor in found.items())
    model.save_pretrained(tmp_path)
    again = type(model).from_pretrained(tmp_path).any2point.encoder.state_dict()
    assert all(torch.equal(tensor, found[name]) for name, tensor in again.items())


@pytest.mark.parametrize("count", [0, 3, -1])
def test_invalid_number_of_layers_is_refused(count):
    with pytest.raises(ValueError, match=rf"num_layers={count}; expected 1 to {LAYERS}"):
        encoder_settings(saved_encoder("bert"), None, None, count)


@pytest.mark.parametrize("model_type", ["bert", "vit"])
def test_positions_are_read_from_offloaded_encoders(model_type):
    encoder, family = random_encoder(tiny_config(model_type)), find_family(tiny_config(model_type))
    expected = family.positions_of(encoder).weight.detach().clone()
    cpu_offload(encoder, execution_device="cpu")
    assert torch.equal(family.positions_of(encoder).weight, expected)
    assert all(parameter.is_meta for parameter in encoder.parameters())
