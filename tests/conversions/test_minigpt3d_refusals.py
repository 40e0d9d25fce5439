"""MiniGPT-3D's files that are damaged, changed, of another stage or swapped are refused."""

import json

import pytest
import torch
from typer.testing import CliRunner

from hf_any3d.cli import app
from hf_any3d.conversions import convert_minigpt3d
from hf_any3d.modeling.minigpt3d import MiniGPT3DConfig
from tests.chat.tiny_tokenizers import byte_tokenizer, character_tokenizer
from tests.conversions.minigpt3d_originals import Originals, options
from tests.turns import ALL_PAIRS


@pytest.fixture(scope="module")
def originals():
    return Originals()


@pytest.fixture
def given(originals, tmp_path):
    return originals.write(tmp_path / "in", 3, 4)


def refused(given, tmp_path):
    """The error message of the command, which must leave no files."""
    before = sorted(path.name for path in tmp_path.iterdir())
    result = CliRunner().invoke(app, ["convert", *options(given), "--output", str(tmp_path / "out")])
    assert result.exit_code == 1 and result.stderr.startswith("error: ")
    assert sorted(path.name for path in tmp_path.iterdir()) == before
    return result.stderr


def changed(path, change, key="model"):
    content = torch.load(path, weights_only=True)
    change(content[key])
    torch.save(content, path)


STAGE_3 = [
    # change of the file, message
    (lambda state: state.update({"ln_audio.weight": torch.ones(3)}), "no known part: ln_audio.weight"),
    (lambda state: state.pop("llama_proj2.bias"), "missing: bridge.projector.fc2.bias"),
    (
        lambda state: state.update({"Qformer.bert.embeddings.LayerNorm.weight": torch.ones(64)}),
        "left over: bridge.qformer.layernorm.weight",
    ),
    (
        lambda state: state.pop("llama_model.base_model.model.model.layers.1.post_layernorm.weight"),
        "missing: language_model.model.layers.1.post_layernorm.weight",
    ),
    (
        lambda state: state.update({"query_tokens": torch.ones(1, 7, 64)}),
        "bridge.experts.queries.0 is (7, 64), expected (6, 64)",
    ),
    (
        lambda state: state["point_encoder.norm.weight"].add_(1),
        "1 of 39 tensors differ: norm.weight; give the one that it was trained with",
    ),
    (lambda state: state.pop("point_encoder.norm.weight"), "missing: norm.weight"),
    (
        lambda state: state.update({"pc_encoder.encoder.first_conv.1.running_mean": torch.ones(8)}),
        "point_encoder.encoder.first_conv.1.running_mean: the file holds it twice, with different values",
    ),
]


@pytest.mark.slow
@pytest.mark.parametrize(("change", "message"), STAGE_3 if ALL_PAIRS else STAGE_3[::2])
def test_every_tensor_of_a_stage_is_accounted_for(given, tmp_path, change, message):
    changed(given["checkpoint"], change)
    error = refused(given, tmp_path)
    assert message in error and "stage_3.pth: " in error


@pytest.mark.slow
def test_a_file_of_the_starting_point_holds_what_images_have_trained(originals, given, tmp_path):
    del given["second_checkpoint"]
    content = originals.stage(0)
    bias = "llama_model.base_model.model.model.layers.0.input_layernorm.bias"
    content["model"] |= {"Qformer.bert.embeddings.position_ids": torch.arange(512)[None]}
    torch.save(content, given["checkpoint"])
    facts = convert_minigpt3d(tmp_path / "in" / "out", **given)
    layers = originals.manifest["constructor"]["llm"]["num_hidden_layers"]
    assert facts["tensors"][str(given["checkpoint"])] == (8 * layers + 5, {"Qformer": 1})
    assert MiniGPT3DConfig.from_pretrained(tmp_path / "in" / "out").image_priors
    lora = bias.replace("input_layernorm.bias", "self_attn.dense.lora_B.default.weight")
    for change, message in (
        (lambda state: state.update({bias: originals.state[bias]}), "left over: language_model"),
        (lambda state: state[lora].zero_(), "low_rank_b is 0"),
        (lambda state: state.update({lora.replace(".default", ""): state.pop(lora)}), "missing: language_model"),
        (lambda state: state.pop("llama_proj.bias"), "missing: bridge.projector.fc1.bias"),
    ):
        torch.save(content, given["checkpoint"])
        changed(given["checkpoint"], change)
        assert message in refused(given, tmp_path)


