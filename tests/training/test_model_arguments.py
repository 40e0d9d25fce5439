"""From arguments to the model that is trained: its type, class, settings, and what of it is trained."""

import json

import pytest
import torch
from peft import PeftModel

from hf_any3d.modeling.act import ActForPointCloudClassification
from hf_any3d.training.arguments import AdapterArguments
from hf_any3d.training.models import (
    CLASSES,
    PARTS,
    SCENES,
    PointModelArguments,
    build_model,
    drop_attention,
    find_model_class,
    text_tower_of,
)
from hf_any3d.training.requests import parse_arguments
from tests.errors import raises
from tests.tiny_act import tiny_act
from tests.tiny_encoders import HIDDEN, random_encoder, saved_encoder, tiny_config
from tests.tiny_text_towers import write_text_files

LABELS = ["chair", "lamp", "table"]
CUT = {"num_tokens": 8, "tokenizer_neighbors": 4}


def build(task=CLASSES, labels=LABELS, adapter=None, more=(), **given):
    return build_model(task, PointModelArguments(**given), AdapterArguments(**(adapter or {})), labels, **dict(more))


def trained(model) -> set[str]:
    return {name for name, weight in model.named_parameters() if weight.requires_grad}


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory) -> str:
    folder = tmp_path_factory.mktemp("act")
    tiny_act(ActForPointCloudClassification, id2label=dict(enumerate(LABELS))).save_pretrained(folder)
    return str(folder)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"model_type": "mesh"}, "model_type='mesh'; expected one of 'any2point', 'point_tokenizer', 'act3d', "),
        ({"tuning": "half"}, "tuning='half'; expected one of 'full', 'head', 'linear'"),
        ({"tuning": "head"}, "--model_name_or_path and --tuning are for --model_type act3d, .*; any2point has --peft"),
        ({"model_type": "any2point", "model_name_or_path": "x"}, "are for --model_type act3d, .*any2point has --peft"),
        ({"model_type": "act3d", "tuning": "head"}, "--tuning head would freeze untrained weights; add --model_name"),
        (
            {"encoder_weights": "none", "encoder_dtype": "float16"},
            "--encoder_dtype float16 has no effect with --encoder_weights none",
        ),
    ],
)
def test_contradictions_are_refused(given, message):
    with pytest.raises(ValueError, match=message):
        PointModelArguments(**given)


def test_the_type_is_that_of_the_model_that_training_starts_from(tmp_path):
    assert PointModelArguments().model_type == "any2point" and PointModelArguments().has_frozen_encoder
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "pointnet2"}))
    found = PointModelArguments(model_name_or_path=str(tmp_path))
    assert found.model_type == "pointnet2" and not found.has_frozen_encoder
    # That nothing is there is told when it is opened.
    assert PointModelArguments(model_name_or_path=str(tmp_path / "absent")).model_type == "act3d"
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "bert"}))
    with raises(ValueError, naming="model_type"):
        PointModelArguments(model_name_or_path=str(tmp_path))
    given = {"model_type": "pointnet"}
    assert PointModelArguments.of_another_model({"model_name_or_path": None}, given) >= {"peft", "num_layers"}
    assert PointModelArguments.of_another_model({"model_type": "pointnet"}, given) == set()
    assert PointModelArguments.of_another_model({}, {"learning_rate": 1}) == set()


def test_settings_of_another_peft_method_are_left_out(tmp_path):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("peft: guided_adapter\npeft_config: {attention_width: 12}\n")
    for words, settings in (
        (["--peft", "lora"], {}),
        (["--peft", "lora", "--peft_config", '{"r": 2}'], {"r": 2}),
        (["--peft_config", '{"r": 2}'], {"attention_width": 12, "r": 2}),
    ):
        (adapter,) = parse_arguments((AdapterArguments,), [str(recipe), *words])
        assert adapter.peft_config == settings


@pytest.mark.parametrize(("kind", "task"), [("pointnet", PARTS), ("pointnet", SCENES), ("mesh", CLASSES)])
def test_types_without_the_task_are_refused(kind, task):
    with pytest.raises(ValueError, match=f"no model of the type '{kind}' is registered for {task}"):
        find_model_class(kind, task)


def test_settings_that_a_config_does_not_have_are_refused(pretrained):
    for given in ({"model_type": "act3d"}, {"model_name_or_path": pretrained}):
        with raises(TypeError, naming="--model_config"):
            build(model_config={"hiden_size": 1}, **given)
    with raises(TypeError, naming="--model_config"):
        build(encoder_weights="none", model_config={"hiden_size": 1}, encoder_name_or_path=saved_encoder("bert"))


def test_adapters_need_weights_that_are_pretrained_and_no_other_protocol(pretrained):
    with raises(ValueError, naming="--peft"):
        build(model_type="act3d", adapter={"peft": "lora"})
    with raises(ValueError, naming="--peft"):
        build(model_name_or_path=pretrained, tuning="head", adapter={"peft": "lora"})
    arguments = PointModelArguments(model_name_or_path=pretrained)
    adapter = AdapterArguments(peft="lora", peft_config={"r": 2})
    model = build_model(CLASSES, arguments, adapter, LABELS)
    assert isinstance(model, PeftModel) and model.peft_config["default"].r == 2
    assert arguments.start() == {"model": pretrained, "tuning": "adapter"}
    assert all("lora_" in name or "modules_to_save" in name for name in trained(model))


@pytest.mark.parametrize(("peft", "unfrozen"), [("none", False), ("full", True), ("NONE", False)])
def test_a_frozen_encoder_without_an_adapter(peft, unfrozen):
    settings = CUT | {"encoder_name_or_path": saved_encoder("bert"), "attn_implementation": "eager", "num_layers": 1}
    model = build(adapter={"peft": peft}, encoder_weights="shuffled", **settings)
    assert not isinstance(model, PeftModel) and model.config.encoder_weights == "shuffled"
    assert any(".encoder." in name for name in trained(model)) is unfrozen
    assert model.config.encoder_config.num_hidden_layers == 1 and model.config.id2label[1] == "lamp"
    assert model.any2point.encoder.config._attn_implementation == "eager"


def test_attention_is_dropped_in_frozen_layers_on_request():
    source = saved_encoder("bert")
    for share in (0.0, 0.25):
        model = build(encoder_name_or_path=source, encoder_attention_dropout=share, adapter={"peft": "none"}, **CUT)
        model.train()
        dropped = [
            module.dropout.p
            for name, module in model.named_modules()
            if name.endswith("attention.self") and module.training and isinstance(module.dropout, torch.nn.Dropout)
        ]
        assert dropped == ([0.25] * 2 if share else [])
    assert drop_attention(model, 0) == 2


def test_point_encoders_record_their_text_tower(tmp_path, pretrained):
    assert text_tower_of(PointModelArguments()) == {}
    assert text_tower_of(PointModelArguments(model_name_or_path=pretrained)) == {}
    random_encoder(tiny_config("bert")).save_pretrained(tmp_path)
    write_text_files(tmp_path, is_sentence_encoder=True)
    given = PointModelArguments(model_type="openshape", encoder_name_or_path=str(tmp_path))
    part = {"name_or_path": str(tmp_path), "revision": None}
    assert text_tower_of(given) == {"projection_dim": HIDDEN, "parts": {"text_tower": part}}
    pooling = json.loads((tmp_path / "1_Pooling" / "config.json").read_text())
    pooling |= {"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": False}
    (tmp_path / "1_Pooling" / "config.json").write_text(json.dumps(pooling))
    with raises(ValueError, naming="'cls'; expected a text tower"):
        text_tower_of(given)
