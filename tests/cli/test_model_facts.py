"""Facts about models from their configuration files."""

import json

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from hf_any3d import (
    ActConfig,
    ActForPointCloudClassification,
    AutoModelForPointCloudClassification,
    GuidedAdapterConfig,
    PointCloudProcessor,
)
from hf_any3d.evaluation.model_cost import model_cost
from hf_any3d.evaluation.model_facts import model_facts
from hf_any3d.model_card.run_report import count_parameters
from hf_any3d.modeling.kernels import set_kernels
from hf_any3d.modeling.minigpt3d import build_from_parts, set_stage
from hf_any3d.modeling.point_transformer_v3 import PointTransformerV3Model
from hf_any3d.modeling.pointnet import PointNetForPointCloudClassification
from hf_any3d.processing.voxels import PointTransformerV3Processor
from tests.cli.conftest import run
from tests.errors import raises
from tests.examples.minigpt3d_runs import CONFIG, write_parts
from tests.modeling.minigpt3d.tiny_model import tiny_config
from tests.tiny_autoencoders import SMALL_AUTOENCODER, tiny_autoencoder
from tests.tiny_baselines import tiny_baseline
from tests.tiny_encoders import tiny_part_model, tiny_scene_model
from tests.tiny_ptv3 import tiny_ptv3

TALKING = CONFIG | {"qformer_config": tiny_config().qformer_config.to_dict()}


@pytest.mark.parametrize("make", [tiny_scene_model, tiny_part_model])
def test_parameters_of_segmentation_heads_are_counted(make, tmp_path):
    model = get_peft_model(make(), GuidedAdapterConfig(r=4))
    model.save_pretrained(tmp_path)
    facts = model_facts(str(tmp_path))
    assert facts["class"] == type(model.get_base_model()).__name__
    assert (facts["trained parameters"], facts["total parameters"]) == count_parameters(model)
    assert len(facts["labels"]) == model.get_base_model().config.num_labels


@pytest.mark.parametrize("encoder", ["vit", None])
def test_facts_of_autoencoders_list_codes_and_teacher(encoder, tmp_path):
    model = tiny_autoencoder(encoder)
    model.save_pretrained(tmp_path)
    facts = model_facts(str(tmp_path))
    assert facts["class"] == "ActAutoencoder" and "labels" not in facts
    assert (facts["codes"], facts["tokens"]) == (SMALL_AUTOENCODER["num_codes"], SMALL_AUTOENCODER["num_groups"])
    assert (facts["trained parameters"], facts["total parameters"]) == count_parameters(model)
    assert facts.get("encoder type") == encoder


def test_facts_of_minigpt3d_list_stage_and_parts(tmp_path):
    parts = write_parts(tmp_path)
    model = build_from_parts(parts["point_encoder"], None, parts["language_model"], **TALKING)
    set_stage(model, 2)
    model.save_pretrained(tmp_path / "model")
    facts = model_facts(str(tmp_path / "model"))
    assert (facts["stage of training"], facts["tokens"], facts["channels"]) == (2, 32, 6)
    # It came from a directory.
    assert facts["language model"] == "stored with the model" and facts["language model type"] == "normed_phi"
    assert facts["language model checksum"].startswith("tensors-sha256:")
    assert facts["qformer"] == "stored with the model" and "labels" not in facts
    assert (facts["trained parameters"], facts["total parameters"]) == count_parameters(model)
    named = {"name_or_path": "me/phi", "revision": "a1"}
    file = tmp_path / "model" / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"parts": {"language_model": named}}))
    facts = model_facts(str(tmp_path / "model"))
    assert (facts["language model"], facts["language model revision"]) == ("me/phi", "a1")


def test_parameters_of_an_adapter_around_minigpt3d_are_counted(tmp_path):
    parts = write_parts(tmp_path)
    model = build_from_parts(parts["point_encoder"], None, parts["language_model"], **TALKING)
    set_stage(model, 2)
    model.config.save_pretrained(tmp_path / "adapter")
    adapted = get_peft_model(model, LoraConfig(r=2, target_modules=["fc1"]))
    adapted.save_pretrained(tmp_path / "adapter")
    facts = model_facts(str(tmp_path / "adapter"))
    assert facts["adapter"] == "lora"
    assert (facts["trained parameters"], facts["total parameters"]) == count_parameters(adapted)


def test_facts_of_a_student_have_no_encoder(tmp_path):
    model = ActForPointCloudClassification(ActConfig(num_hidden_layers=1, id2label={0: "chair", 1: "lamp"}))
    model.save_pretrained(tmp_path)
    facts = model_facts(str(tmp_path))
    assert facts["labels"] == ["chair", "lamp"] and facts["tokens"] == 64 and "encoder" not in facts
    assert facts["total parameters"] == count_parameters(model)[1]


@pytest.fixture
def brief(monkeypatch):
    """Time for a moment alone."""
    monkeypatch.setattr("hf_any3d.evaluation.model_cost._SECONDS", 0.01)


def test_operations_of_a_pointnet_are_those_counted_by_hand(brief, tmp_path):
    tiny_baseline(PointNetForPointCloudClassification).save_pretrained(tmp_path)
    PointCloudProcessor(num_points=48).save_pretrained(tmp_path)
    facts = json.loads(run("info", tmp_path, "--cost", "--json").out)
    first, others = 2 * 48 * 3 * 32, 2 * 48 * (32 * 48 + 48 * 64) + 2 * (64 * 16 + 16 * 3)
    assert facts["FLOPs of inference"] == first + others
    # A layer's backward pass has two products; the points themselves need no gradient.
    assert facts["FLOPs of a training step"] == 2 * first + 3 * others
    assert facts["clouds a second"] > 0 and facts["timed"].endswith("float32, 48 points")


def test_operations_include_attention_and_the_backward_pass_of_what_is_trained_alone(brief, models):
    name = models("classifier")
    facts = model_cost(name)
    model = AutoModelForPointCloudClassification.from_pretrained(name)
    previous = set_kernels("torch")
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        model(torch.rand(1, 48, 3))
    set_kernels(previous)
    assert facts["FLOPs of inference"] == counter.get_total_flops()
    # Frozen layers pass gradients on but have none of their own.
    assert 2 < facts["FLOPs of a training step"] / facts["FLOPs of inference"] < 2.8


@pytest.mark.parametrize("kind", ["parts", "autoencoder", "detector", "zero-shot", "scan"])
def test_models_of_other_tasks_have_a_cost(kind, brief, models, tmp_path):
    if kind == "scan":
        tiny_ptv3(PointTransformerV3Model).save_pretrained(tmp_path)
        PointTransformerV3Processor(features=["xyz", "rgb"], num_points=500).save_pretrained(tmp_path)
    facts = model_cost(str(tmp_path) if kind == "scan" else models(kind))
    assert 2 < facts["FLOPs of a training step"] / facts["FLOPs of inference"] < 4


def test_a_model_that_writes_has_no_cost_of_a_cloud(models):
    with raises(ValueError, naming="grows with the text"):
        model_cost(models("chat"))
    assert "--cost is not for models that write, whose cost grows" in run("info", models("chat"), "--cost").err
