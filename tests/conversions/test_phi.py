"""Phi in each of its released layouts."""

import json

import pytest
import torch
from safetensors.torch import save_file
from transformers import AutoConfig, AutoModelForCausalLM, PhiConfig, PhiForCausalLM

from hf_any3d.conversions import convert_minigpt3d_parts
from hf_any3d.conversions.minigpt3d.names import convert_phi_state_dict
from tests.errors import raises

HEADS = 3
SIZES = {"vocab_size": 20, "hidden_size": 48, "intermediate_size": 32, "num_hidden_layers": 2}
TODAY = {
    "model_type": "phi",
    **SIZES,
    "num_attention_heads": HEADS,
    "partial_rotary_factor": 0.5,
    "hidden_act": "gelu",
}
FIRST = {
    "model_type": "phi-msft",
    "vocab_size": 20,
    "n_embd": 48,
    "n_inner": 32,
    "n_layer": 2,
    "n_head": HEADS,
    "n_head_kv": None,
    "rotary_dim": 8,
    "n_positions": 2048,
    "activation_function": "gelu",
    "layer_norm_epsilon": 1e-5,
}


@pytest.fixture(scope="module")
def phi():
    """A Phi of transformers with norms of queries and keys, which the converted one always has."""
    torch.manual_seed(0)
    model = PhiForCausalLM(PhiConfig(**TODAY, qk_layernorm=True)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.1)
        for layer in model.model.layers:
            for norm in (layer.self_attn.q_layernorm, layer.self_attn.k_layernorm):
                norm.weight.fill_(1.0)
                norm.bias.zero_()
    return model


def today(phi):
    return {
        name: tensor for name, tensor in phi.state_dict().items() if "q_layernorm" not in name and "k_l" not in name
    }


def fused(phi, by_head: bool, names: tuple[tuple[str, str], ...] = ()):
    """Queries, keys and values in one layer."""
    state = {}
    for name, tensor in today(phi).items():
        if "self_attn.q_proj." in name:
            stacked = torch.stack(
                [today(phi)[name.replace("q_proj", part)] for part in ("q_proj", "k_proj", "v_proj")]
            )
            heads = stacked.unflatten(1, (HEADS, -1))  # (3, heads, head_dim, …)
            name = name.replace("q_proj", "query_key_value")
            tensor = (heads.transpose(0, 1) if by_head else heads).flatten(0, 2)
        elif "k_proj" in name or "v_proj" in name:
            continue
        for before, after in names:
            name = name.replace(before, after)
        state[name] = tensor.contiguous()
    return state


def first(phi):
    """Microsoft's first layout."""
    names = (
        ("lm_head.", "lm_head.linear."),
        ("model.final_layernorm", "lm_head.ln"),
        ("model.embed_tokens", "transformer.embd.wte"),
        ("model.layers", "transformer.h"),
        ("input_layernorm", "ln"),
        ("self_attn.query_key_value", "mixer.Wqkv"),
        ("self_attn.dense", "mixer.out_proj"),
    )
    tables = {f"transformer.h.{layer}.mixer.rotary_emb.inv_freq": torch.ones(4) for layer in range(2)}
    return fused(phi, by_head=False, names=names) | tables


LAYOUTS = {"today": (TODAY, today), "by head": (TODAY, lambda phi: fused(phi, by_head=True)), "first": (FIRST, first)}


