"""Small versions of MiniGPT-3D's files, converted to directories that from_pretrained opens."""

import json
import shutil

import numpy as np
import pytest
import torch
from huggingface_hub import ModelCard
from safetensors.torch import load_file, save_file
from transformers import AutoModel, AutoModelForCausalLM, AutoProcessor, AutoTokenizer
from typer.testing import CliRunner

from hf_any3d import AutoModelForPointCloudTextToText
from hf_any3d.chat import PUBLISHED_GENERATION
from hf_any3d.cli import app
from hf_any3d.conversions import convert_minigpt3d, convert_minigpt3d_parts
from hf_any3d.conversions.minigpt3d.names import convert_minigpt3d_state_dict
from hf_any3d.conversions.minigpt3d.parts import read_converted
from hf_any3d.modeling.minigpt3d import build_from_parts, names_in, set_stage, stage_names
from tests.conversions.minigpt3d_originals import Originals, options
from tests.errors import raises

QUESTION = [{"role": "user", "content": [{"type": "point_cloud"}, {"type": "text", "text": "What is this?"}]}]


@pytest.fixture(scope="module")
def originals():
    return Originals()


@pytest.fixture(scope="module")
def arguments(originals, tmp_path_factory):
    """All parts, and stages III and IV."""
    return originals.write(tmp_path_factory.mktemp("originals") / "all", 3, 4)


@pytest.fixture(scope="module")
def released(arguments, tmp_path_factory):
    """The directory of the complete model."""
    output = tmp_path_factory.mktemp("converted") / "minigpt3d"
    result = CliRunner().invoke(app, ["convert", *options(arguments), "--output", str(output)])
    assert result.exit_code == 0, result.stderr
    assert "stage_3.pth: stage II or III" in result.output and "stage_4.pth: stage IV" in result.output
    assert "no file has" not in result.output
    return output


@pytest.fixture(scope="module")
def model(released):
    return AutoModelForPointCloudTextToText.from_pretrained(released)


def parts_of(arguments):
    return {name: arguments[name] for name in ("point_encoder", "qformer", "language_model")}


@pytest.mark.slow
def test_every_tensor_of_the_released_program_is_in_the_model(originals, model):
    expected = convert_minigpt3d_state_dict(originals.state)
    added = {name for name in expected if name.endswith(("q_layernorm.bias", "k_layernorm.bias"))}
    names, own = names_in(model, expected), model.state_dict()
    assert set(names.values()) == own.keys()
    for name, tensor in expected.items():
        if name in added:  # Phi does not have them, and no stage trains them
            tensor = torch.zeros_like(tensor)
        assert torch.equal(own[names[name]], tensor), name
    assert model.config.use_query_experts and model.config.router == "sparse" and model.config.stage == 4


@pytest.mark.slow
def test_model_and_processor_answer_together(released, model):
    processor = AutoProcessor.from_pretrained(released)
    cloud = np.random.default_rng(0).random((300, 6), dtype=np.float32)
    batch = processor.apply_chat_template(
        QUESTION, point_clouds=[cloud], tokenize=True, chat_template="evaluation", return_tensors="pt"
    )
    assert (batch["input_ids"] == model.config.point_token_id).sum() == model.config.num_query_tokens == 6
    answer = model.generate(**batch, max_new_tokens=3, do_sample=False)
    assert answer.shape[1] == batch["input_ids"].shape[1] + 3
    assert processor.hide_inner_bos and set(processor.chat_template) == {"default", "training", "evaluation", "demo"}


@pytest.mark.slow
def test_start_and_end_tokens_are_those_of_the_tokenizer(released, model):
    assert json.loads((released / "config.json").read_text())["text_config"]["bos_token_id"] == 128
    generation = model.generation_config
    assert (generation.eos_token_id, generation.pad_token_id) == (128, 128)
    assert {name: getattr(generation, name) for name in PUBLISHED_GENERATION["demo"]} == PUBLISHED_GENERATION["demo"]


def test_card_names_license_files_and_what_differs(released):
    card = ModelCard.load(released / "README.md")
    assert card.data.license == "unknown" and card.data.pipeline_tag == "point-cloud-text-to-text"
    for text in ("result of stage IV.", "`stage_3.pth` (sha256:", "`model.safetensors` (sha256:", "hide_inner_bos"):
        assert text in card.text


