"""Without this package imported, loading fails with a hint what is missing; with it, no question is asked."""

import json
import subprocess
import sys

import pytest
from transformers import AutoConfig, AutoFeatureExtractor, AutoModel, AutoProcessor

from hf_any3d import PointCloudProcessor
from hf_any3d.integration.registration import MODELS
from tests.common.models import minigpt3d
from tests.tiny_encoders import adapted_model, tiny_model

# Every loading path, without a terminal to answer questions.
PROGRAM = """
import json, sys
from peft import PeftConfig
from transformers import AutoConfig, AutoFeatureExtractor, AutoModel, AutoProcessor, pipeline

loaders = {
    "AutoConfig": AutoConfig.from_pretrained,
    "AutoModel": AutoModel.from_pretrained,
    "AutoFeatureExtractor": AutoFeatureExtractor.from_pretrained,
    "AutoProcessor": AutoProcessor.from_pretrained,
    "pipeline": lambda name, **kwargs: pipeline("point-cloud-classification", model=name, **kwargs),
}
results = {}
for directory in sys.argv[2:]:
    for loader, load in loaders.items():
        for trust in (None, True):
            try:
                load(directory, trust_remote_code=trust)
                results[f"{directory} {loader} {trust}"] = "opens"
            except Exception as error:
                results[f"{directory} {loader} {trust}"] = f"{type(error).__name__}: {error}"
try:
    PeftConfig.from_pretrained(sys.argv[-1])
except Exception as error:
    results["PeftConfig"] = str(error)
assert "hf_any3d" not in sys.modules
open(sys.argv[1], "w").write(json.dumps(results))
"""
NAMED = ("pip install hf-any3d", "import hf_any3d")


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A complete model and an adapter, each with its processor."""
    folder = tmp_path_factory.mktemp("saved")
    for name, model in (("whole", tiny_model("bert")), ("adapter", adapted_model("bert"))):
        model.save_pretrained(folder / name)
        PointCloudProcessor(num_points=48, up_axis="z").save_pretrained(folder / name)
    return folder


@pytest.mark.slow
def test_every_loading_error_names_the_package(saved, tmp_path):
    arguments = [str(tmp_path / "results.json"), str(saved / "whole"), str(saved / "adapter")]
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, *arguments], stdin=subprocess.DEVNULL, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-2000:]
    results = json.loads((tmp_path / "results.json").read_text())
    assert "GUIDED_ADAPTER" in results.pop("PeftConfig")  # PEFT's own error, which names the method
    assert len(results) == 20
    for loader, error in results.items():
        assert all(part in error for part in NAMED), (loader, error)


@pytest.mark.slow
@pytest.mark.parametrize("trust", [None, False, True])
def test_loading_with_the_package_asks_no_question(saved, trust):
    # A question would be an error, as the tests have no input.
    for name in ("whole", "adapter"):
        directory = saved / name
        config = AutoConfig.from_pretrained(directory, trust_remote_code=trust)
        assert type(config) in MODELS and not hasattr(config, "auto_map")
        assert type(AutoModel.from_pretrained(directory, trust_remote_code=trust)).__module__.startswith("hf_any3d.")
        for auto in (AutoProcessor, AutoFeatureExtractor):
            processor = auto.from_pretrained(directory, trust_remote_code=trust)
            assert processor.to_dict() == PointCloudProcessor(num_points=48, up_axis="z").to_dict()


@pytest.mark.slow
def test_saved_files_hold_the_name_of_the_package_and_no_code(saved, tmp_path):
    minigpt3d().save_pretrained(tmp_path)
    for file in (saved / "whole" / "config.json", saved / "adapter" / "config.json", tmp_path / "config.json"):
        (reference,) = json.loads(file.read_text())["auto_map"].values()
        assert all(part in reference for part in NAMED)
    assert not list(saved.rglob("*.py"))


def test_saving_leaves_the_config_as_it_was(tmp_path):
    model = tiny_model("bert")
    before = model.config.to_dict()
    model.config.save_pretrained(tmp_path)
    assert model.config.to_dict() == before and "auto_map" not in before
    assert not hasattr(AutoConfig.from_pretrained(tmp_path), "auto_map")


def test_settings_survive_a_json_file(tmp_path):
    for written in (tiny_model("bert").config, PointCloudProcessor(num_points=48), minigpt3d().config):
        written.to_json_file(tmp_path / "settings.json")
        read = type(written).from_json_file(tmp_path / "settings.json")
        assert read.to_dict() | {"auto_map": None} == written.to_dict() | {"auto_map": None}
