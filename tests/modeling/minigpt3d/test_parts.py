"""Building models from pretrained parts, and saving and loading them without these parts."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import Blip2Config, Blip2ForConditionalGeneration

from hf_any3d import AutoModelForPointCloudTextToText, MiniGPT3DConfig, MiniGPT3DForConditionalGeneration
from hf_any3d.modeling.minigpt3d import build_from_parts, merge_lora, set_stage, trained_names
from hf_any3d.modeling.minigpt3d.modeling_minigpt3d import QueriesAndQFormer
from hf_any3d.modeling.pretrained_parts.sources import EncoderMismatchError
from tests.errors import raises
from tests.modeling.minigpt3d.test_minigpt3d import CLOUD, ids, with_lora
from tests.modeling.minigpt3d.tiny_model import PLACES, POINT_TOKEN, clouds, tiny_config, tiny_model
from tests.turns import some

CONFIG = {"point_mlp_widths": (18,), "num_query_experts": 4, "router_width": 8, "projector_width": 24}
LORA = {"text_lora": {"r": 4}, "qformer_lora": {"r": 2, "target_modules": ["query", "key", "value"]}}
PARTS = ("point_encoder", "qformer", "language_model")
SETTINGS = {"point_token_id": POINT_TOKEN, **CONFIG, **LORA}


def blip2() -> Blip2ForConditionalGeneration:
    """Make a tiny BLIP-2 model."""
    vision = {"hidden_size": 20, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8}
    qformer = tiny_config().qformer_config.to_dict() | {"hidden_dropout_prob": 0.1}
    text = {"model_type": "opt", "vocab_size": 24, "hidden_size": 16, "ffn_dim": 8, "word_embed_proj_dim": 16}
    text |= {"num_hidden_layers": 1, "num_attention_heads": 2}
    model = Blip2ForConditionalGeneration(
        Blip2Config(
            vision_config=vision | {"image_size": 8, "patch_size": 4},
            qformer_config=qformer,
            text_config=text,
            num_query_tokens=PLACES,
        )
    )
    model.query_tokens.data.normal_()
    return model


def test_parts_are_opened_from_their_repositories(tmp_path):
    torch.manual_seed(0)
    source, released = tiny_model(text_lora=None, qformer_lora=None), blip2()
    source.point_encoder.save_pretrained(tmp_path / "point_encoder")
    source.language_model.save_pretrained(tmp_path / "language_model")
    released.save_pretrained(tmp_path / "blip2")
    names = (tmp_path / "point_encoder", tmp_path / "blip2", tmp_path / "language_model")
    model = build_from_parts(*names, point_token_id=POINT_TOKEN, **CONFIG, **LORA)

    for queries in model.bridge.experts.queries:
        assert torch.equal(queries, released.query_tokens[0])
    ours, theirs = model.bridge.qformer.encoder.layer[0], released.qformer.encoder.layer[0]
    assert torch.equal(ours.attention.attention.query.linear.weight, theirs.attention.attention.query.weight)
    assert torch.equal(ours.output_query.LayerNorm.weight, theirs.output_query.LayerNorm.weight)
    assert model.config.qformer_config.hidden_dropout_prob == 0.0
    assert {part.config._attn_implementation for part in (model.point_encoder, model.language_model)} == {"sdpa"}
    points = torch.stack(clouds(40))
    assert torch.equal(model.encode(points), source.encode(points))
    words = torch.tensor([[2, 3, 4]])
    assert torch.equal(model(words).logits, source(words).logits)


def test_the_q_former_may_be_untrained():
    source = tiny_model(text_lora=None, qformer_lora=None)
    config = CONFIG | {"qformer_config": tiny_config().qformer_config, "num_query_tokens": PLACES}
    model = build_from_parts(source.point_encoder, None, source.language_model, point_token_id=POINT_TOKEN, **config)
    assert model.language_model is source.language_model and model.point_encoder is source.point_encoder
    assert model.get_point_features(clouds(40)).shape == (1, PLACES, 16)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Directories of three parts."""
    torch.manual_seed(0)
    folder, source = tmp_path_factory.mktemp("parts"), tiny_model(text_lora=None, qformer_lora=None)
    source.point_encoder.save_pretrained(folder / "point_encoder")
    source.language_model.save_pretrained(folder / "language_model")
    blip2().save_pretrained(folder / "qformer")
    return folder


