"""The examples for FiftyOne and LeRobot, with stand-ins for these programs."""

import importlib
import importlib.util
import json
import sys
import tomllib
from pathlib import Path

import numpy as np
import pytest
import torch

import hf_any3d
from hf_any3d import PointCloudProcessor
from hf_any3d.data.files import example_file
from hf_any3d.hub.published_table import PUBLISHED
from hf_any3d.modeling.point_transformer_v3 import PointTransformerV3Model
from tests.errors import raises
from tests.examples.stand_ins import FIFTYONE, LEROBOT, Feature, PreTrainedConfig, installed
from tests.tiny_aligned import tiny_parts_by_name
from tests.tiny_ptv3 import tiny_ptv3

EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.fixture
def zoo():
    """The module of the source, imported as FiftyOne imports it: from its folder."""
    with installed(FIFTYONE):
        spec = importlib.util.spec_from_file_location("zoo_source", EXAMPLES / "fiftyone_zoo" / "__init__.py")
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        yield module


def test_the_zoo_source_declares_what_it_can_load(zoo, tmp_path, monkeypatch):
    manifest = json.loads((EXAMPLES / "fiftyone_zoo" / "manifest.json").read_text())
    assert manifest["name"] and {model["base_name"] for model in manifest["models"]} == set(zoo.REPOSITORIES)
    assert all(model["base_filename"] for model in manifest["models"])
    assert set(zoo.REPOSITORIES.values()) <= set(PUBLISHED)
    saved = tmp_path / "published"
    tiny_parts_by_name().save_pretrained(saved)
    PointCloudProcessor(num_points=64).save_pretrained(saved)
    monkeypatch.setitem(zoo.REPOSITORIES, "hf_any3d/patchalign3d", str(saved))
    zoo.download_model("hf_any3d/patchalign3d", str(tmp_path / "model"))
    with raises(ValueError, naming="hf_any3d"):
        zoo.download_model("clip", str(tmp_path / "other"))
    with raises(ValueError, naming="labels is empty"):
        zoo.load_model("hf_any3d/patchalign3d", str(tmp_path / "model"))
    model = zoo.load_model("hf_any3d/patchalign3d", str(tmp_path / "model"), labels=["seat", "leg"], max_points=100)
    chair = example_file("chair.ply")
    with model:
        parts = model.predict(chair).classifications
    cloud = hf_any3d.read_point_cloud(chair)
    found = hf_any3d.segment(cloud.points, model=str(saved), labels=["seat", "leg"], max_points=100)
    shares = {found.names[number]: float((found.labels == number).mean()) for number in np.unique(found.labels)}
    assert {part.label: part.share for part in parts} == shares and model.media_type == "point-cloud"
    assert [part.share for part in parts] == sorted(shares.values(), reverse=True)


@pytest.fixture
def policy_module():
    with installed(LEROBOT), pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(EXAMPLES / "lerobot_plugin")
        yield importlib.import_module("lerobot_policy_any3d")
    for name in [name for name in sys.modules if name.startswith("lerobot_policy_any3d")]:
        del sys.modules[name]


@pytest.fixture
def config(policy_module, tmp_path):
    tiny_ptv3(PointTransformerV3Model).save_pretrained(tmp_path)
    features = {"observation.points": Feature((50, 6)), "observation.state": Feature((4,))}
    return policy_module.Any3DConfig(
        features, {"action": Feature((3,))}, encoder=str(tmp_path), horizon=5, n_action_steps=2
    )


def batch(rows: int = 2) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {
        "observation.points": torch.rand(rows, 50, 6, generator=generator),
        "observation.state": torch.rand(rows, 4, generator=generator),
        "action": torch.rand(rows, 5, 3, generator=generator),
        "action_is_pad": torch.tensor([[False] * 5, [False, False, True, True, True]])[:rows],
    }


def test_the_policy_is_found_by_its_names(policy_module):
    """LeRobot looks for a package, a registered type and a function of these names."""
    project = tomllib.loads((EXAMPLES / "lerobot_plugin" / "pyproject.toml").read_text())["project"]
    assert project["name"] == "lerobot_policy_any3d" == policy_module.__name__
    name = policy_module.Any3DPolicy.name
    assert PreTrainedConfig.choices[name] is policy_module.Any3DConfig is policy_module.Any3DPolicy.config_class
    assert hasattr(policy_module, f"make_{name}_pre_post_processors")


def test_the_head_learns_and_the_encoder_stays(policy_module, config):
    policy, given = policy_module.Any3DPolicy(config).train(), batch()
    assert not policy.encoder.training and policy.head.training
    before = {name: weight.clone() for name, weight in policy.encoder.state_dict().items()}
    optimizer = torch.optim.AdamW(policy.get_optim_params(), lr=config.get_optimizer_preset().lr)
    losses = []
    for _ in range(20):
        loss, logged = policy(given)
        losses.append(logged["mse"])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert losses[-1] < losses[0]
    assert all(torch.equal(weight, before[name]) for name, weight in policy.encoder.state_dict().items())
    # What comes after the end of an episode does not count.
    other = {**given, "action": given["action"].clone()}
    other["action"][1, 2:] += 5
    assert torch.equal(policy(other, reduction="none")[0], policy(given, reduction="none")[0])