def test_stages_are_put_in_order_and_must_be_complete(given, tmp_path):
    swapped = given | {"checkpoint": given["second_checkpoint"], "second_checkpoint": given["checkpoint"]}
    convert_minigpt3d(tmp_path / "ordered", **given)
    convert_minigpt3d(tmp_path / "swapped", **swapped)
    weights = [(tmp_path / name / "model.safetensors").read_bytes() for name in ("ordered", "swapped")]
    assert weights[0] == weights[1]
    alone = {name: path for name, path in given.items() if name != "second_checkpoint"}
    first = tmp_path / "in" / "stage_1.pth"
    torch.save(Originals().stage(1), first)
    assert "stage_1.pth: 'bridge.projector.fc1.weight' is missing" in refused(alone | {"checkpoint": first}, tmp_path)


@pytest.mark.slow
def test_swapped_files_are_refused(given, tmp_path):
    def message(**files):
        with pytest.raises((ValueError, OSError)) as caught:
            convert_minigpt3d(tmp_path / "out", **given | files)
        return str(caught.value)

    for option, other in (("point_encoder", "qformer"), ("qformer", "point_encoder"), ("checkpoint", "point_encoder")):
        assert f"{given[other]}: no state dict; expected one under" in message(**{option: given[other]})
    assert "no known part: llama_" in message(qformer=given["checkpoint"])
    unknown = "blip2.pth: the checkpoint holds tensors that belong to no known part: t5_proj"
    assert unknown in message(checkpoint=given["qformer"])
    assert "config.json" in message(language_model=tmp_path / "in")


@pytest.mark.slow
def test_a_tokenizer_is_required_and_may_be_elsewhere(given, tmp_path):
    other = tmp_path / "in" / "tokenizer"
    other.mkdir()
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (given["language_model"] / name).rename(other / name)
    error = refused(given, tmp_path)
    assert "Phi_2: no tokenizer; expected tokenizer.json or vocab.json, or give --tokenizer" in error
    (other / "tokenizer.json").write_text("{}")
    assert f"{other}: 'added_tokens' is missing" in refused(given | {"tokenizer": other}, tmp_path)
    byte_tokenizer().save_pretrained(other)
    assert "the tokenizer has 257 tokens; the language model takes at most 136" in refused(
        given | {"tokenizer": other}, tmp_path
    )
    character_tokenizer().save_pretrained(other)
    given = given | {"tokenizer": other}
    result = CliRunner().invoke(app, ["convert", *options(given), "--output", str(tmp_path / "out")])
    assert result.exit_code == 0, result.stderr
    assert json.loads((tmp_path / "out" / "config.json").read_text())["text_config"]["eos_token_id"] == 128


def test_other_dtypes_and_numbers_too_large_for_them_are_refused(given, tmp_path):
    assert "dtype is 'int8'; expected one of float32, bfloat16, float16" in refused(
        given | {"dtype": "int8"}, tmp_path
    )
    changed(given["checkpoint"], lambda state: state["llama_proj.weight"].fill_(1e6))
    error = refused(given | {"dtype": "float16"}, tmp_path)
    assert "bridge.projector.fc1.weight has numbers that float16 cannot hold; give --dtype bfloat16" in error


def test_widths_with_an_unknown_number_of_heads_are_refused(given, tmp_path):
    changed(given["point_encoder"], lambda state: state.update({"norm.weight": torch.ones(50)}), key="base_model")
    assert "point_model.pth: the number of attention heads is unknown" in refused(given, tmp_path)
