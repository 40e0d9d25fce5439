"""Every entry point refuses a saved model with missing or misshapen weights."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from peft import get_peft_model
from safetensors.torch import load_file, save_file
from transformers import pipeline
from typer.testing import CliRunner

import hf_any3d
from hf_any3d import (
    ActForPointCloudClassification,
    Any2PointForPointCloudClassification,
    AutoModelForPointCloudClassification,
    AutoModelForPointCloudTextToText,
    GuidedAdapterConfig,
    PointCloudProcessor,
    PointNetForPointCloudClassification,
    PointTokenizerForPointCloudClassification,
)
from hf_any3d.cli import app
from hf_any3d.modeling.pretrained_parts.mixin import LibraryModelMixin
from hf_any3d.registry import MODEL_TYPES
from tests import tiny_act
from tests.errors import raises
from tests.modeling.minigpt3d.test_parts import (
    built,
    folder as chat_parts,  # noqa: F401  a fixture
)
from tests.modeling.minigpt3d.tiny_model import tiny_model as chat_model
from tests.modeling.pretrained_parts.test_pretrained_parts import answers, trained_in_place
from tests.tiny_baselines import tiny_baseline
from tests.tiny_encoders import saved_encoder, tiny_model


def without(directory, *beginnings, file="model.safetensors"):
    """Remove tensors from a saved model."""
    stored = load_file(directory / file)
    kept = {name: tensor for name, tensor in stored.items() if not name.startswith(beginnings)}
    assert len(kept) < len(stored)
    save_file(kept, directory / file, metadata={"format": "pt"})


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """Saved models by kind: of a transformer, of an encoder elsewhere, of one that is stored, and of an adapter."""
    folder = tmp_path_factory.mktemp("saved")
    tiny_act.tiny_act(ActForPointCloudClassification).save_pretrained(folder / "act")
    tiny_model("bert").save_pretrained(folder / "any2point")
    trained_in_place(tiny_model("bert")).save_pretrained(folder / "stored")
    get_peft_model(tiny_model("bert"), GuidedAdapterConfig(r=4)).save_pretrained(folder / "adapter")
    return folder


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "lost", "named"),
    [
        ("act", ("act.blocks.layers.",), r"lacks act\.blocks\.layers\.0\..* and \d+ more"),
        ("act", ("classifier.",), r"lacks classifier\."),
        ("any2point", ("any2point.point_tokenizer.",), r"lacks any2point\.point_tokenizer"),
        (
            "stored",
            ("any2point.encoder.encoder.layer.1.attention.self.query.weight",),
            r"encoder weights .*query\.weight",
        ),
    ],
)
def test_every_entry_point_refuses_a_model_with_missing_weights(kind, lost, named, saved, tmp_path):
    directory = shutil.copytree(saved / kind, tmp_path / "model")
    PointCloudProcessor(num_points=48).save_pretrained(directory)
    without(directory, *lost)
    own = ActForPointCloudClassification if kind == "act" else Any2PointForPointCloudClassification
    for load in (
        AutoModelForPointCloudClassification.from_pretrained,
        own.from_pretrained,
        lambda place: pipeline("point-cloud-classification", model=str(place)),
    ):
        with pytest.raises(ValueError, match=named):
            load(directory)


@pytest.mark.slow
@pytest.mark.usefixtures("libraries_as_they_were")
def test_command_line_names_lost_weights_in_one_line(saved, tmp_path):
    directory = shutil.copytree(saved / "act", tmp_path / "model")
    PointCloudProcessor(num_points=60).save_pretrained(directory)
    without(directory, "act.blocks.layers.")
    file = Path(__file__).parents[2] / "files" / "chair.ply"
    result = CliRunner().invoke(app, ["predict", str(file), "--model", str(directory)])
    assert result.exit_code == 1 and isinstance(result.exception, SystemExit) and not result.stdout
    assert "lacks act.blocks.layers.0" in result.stderr and "Traceback" not in result.stderr


@pytest.mark.parametrize(("kind", "field", "value"), [("act", "hidden_size", 384), ("any2point", "head_widths", [99])])
def test_a_config_with_other_shapes_is_refused(kind, field, value, saved, tmp_path):
    directory = shutil.copytree(saved / kind, tmp_path / "model")
    config = json.loads((directory / "config.json").read_text())
    (directory / "config.json").write_text(json.dumps(config | {field: value}))
    with raises(ValueError, naming=str(directory)):
        AutoModelForPointCloudClassification.from_pretrained(directory)


def test_new_heads_and_modules_are_initialized(saved):
    student = saved / "act"
    changed = ActForPointCloudClassification.from_pretrained(
        student, num_labels=7, ignore_mismatched_sizes=True, side_network=True
    )
    assert changed(tiny_act.clouds()).logits.shape[-1] == 7 and changed.act.side is not None


@pytest.mark.slow
def test_chat_model_with_missing_weights_is_refused(chat_parts, tmp_path):  # noqa: F811
    model = built(chat_parts)
    model.store_parts()
    model.save_pretrained(tmp_path)
    without(tmp_path, "minigpt3d.point_encoder.")
    with raises(ValueError, naming="point_encoder"):
        AutoModelForPointCloudTextToText.from_pretrained(tmp_path)


def test_missing_weights_inside_wrappers_are_found(tmp_path):
    chat_model(text_lora=None, qformer_lora=None).save_pretrained(tmp_path)
    with raises(ValueError, naming="language_model"):
        AutoModelForPointCloudTextToText.from_pretrained(tmp_path, text_lora={"r": 2})


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (
            lambda stored: (
                stored.pop("base_model.model.classifier.layers.0.weight", None) or _pop(stored, "classifier")
            ),
            "lacks",
        ),
        (lambda stored: _pop(stored, "guided_adapter_down"), "lacks .*guided_adapter_down"),
        (lambda stored: _pop(stored, "point_tokenizer"), "lacks .*point_tokenizer"),
        (
            lambda stored: stored.update({"base_model.model.extra.weight": torch.zeros(1)}),
            "holds base_model.model.extra.weight",
        ),
    ],
)
def test_missing_and_unexpected_tensors_of_an_adapter_are_named(change, named, saved, tmp_path):
    directory = shutil.copytree(saved / "adapter", tmp_path / "model")
    stored = load_file(directory / "adapter_model.safetensors")
    change(stored)
    save_file(stored, directory / "adapter_model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match=named):
        AutoModelForPointCloudClassification.from_pretrained(directory)


def _pop(stored, part):
    del stored[next(name for name in sorted(stored) if part in name)]


# Loading an adapter's directory.


def test_adapter_can_be_loaded_with_new_labels(saved):
    load = AutoModelForPointCloudClassification.from_pretrained
    with raises(ValueError, naming="classifier"):
        load(saved / "adapter", num_labels=7)
    opened, info = load(saved / "adapter", num_labels=7, ignore_mismatched_sizes=True, output_loading_info=True)
    assert answers(opened).shape == (3, 7) and opened.config.num_labels == 7
    assert all("classifier" in name for name, *_ in info["mismatched_keys"]) and info["mismatched_keys"]
    kept = load(saved / "adapter")
    for name, tensor in kept.any2point.state_dict().items():
        if "original_module" in name:  # what PEFT keeps of the model before it was trained
            continue
        assert torch.equal(tensor, opened.any2point.state_dict()[name]), name


@pytest.mark.parametrize("kind", ["adapter", "any2point", "act"])
def test_unknown_arguments_are_type_errors(kind, saved):
    with raises(TypeError, naming="unexpected keyword argument 'foo'"):
        AutoModelForPointCloudClassification.from_pretrained(saved / kind, foo=1)


@pytest.mark.slow
def test_chat_model_refuses_unknown_arguments(chat_parts, tmp_path):  # noqa: F811
    built(chat_parts).save_pretrained(tmp_path)
    with raises(TypeError, naming="unexpected keyword argument 'foo'"):
        AutoModelForPointCloudTextToText.from_pretrained(tmp_path, foo=1)


def test_missing_final_norm_of_an_encoder_is_named(tmp_path):
    directory = shutil.copytree(saved_encoder("beit"), tmp_path / "beit")
    without(directory, "pooler.layernorm.")
    with pytest.raises(ValueError, match=r"lacks weights .*pooler\.layernorm\.bias, pooler\.layernorm\.weight"):
        tiny_model(str(directory))


@pytest.mark.parametrize("is_lost", [True, False])
@pytest.mark.parametrize("kind", [PointNetForPointCloudClassification, PointTokenizerForPointCloudClassification])
def test_models_without_pretrained_parts_are_refused_too(kind, is_lost, tmp_path):
    tiny_baseline(kind).save_pretrained(tmp_path)
    stored = load_file(tmp_path / "model.safetensors")
    weight = stored.pop("classifier.out.weight")
    stored |= {} if is_lost else {"classifier.out.weight": weight[:-1].clone()}
    save_file(stored, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with raises(ValueError, naming="classifier.out.weight" if is_lost else str(tmp_path)):
        kind.from_pretrained(tmp_path)


def test_no_class_of_a_model_opens_without_these_checks():
    unchecked = [
        name
        for model_type in MODEL_TYPES.values()
        for name in model_type.models()
        if not issubclass(getattr(hf_any3d, name), LibraryModelMixin)
    ]
    assert not unchecked
