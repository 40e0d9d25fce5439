"""Programs of `torch.export`, written by the command line, give the model's results with torch alone."""

import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from hf_any3d import PointCloudProcessor
from hf_any3d.cli import app
from tests.export.cases import LABELS, assert_written, other_clouds, trained

_ASK = """
import sys, torch
from safetensors.torch import load_file, save_file
program = torch.export.load("model.pt2")
called = {str(node.target) for node in program.graph.nodes if node.op == "call_function"}
assert "scan" in called and not any(name.startswith("hf_any3d") for name in called), called
module = program.module()
save_file({name: module(points) for name, points in load_file("points.safetensors").items()}, "logits.safetensors")
assert not any(name.startswith(("hf_any3d", "transformers", "peft")) for name in sys.modules)
"""


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """A model, the folder of its program, and what the command printed."""
    model, folder = trained("text_with_point_tokenizer"), tmp_path_factory.mktemp("pt2")
    model.save_pretrained(folder / "saved")
    PointCloudProcessor(num_points=64, up_axis="z").save_pretrained(folder / "saved")
    (folder / "out").mkdir()
    arguments = ["export", folder / "saved", "--format", "pt2", "--output", folder / "out" / "model.pt2"]
    result = CliRunner().invoke(app, [str(word) for word in arguments])
    assert result.exit_code == 0, result.output
    return model, folder / "out", result.stdout


@pytest.mark.slow
def test_command_writes_the_file_and_its_settings(exported):
    _, folder, printed = exported
    assert_written(folder / "model.pt2", printed, LABELS, min_points=32)


@pytest.mark.slow
def test_other_clouds_get_the_labels_of_the_model_where_this_package_is_not_imported(exported):
    model, folder, _ = exported
    batches = other_clouds(3)
    save_file({str(number): points for number, points in enumerate(batches)}, folder / "points.safetensors")
    done = subprocess.run([sys.executable, "-c", _ASK], cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found = load_file(folder / "logits.safetensors")
    for number, points in enumerate(batches):
        with torch.no_grad():
            expected = model(points=points).logits
        torch.testing.assert_close(found[str(number)], expected, rtol=1e-4, atol=1e-4)
        assert torch.equal(found[str(number)].argmax(dim=1), expected.argmax(dim=1))
