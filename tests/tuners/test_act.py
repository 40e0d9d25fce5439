"""Adapters on a pretrained point transformer: trained parameters, stored files, and loading of the base weights."""

import json
import shutil

import pytest
import torch
from peft import IA3Config, LoraConfig, get_peft_model

from hf_any3d import (
    ActForPointCloudClassification,
    ActModel,
    AutoModelForPointCloudClassification,
    BitFitConfig,
    GuidedAdapterConfig,
    PromptTokensConfig,
)
from tests.tiny_act import clouds, tiny_act

LINEAR = ["qkv", "proj", "fc1", "fc2"]
CONFIGS = {
    "guided": GuidedAdapterConfig,
    "bitfit": BitFitConfig,
    "prompts": PromptTokensConfig,
    "lora": lambda **s: LoraConfig(r=2, target_modules=LINEAR, modules_to_save=["classifier"], **s),
    "ia3": lambda **s: IA3Config(
        target_modules=LINEAR, feedforward_modules=["fc2"], modules_to_save=["classifier"], **s
    ),
}


@pytest.fixture(autouse=True)
def quiet(monkeypatch):
    """Silence the warning about newly initialized heads."""
    import transformers

    verbosity = transformers.logging.get_verbosity()
    transformers.logging.set_verbosity_error()
    yield
    transformers.logging.set_verbosity(verbosity)


@pytest.fixture(scope="module")
def student(tmp_path_factory):
    """Directory of a pretrained point transformer."""
    directory = tmp_path_factory.mktemp("student")
    tiny_act(ActModel).save_pretrained(directory)
    return directory


def base_of(student, model_class=ActForPointCloudClassification, **config):
    torch.manual_seed(3)
    return model_class.from_pretrained(student, **({"num_labels": 3} | config))


def trained(student, method, directory=None, **config):
    """Return an adapted model after a training step, in eval mode."""
    torch.manual_seed(1)
    model = get_peft_model(base_of(student, **config), CONFIGS[method]()).train()
    step(model)
    if directory is not None:
        model.save_pretrained(directory)
    return model.eval()


def step(model, **labels):
    torch.manual_seed(2)
    labels = labels or {"labels": torch.tensor([0, 2])}
    trains = [parameter for parameter in model.parameters() if parameter.requires_grad]
    model(points=clouds(), **labels).loss.backward()
    torch.optim.SGD(trains, lr=0.5).step()


@torch.no_grad()
def logits_of(model, **inputs):
    return model.eval()(points=clouds(), **inputs).logits


def assert_same(found, expected):
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)


@pytest.mark.slow
def test_changed_base_weights_are_stored_with_the_adapter(student, tmp_path):
    base = base_of(student)
    with torch.no_grad():
        base.act.norm.weight.mul_(1.5)  # as training would
    model = get_peft_model(base, GuidedAdapterConfig(init_weights=False))
    expected = logits_of(model)
    model.save_pretrained(tmp_path / "made")
    assert json.loads((tmp_path / "made" / "config.json").read_text())["parts"]["base"].get("name_or_path") is None
    shutil.move(tmp_path / "made", tmp_path / "moved")
    opened = AutoModelForPointCloudClassification.from_pretrained(tmp_path / "moved")
    assert_same(logits_of(opened), expected)
    opened.save_pretrained(tmp_path / "again")
    assert_same(logits_of(AutoModelForPointCloudClassification.from_pretrained(tmp_path / "again")), expected)
    with torch.no_grad():
        opened.act.norm.weight.mul_(1.5)
    opened.save_pretrained(tmp_path / "changed")
    # The stored base is complete, and names no other weights.
    assert json.loads((tmp_path / "changed" / "base" / "config.json").read_text()).get("parts") is None
    fresh = get_peft_model(ActForPointCloudClassification(base.config), BitFitConfig()).eval()
    fresh.save_pretrained(tmp_path / "fresh")
    assert_same(logits_of(AutoModelForPointCloudClassification.from_pretrained(tmp_path / "fresh")), logits_of(fresh))


@pytest.mark.slow
@pytest.mark.parametrize("device_map", ["auto", {"": "cpu"}, torch.device("cpu")], ids=str)
def test_device_map_places_pretrained_part_adapter_and_head(student, device_map, tmp_path):
    expected = logits_of(trained(student, "guided", tmp_path))
    opened = AutoModelForPointCloudClassification.from_pretrained(tmp_path, device_map=device_map)
    expected_device = torch.accelerator.current_accelerator() if device_map == "auto" else None
    kinds = {tensor.device.type for tensor in (*opened.parameters(), *opened.buffers())}
    assert kinds == {"cpu" if expected_device is None else expected_device.type}
    assert_same(logits_of(opened.cpu()), expected)


def test_stochastic_depth_and_norms_stay_in_eval_mode_with_adapters(student):
    model = get_peft_model(base_of(student, drop_path_rate=0.9), CONFIGS["lora"]()).train()
    core = model.get_base_model().act
    assert not core.patch_encoder.training and not core.blocks.layers[2].drop_path.training
    assert model.get_base_model().classifier.modules_to_save["default"].training
