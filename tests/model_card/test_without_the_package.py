"""Without this package, loading fails in the words of transformers, and no question is asked."""

import json
import subprocess
import sys

import pytest
from huggingface_hub import ModelCard
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


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A complete model and an adapter, each with its processor."""
    folder = tmp_path_factory.mktemp("saved")
    for name, model in (("whole", tiny_model("bert")), ("adapter", adapted_model("bert"))):
        model.save_pretrained(folder / name)
        PointCloudProcessor(num_points=48, up_axis="z").save_pretrained(folder / name)
    return folder


@pytest.mark.slow
def test_every_loading_error_is_that_of_the_library_and_asks_nothing(saved, tmp_path):
    arguments = [str(tmp_path / "results.json"), str(saved / "whole"), str(saved / "adapter")]
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, *arguments], stdin=subprocess.DEVNULL, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert "y/N" not in done.stdout + done.stderr
    results = json.loads((tmp_path / "results.json").read_text())
    assert "GUIDED_ADAPTER" in results.pop("PeftConfig")  # PEFT's own error, which names the method
    assert len(results) == 20
    words = {
        "AutoFeatureExtractor": "Unrecognized feature extractor",
        "AutoProcessor": "Unrecognized processing class",
    }
    for door, error in results.items():
        expected = words.get(door.split()[1], "model type `any2point` but Transformers does not recognize")
        assert error.startswith("ValueError: ") and expected in error, (door, error)


def test_the_card_says_first_what_to_install(saved):
    for name in ("whole", "adapter"):
        card = ModelCard.load(saved / name / "README.md")
        assert card.data.library_name == "hf_any3d" and "hf_any3d" in card.data.tags
        first = card.text.strip().splitlines()[2]
        assert "pip install hf-any3d" in first and "import hf_any3d" in first


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
def test_saved_files_name_their_type_and_no_code(saved, tmp_path):
    minigpt3d().save_pretrained(tmp_path)
    files = [*saved.rglob("*.json"), *tmp_path.rglob("*.json")]
    assert len(files) > 5
    for file in files:
        assert "auto_map" not in json.loads(file.read_text()), file
    assert json.loads((saved / "adapter" / "config.json").read_text())["model_type"] == "any2point"
    assert not list(saved.rglob("*.py"))


def test_settings_survive_a_json_file(tmp_path):
    named = tiny_model("bert").config
    # Directories of this machine are in no file.
    named.encoder_name_or_path = "me/encoder"
    named.encoder_config.name_or_path = "me/encoder"
    for written in (named, PointCloudProcessor(num_points=48), minigpt3d().config):
        written.to_json_file(tmp_path / "settings.json")
        read = type(written).from_json_file(tmp_path / "settings.json")
        assert read.to_dict() == written.to_dict()
