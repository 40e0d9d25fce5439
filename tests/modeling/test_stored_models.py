"""Models saved by earlier versions load, with the same predictions.

`stored_models/` holds them as they were saved, except for paths, which are filled in. `answers.safetensors` has their
predictions.
"""

import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from hf_any3d import (
    AutoModelForPointCloudClassification,
    AutoModelForPointCloudReconstruction,
    AutoModelForPointCloudTextToText,
)
from tests import tiny_act, tiny_encoders
from tests.modeling.minigpt3d.test_minigpt3d import CLOUD, ids
from tests.modeling.minigpt3d.tiny_model import clouds as chat_clouds

HERE = Path(__file__).parent / "stored_models"
ANSWERS = load_file(HERE / "answers.safetensors")
CLASSIFIERS = ["any2point", "any2point_adapter", "any2point_stored", "any2point_adapter_stored"]
STUDENTS = ["act_adapter", "act_adapter_stored"]


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A copy of the stored models whose configs name directories that exist."""
    home = shutil.copytree(HERE, tmp_path_factory.mktemp("stored") / "models")
    for file in home.rglob("*.json"):
        file.write_text(file.read_text().replace("{HERE}", str(home)))
    return home


def answer(name: str, directory: Path) -> torch.Tensor:
    """Load a model from a directory and return its predictions for a fixed input."""
    with torch.no_grad():
        if name == "minigpt3d":
            model = AutoModelForPointCloudTextToText.from_pretrained(directory)
            return model(ids([2, *CLOUD, 5, 6]), points=chat_clouds(40)).logits
        if name == "autoencoder":
            model = AutoModelForPointCloudReconstruction.from_pretrained(directory)
            return model.teacher_features(tiny_encoders.clouds())
        points = tiny_act.clouds() if name in STUDENTS else tiny_encoders.clouds()
        return AutoModelForPointCloudClassification.from_pretrained(directory)(points).logits


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(ANSWERS))
def test_stored_models_load_with_their_predictions(home, name):
    assert ANSWERS[name].std() > 0.1
    torch.testing.assert_close(answer(name, home / name), ANSWERS[name], rtol=1e-4, atol=1e-5)


@pytest.mark.usefixtures("directories_are_names")
@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(ANSWERS))
def test_stored_models_can_be_saved_and_loaded_again(home, name, tmp_path):
    classes = {"minigpt3d": AutoModelForPointCloudTextToText, "autoencoder": AutoModelForPointCloudReconstruction}
    model = classes.get(name, AutoModelForPointCloudClassification).from_pretrained(home / name)
    model.save_pretrained(tmp_path)
    torch.testing.assert_close(answer(name, tmp_path), ANSWERS[name], rtol=1e-4, atol=1e-5)
    # Parts that are kept elsewhere are still not stored with the model.
    weights = list(tmp_path.rglob("*.safetensors"))
    assert sum(file.stat().st_size for file in weights) <= 1.1 * sum(
        file.stat().st_size for file in (home / name).rglob("*.safetensors")
    )