@pytest.mark.slow
def test_further_query_sets_of_stage_three_are_those_of_blip2(originals, arguments, tmp_path):
    given = parts_of(arguments) | {"checkpoint": arguments["checkpoint"]}
    facts = convert_minigpt3d(tmp_path / "out", **given)
    model = AutoModelForPointCloudTextToText.from_pretrained(tmp_path / "out")
    assert facts["fresh"] == ["bridge.experts.queries", "bridge.experts.router"]
    assert not model.config.use_query_experts and len(model.bridge.experts.queries) == 8
    first, *others = model.bridge.experts.queries
    assert torch.equal(first, originals.state["query_tokens"][0])
    for queries in others:
        assert torch.equal(queries, originals.blip2_queries[0])
    assert len(set_stage(model, 4)) == 12


@pytest.mark.slow
@pytest.mark.parametrize("stages", [(0,), (0, 1)])
def test_training_can_start_from_a_converted_model(originals, tmp_path, stages):
    arguments = originals.write(tmp_path / "in", *stages)
    result = CliRunner().invoke(app, ["convert", *options(arguments), "--output", str(tmp_path / "out")])
    assert result.exit_code == 0, result.stderr
    model, state = AutoModelForPointCloudTextToText.from_pretrained(tmp_path / "out"), originals.state
    assert torch.equal(model.bridge.projector.fc1.weight, state["llama_proj.weight"])
    layer = model.language_model.model.layers[0]
    before = "llama_model.base_model.model.model.layers.0."
    assert torch.equal(layer.post_layernorm.weight, state[before + "post_layernorm.weight"])
    lora = layer.self_attn.query_key_value.low_rank_b
    assert torch.equal(lora, state[before + "self_attn.query_key_value.lora_B.default.weight"])
    # As training initializes it, without effect.
    query = model.bridge.qformer.encoder.layer[0].attention.attention.query
    assert query.low_rank_a.abs().min() > 0 and not query.low_rank_b.any()
    bound = query.in_features**-0.5
    assert 0.9 * bound < query.low_rank_a.abs().max() <= bound
    if 1 not in stages:
        weight, bias = (getattr(model.bridge.point_mlp.layers[0], name) for name in ("weight", "bias"))
        assert 0.8 < weight.std() / model.config.initializer_range < 1.2 and not bias.any()
    trained = torch.equal(model.bridge.point_mlp.layers[0].weight, state["point_2_Qformer_proj.0.weight"])
    assert trained == (1 in stages)
    assert ("bridge.point_mlp" in result.output.split("no file has")[1]) != trained
    warned = "**It has not been trained on point clouds yet**" in (tmp_path / "out" / "README.md").read_text()
    assert warned != trained
    for queries in model.bridge.experts.queries:
        assert torch.equal(queries, originals.blip2_queries[0])
    assert len(stage_names(model, 2)) > len(stage_names(model, 1)) == 4


def test_parts_open_alone_and_build_a_model(originals, arguments, tmp_path):
    given = parts_of(arguments)
    command = ["convert", *options(given), "--num-groups", "16", "--output", str(tmp_path / "parts")]
    result = CliRunner().invoke(app, command)
    assert result.exit_code == 0, result.stderr
    folders = {name: tmp_path / "parts" / name for name in given}
    for name, folder in folders.items():
        assert str(folder) in result.output, name
    encoder = AutoModel.from_pretrained(folders["point_encoder"])
    assert (encoder.config.num_groups, encoder.config.group_size) == (16, 32)
    assert encoder(torch.rand(1, 64, 6)).last_hidden_state.shape == (1, 17, 64)
    phi = AutoModelForCausalLM.from_pretrained(folders["language_model"])
    assert torch.equal(phi.lm_head.weight, originals.phi()["lm_head.weight"])
    assert phi.generation_config.eos_token_id == 128
    assert AutoTokenizer.from_pretrained(folders["language_model"])("ab")["input_ids"] == [97, 98]
    model = build_from_parts(*folders.values())
    assert torch.equal(model.bridge.experts.queries[7], originals.blip2_queries[0])
    theirs = originals.state["Qformer.bert.encoder.layer.1.output_query.dense.weight"]
    assert torch.equal(model.bridge.qformer.encoder.layer[1].output_query.dense.weight, theirs)


@pytest.fixture(scope="module")
def folders(arguments, tmp_path_factory):
    """The directories of the parts."""
    output = tmp_path_factory.mktemp("parts") / "parts"
    convert_minigpt3d_parts(output, **parts_of(arguments))
    return {name: output / name for name in parts_of(arguments)}


