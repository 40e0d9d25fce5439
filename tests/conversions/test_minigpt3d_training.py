"""Training continues from converted models: from the authors' start, and from their files of a stage."""

import pytest
import torch

from examples import run_minigpt3d
from hf_any3d import AutoModelForPointCloudTextToText
from hf_any3d.conversions import convert_minigpt3d, convert_minigpt3d_parts
from tests.conversions.minigpt3d_originals import Originals
from tests.examples.conftest import words_of
from tests.examples.minigpt3d_runs import BATCHES, SHORT, write_talks


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Parts and checkpoints, as arguments of `convert_minigpt3d`."""
    directory = tmp_path_factory.mktemp("training")
    arguments = Originals().write(directory / "in", 0)
    torch.save(Originals().stage(3), directory / "in" / "stage_3.pth")
    parts = {name: arguments[name] for name in ("point_encoder", "qformer", "language_model")}
    convert_minigpt3d_parts(directory / "parts", **parts, num_groups=8, group_size=4)
    return {name: directory / "parts" / name for name in parts} | {"checkpoint": arguments["checkpoint"]}


@pytest.mark.slow
@pytest.mark.parametrize(("file", "stage"), [("stage_0.pth", 1), ("stage_3.pth", 4)])
def test_training_stages_start_from_converted_models(folders, tmp_path, file, stage):
    checkpoint = folders["checkpoint"].with_name(file)
    convert_minigpt3d(tmp_path / "start", **folders | {"checkpoint": checkpoint})
    data = {"data_dir": str(write_talks(tmp_path / "talks")), "batch_sizes": BATCHES[stage]}
    where = {"model_name_or_path": str(tmp_path / "start"), "output_dir": str(tmp_path / "out"), "stage": stage}
    report = run_minigpt3d.main(words_of(SHORT | data | where))
    assert report.start["stage"] == stage
    before, after = (
        AutoModelForPointCloudTextToText.from_pretrained(tmp_path / name).state_dict() for name in ("start", "out")
    )
    changed = {name for name, tensor in before.items() if not torch.equal(tensor, after[name])}
    assert changed and {".".join(name.split(".")[1:3]) for name in changed} <= {
        "bridge.point_mlp" if stage == 1 else "bridge.experts"
    }