def built(folder, stage: int = 3) -> MiniGPT3DForConditionalGeneration:
    """A model around the parts, as after a stage of training."""
    torch.manual_seed(1)
    model = build_from_parts(*(folder / part for part in PARTS), **SETTINGS)
    set_stage(model, stage)
    for name in trained_names(model):
        model.get_parameter(name).data.normal_(std=0.3)
    return model.eval()


def answers(model: MiniGPT3DForConditionalGeneration) -> torch.Tensor:
    with torch.no_grad():
        return model(ids([2, *CLOUD, 5, 6]), points=clouds(40)).logits


@pytest.mark.usefixtures("directories_are_names")
@pytest.mark.slow
@pytest.mark.parametrize("stage", some([1, 3, 4], left_out=[1, 4]))
def test_weights_of_parts_are_not_saved_and_are_loaded_again(folder, tmp_path, stage):
    model = built(folder, stage)
    model.save_pretrained(tmp_path)
    stored = load_file(tmp_path / "model.safetensors")
    assert stored.keys() == model.state_dict().keys() - model.names_stored_elsewhere()
    assert {f"minigpt3d.{name}" for name in trained_names(model)} <= stored.keys()
    opened, info = AutoModelForPointCloudTextToText.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(info.values()) and not opened.training
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, opened.state_dict()[name]), name
    assert torch.equal(answers(opened), answers(model))
    assert not any(parameter.requires_grad for parameter in opened.point_encoder.parameters())


@pytest.mark.slow
def test_loading_options_reach_all_parts(folder, tmp_path):
    built(folder).save_pretrained(tmp_path)
    halves = MiniGPT3DForConditionalGeneration.from_pretrained(
        tmp_path, dtype="bfloat16", attn_implementation="eager", device_map="cpu", router_top_k=1
    )
    assert {tensor.dtype for tensor in halves.parameters()} == {torch.bfloat16}
    parts = (halves.point_encoder, halves.language_model, halves.bridge.qformer)
    assert {part.config._attn_implementation for part in parts} == {"eager"}
    assert halves.config.router_top_k == 1 and answers(halves).dtype == torch.bfloat16


@pytest.mark.slow
def test_a_sharded_model_loads_the_same(folder, tmp_path):
    model = built(folder)
    model.save_pretrained(tmp_path, max_shard_size="8KB")
    assert len(list(tmp_path.glob("model-*.safetensors"))) > 1
    assert torch.equal(answers(MiniGPT3DForConditionalGeneration.from_pretrained(tmp_path)), answers(model))


@pytest.mark.usefixtures("directories_are_names")
@pytest.mark.slow
def test_parts_with_other_weights_are_refused(folder, tmp_path):
    for part in PARTS:
        shutil.copytree(folder / part, tmp_path / part)
    built(tmp_path).save_pretrained(tmp_path / "model")
    file = tmp_path / "language_model" / "model.safetensors"
    save_file({name: tensor + 1 for name, tensor in load_file(file).items()}, file, metadata={"format": "pt"})
    with raises(EncoderMismatchError, naming="language_model"):
        MiniGPT3DForConditionalGeneration.from_pretrained(tmp_path / "model")


@pytest.mark.slow
def test_parts_may_have_moved(folder, tmp_path):
    for part in PARTS:
        shutil.copytree(folder / part, tmp_path / "first" / part)
    model = built(tmp_path / "first")
    model.save_pretrained(tmp_path / "model")
    (tmp_path / "first").rename(tmp_path / "second")
    config = MiniGPT3DConfig.from_pretrained(tmp_path / "model")
    for part in PARTS:
        config.parts[part]["name_or_path"] = str(tmp_path / "second" / part)
    opened = MiniGPT3DForConditionalGeneration.from_pretrained(tmp_path / "model", config=config)
    assert torch.equal(answers(opened), answers(model))


