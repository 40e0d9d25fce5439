"""Full-size checkpoints, one for each released program, from the authors' file to the stored logits."""

import shutil
import warnings

import pytest
import torch
from safetensors import safe_open
from typer.testing import CliRunner

from hf_any3d import AutoModelForPointCloudClassification
from hf_any3d.cli import app
from hf_any3d.conversions.any2point import VARIANTS
from hf_any3d.evaluation.model_facts import model_facts
from tests.conftest import let_directories_be_names
from tests.conversions.originals import write
from tests.modeling.any2point.reference_case import ReferenceCase
from tests.turns import by_turns

# The programs for the two datasets have the same layers; tests/modeling/any2point compares the models of all.
PROGRAMS = ["-".join(pair) for pair in by_turns(("clip", "dinov2", "imagebind"), ("scan", "modelnet"))]


def test_programs_are_those_that_can_be_converted():
    assert set(PROGRAMS) <= set(VARIANTS)


@pytest.fixture(scope="module", params=PROGRAMS)
def converted(request, tmp_path_factory):
    """A converted checkpoint: case, directory."""
    case = ReferenceCase("any2point_" + request.param.replace("-", "_"))
    directory = tmp_path_factory.mktemp(request.param)
    checkpoint, encoder = write(case, directory, case.encoder())
    vars(case).pop("original")  # hundreds of megabytes
    arguments = ["convert", checkpoint, "--output", directory / "out"]
    with pytest.MonkeyPatch.context() as patch:
        let_directories_be_names(patch)
        result = CliRunner().invoke(app, [str(word) for word in (*arguments, "--encoder", encoder)])
    assert result.exit_code == 0, result.stderr
    checkpoint.unlink()
    yield case, directory / "out"
    shutil.rmtree(directory)  # A third of a gigabyte.


@pytest.mark.slow
def test_loaded_model_reaches_the_stored_logits(converted):
    case, directory = converted
    model = AutoModelForPointCloudClassification.from_pretrained(directory)
    with torch.no_grad(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*other clouds of a batch")
        found = model(points=case.points).logits
    expected = case.expected["logits"]
    assert (found - expected).abs().max() < 1e-4 * expected.abs().max()
    assert (found - expected).abs().max() < case.manifest["tolerance"]["logits"]


@pytest.mark.slow
def test_stored_parameters_are_those_that_the_program_trained(converted):
    case, directory = converted
    assert model_facts(str(directory))["trained parameters"] == case.manifest["trainable_count"]
    statistics = ("running_mean", "running_var", "num_batches_tracked")
    with safe_open(directory / "adapter_model.safetensors", "pt") as file:
        stored = sum(file.get_tensor(name).numel() for name in file.keys() if not name.endswith(statistics))
    assert stored == case.manifest["trainable_count"]


@pytest.mark.slow
def test_repository_is_at_most_three_times_what_was_trained(converted):
    case, directory = converted
    size = sum(file.stat().st_size for file in directory.rglob("*") if file.is_file())
    assert size <= 3 * 4 * case.manifest["trainable_count"]