@pytest.mark.parametrize(
    ("part", "others"),
    [
        ("qformer", ("vision_model.embeddings.class_embedding", "language_projection.weight")),
        ("point_encoder", ("mask_token", "decoder.layers.0.norm.weight")),
    ],
)
def test_parts_are_taken_out_of_whole_models(folders, tmp_path, part, others):
    expected = load_file(folders[part] / "model.safetensors")
    shutil.copytree(folders[part], tmp_path / "whole")
    save_file(expected | {name: torch.ones(2) for name in others}, tmp_path / "whole" / "model.safetensors")
    assert read_converted(part, tmp_path / "whole").state.keys() == expected.keys()
    save_file(expected | {"another.weight": torch.ones(2)}, tmp_path / "whole" / "model.safetensors")
    with raises(ValueError, naming="another.weight"):
        read_converted(part, tmp_path / "whole")


@pytest.mark.slow
def test_converted_parts_are_stored(arguments, folders, released, model, tmp_path):
    command = ["convert", *options(arguments | folders)]
    result = CliRunner().invoke(app, [*command, "--output", str(tmp_path / "out")])
    assert result.exit_code == 0, result.stderr
    opened = AutoModelForPointCloudTextToText.from_pretrained(tmp_path / "out")
    own = opened.state_dict()
    assert own.keys() == model.state_dict().keys()
    assert all(torch.equal(own[name], tensor) for name, tensor in model.state_dict().items())
    sizes = [(folder / "model.safetensors").stat().st_size for folder in (tmp_path / "out", released)]
    assert opened.config.parts is None and sizes[0] == sizes[1]


@pytest.mark.slow
def test_language_model_is_stored_until_a_stage_trains_its_norms(originals, arguments, folders, tmp_path):
    torch.save(originals.stage(0), tmp_path / "start.pth")
    convert_minigpt3d(tmp_path / "out", **folders, checkpoint=tmp_path / "start.pth")
    model = AutoModelForPointCloudTextToText.from_pretrained(tmp_path / "out")
    name = "model.layers.0.post_layernorm.weight"
    theirs = originals.state["llama_model.base_model.model." + name]
    assert torch.equal(model.language_model.get_parameter(name), theirs)
    set_stage(model, 1)
    model.save_pretrained(tmp_path / "stage1")
    model = AutoModelForPointCloudTextToText.from_pretrained(tmp_path / "stage1")
    assert torch.equal(model.language_model.get_parameter(name), theirs)


@pytest.mark.slow
def test_the_user_can_name_stage_two(arguments, folders, tmp_path):
    first = folders | {"checkpoint": arguments["checkpoint"]}
    convert_minigpt3d(tmp_path / "out", **first, stage=2)
    assert AutoModelForPointCloudTextToText.from_pretrained(tmp_path / "out").config.stage == 2
    assert "is the result of stage II." in (tmp_path / "out" / "README.md").read_text()
    with raises(ValueError, naming="stage=2"):
        convert_minigpt3d(tmp_path / "other", **arguments, stage=2)
    with raises(ValueError, naming="point_encoder"):
        convert_minigpt3d(tmp_path / "other", **first, num_groups=8)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_numbers_are_stored_in_the_requested_dtype(arguments, model, tmp_path, dtype):
    convert_minigpt3d(tmp_path / "out", **arguments, dtype=dtype)
    stored = AutoModelForPointCloudTextToText.from_pretrained(tmp_path / "out")
    for (name, ours), full in zip(stored.state_dict().items(), model.state_dict().values(), strict=True):
        assert ours.dtype == (getattr(torch, dtype) if full.is_floating_point() else torch.int64), name
        assert torch.equal(ours, full.to(ours.dtype)), name


@pytest.mark.slow
def test_frozen_copies_in_half_precision_match_the_encoder(originals, arguments, tmp_path):
    content = originals.stage(3)
    halved = {n: t.half() for n, t in content["model"].items() if n.startswith("point_encoder.") and "blocks" in n}
    torch.save(content | {"model": content["model"] | halved}, tmp_path / "stage_3.pth")
    convert_minigpt3d(tmp_path / "out", **parts_of(arguments), checkpoint=tmp_path / "stage_3.pth")
    model = AutoModelForPointCloudTextToText.from_pretrained(tmp_path / "out")
    weight = originals.state["pc_encoder.blocks.blocks.0.attn.qkv.weight"]
    assert torch.equal(model.point_encoder.blocks.layers[0].attention.qkv.weight, weight)