@pytest.mark.usefixtures("directories_are_names")
@pytest.mark.slow
@pytest.mark.parametrize(
    ("change", "text"),
    [
        (lambda stored: stored.pop("minigpt3d.bridge.projector.fc1.bias"), "bridge.projector.fc1.bias is missing"),
        (lambda stored: stored.update(extra=torch.zeros(1)), "extra is not the model's"),
        (
            lambda stored: stored.update({"minigpt3d.bridge.projector.fc1.bias": torch.zeros(3)}),
            "bridge.projector.fc1.bias has",
        ),
    ],
)
def test_missing_unexpected_and_misshapen_tensors_are_named(folder, tmp_path, change, text):
    built(folder).save_pretrained(tmp_path)
    stored = load_file(tmp_path / "model.safetensors")
    change(stored)
    save_file(stored, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match=text):
        MiniGPT3DForConditionalGeneration.from_pretrained(tmp_path)


def test_a_part_that_lacks_weights_is_refused(folder, tmp_path):
    shutil.copytree(folder / "language_model", tmp_path / "language_model")
    stored = load_file(tmp_path / "language_model" / "model.safetensors")
    del stored["model.layers.0.mlp.fc1.bias"]
    save_file(stored, tmp_path / "language_model" / "model.safetensors", metadata={"format": "pt"})
    with raises(ValueError, naming="language_model"):
        build_from_parts(folder / "point_encoder", None, tmp_path / "language_model", **CONFIG)


def test_a_revision_of_a_part_that_is_not_given_by_name_is_refused(folder):
    with raises(ValueError, naming="'qformer'; expected some of 'point_encoder'"):
        build_from_parts(
            folder / "point_encoder", None, folder / "language_model", revisions={"qformer": "main"}, **CONFIG
        )


@pytest.mark.slow
@pytest.mark.parametrize("change", ["store", "merge"])
def test_a_model_may_be_stored_in_full(folder, tmp_path, change):
    model = with_lora(built(folder))
    before = answers(model)
    if change == "store":
        model.store_parts()
    else:
        merge_lora(model)  # changes the weights of the parts
    model.save_pretrained(tmp_path)
    assert load_file(tmp_path / "model.safetensors").keys() == model.state_dict().keys()
    assert json.loads((tmp_path / "config.json").read_text())["parts"] is None
    torch.testing.assert_close(answers(MiniGPT3DForConditionalGeneration.from_pretrained(tmp_path)), before)


@pytest.mark.slow
def test_parts_that_are_models_are_stored(folder, tmp_path):
    source = tiny_model(text_lora=None, qformer_lora=None)
    model = build_from_parts(source.point_encoder, folder / "qformer", folder / "language_model", **SETTINGS)
    assert set(model.config.parts) == {"qformer", "language_model"}
    model.save_pretrained(tmp_path)
    stored = load_file(tmp_path / "model.safetensors")
    assert {f"minigpt3d.point_encoder.{name}" for name in source.point_encoder.state_dict()} <= stored.keys()
    assert torch.equal(answers(MiniGPT3DForConditionalGeneration.from_pretrained(tmp_path)), answers(model))


@pytest.mark.slow
def test_a_repository_of_queries_and_q_former_only_can_be_used(folder, tmp_path):
    QueriesAndQFormer.from_pretrained(folder / "qformer").save_pretrained(tmp_path)
    assert (tmp_path / "model.safetensors").stat().st_size < (folder / "qformer" / "model.safetensors").stat().st_size
    model = build_from_parts(folder / "point_encoder", tmp_path, folder / "language_model", **CONFIG)
    given = QueriesAndQFormer.from_pretrained(folder / "qformer")
    for name, tensor in given.qformer.named_parameters():
        assert torch.equal(tensor, model.bridge.qformer.get_parameter(name)), name
    assert all(torch.equal(queries, given.query_tokens[0]) for queries in model.bridge.experts.queries)