@pytest.fixture
def write(tmp_path):
    def write_to(config, state, several=False):
        directory = tmp_path / "Phi_2"
        directory.mkdir()
        (directory / "config.json").write_text(json.dumps(config))
        if several:
            names = sorted(state)
            places = {name: f"pytorch_model-{number % 2}.bin" for number, name in enumerate(names)}
            for file in set(places.values()):
                torch.save({name: state[name] for name in names if places[name] == file}, directory / file)
            (directory / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": places}))
        else:
            save_file(state, directory / "model.safetensors")
        return directory

    return write_to


@pytest.mark.slow
@pytest.mark.parametrize("several", [False, True], ids=["one file", "several files"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_all_layouts_keep_their_attention(phi, write, tmp_path, layout, several):
    config, state_of = LAYOUTS[layout]
    facts = convert_minigpt3d_parts(tmp_path / "out", language_model=write(config, state_of(phi), several))
    found = AutoModelForCausalLM.from_pretrained(tmp_path / "out" / "language_model")
    assert facts["parameters"] == {"language_model": found.num_parameters()}
    hidden = torch.rand(1, 5, 48)
    rotary = phi.model.rotary_emb(hidden, torch.arange(5)[None])
    with torch.no_grad():
        for ours, theirs in zip(found.model.layers, phi.model.layers, strict=True):
            expected = theirs.self_attn(hidden, rotary, None)[0]
            torch.testing.assert_close(ours.self_attn(hidden, rotary, None)[0], expected, rtol=0, atol=1e-6)
            torch.testing.assert_close(ours.mlp(hidden), theirs.mlp(hidden), rtol=0, atol=1e-6)
            assert torch.equal(ours.post_layernorm.weight, torch.ones(48))
            assert torch.equal(ours.input_layernorm.bias, theirs.input_layernorm.bias)
    assert torch.equal(found.lm_head.bias, phi.lm_head.bias)
    assert torch.equal(found.model.final_layernorm.weight, phi.model.final_layernorm.weight)
    read = AutoConfig.from_pretrained(tmp_path / "out" / "language_model")
    assert (read.hidden_act, read.rope_parameters["partial_rotary_factor"]) == ("gelu", 0.5)


def test_a_converted_language_model_can_be_converted_again(phi, write, tmp_path):
    convert_minigpt3d_parts(tmp_path / "one", language_model=write(TODAY, today(phi)))
    convert_minigpt3d_parts(tmp_path / "two", language_model=tmp_path / "one" / "language_model")
    one, two = (
        AutoModelForCausalLM.from_pretrained(tmp_path / name / "language_model").state_dict()
        for name in ("one", "two")
    )
    assert one.keys() == two.keys() and all(torch.equal(tensor, two[name]) for name, tensor in one.items())


def test_norms_in_a_file_are_all_there_or_none(phi):
    state = today(phi) | {"model.layers.0.post_layernorm.weight": torch.ones(48)}
    converted = convert_phi_state_dict(state, HEADS)
    norms = {name for name in converted if "q_layernorm" in name or "post_layernorm" in name}
    assert norms == {
        "model.layers.0.post_layernorm.weight",
        "model.layers.1.post_layernorm.weight",
        "model.layers.1.self_attn.q_layernorm.weight",
        "model.layers.1.self_attn.q_layernorm.bias",
    }


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model_type": "llama"}, "config.json: model_type is 'llama'; expected one of phi, phi-msft, normed_phi"),
        ({"num_key_value_heads": 1}, "config.json: num_key_value_heads=1; expected num_attention_heads=3"),
        ({"hidden_size": 24}, "of another shape: lm_head.weight is (20, 48), expected (20, 24)"),
        ({"num_attention_heads": 5}, "[3, 5, -1]"),
    ],
)
def test_configs_that_do_not_fit_are_refused(phi, write, tmp_path, change, message):
    directory = write(TODAY | change, today(phi))
    with pytest.raises(ValueError) as caught:
        convert_minigpt3d_parts(tmp_path / "out", language_model=directory)
    assert message in str(caught.value) and str(directory) in str(caught.value)
    assert [path.name for path in tmp_path.iterdir()] == ["Phi_2"]


def test_a_missing_key_projection_is_named(phi, write, tmp_path):
    state = {name: tensor for name, tensor in today(phi).items() if name != "model.layers.1.self_attn.k_proj.bias"}
    with raises(ValueError, naming="self_attn"):
        convert_minigpt3d_parts(tmp_path / "out", language_model=write(TODAY, state))


def test_files_that_an_index_names_must_be_there(phi, write, tmp_path):
    directory = write(TODAY, today(phi), several=True)
    (directory / "pytorch_model-1.bin").unlink()
    with raises(FileNotFoundError, naming="pytorch_model-1.bin"):
        convert_minigpt3d_parts(tmp_path / "out", language_model=directory)
    (directory / "pytorch_model.bin.index.json").unlink()
    with raises(FileNotFoundError, naming="model.safetensors"):
        convert_minigpt3d_parts(tmp_path / "out", language_model=directory)
