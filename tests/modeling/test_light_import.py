"""A model alone needs torch, transformers and numpy, and what these need themselves; nothing else is imported."""

import json

import pytest
import torch

from hf_any3d.modeling.point_transformer_v3 import PointTransformerV3ForPointCloudSegmentation
from hf_any3d.registry import TASK_FOLDERS
from studies.speed.light_import import BASE, closure, modules_of, run_with
from tests.tiny_ptv3 import tiny_ptv3

# Opens a model from the directory that is the argument, runs it and saves it again.
PROGRAM = """
from hf_any3d.modeling.point_transformer_v3 import PointTransformerV3ForPointCloudSegmentation
import torch

model = PointTransformerV3ForPointCloudSegmentation.from_pretrained(sys.argv[1])
with torch.no_grad():
    logits = model(torch.rand(1, 64, 6, generator=torch.Generator().manual_seed(0))).logits
model.save_pretrained(sys.argv[1] + "/again")
own = sorted(name for name in sys.modules if name.startswith("hf_any3d.") and ".modeling" not in name)
modules = sorted({name.partition(".")[0] for name in sys.modules})
print(json.dumps({"modules": modules, "own": own, "sum": float(logits.double().sum())}))
"""


def test_a_model_runs_where_nothing_else_is_installed(tmp_path):
    model = tiny_ptv3(PointTransformerV3ForPointCloudSegmentation)
    model.save_pretrained(tmp_path)
    allowed = modules_of(closure(BASE))
    assert not allowed & {"peft", "scipy", "datasets", "xxhash", "accelerate"}
    done = run_with(allowed, PROGRAM, str(tmp_path))
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads(done.stdout.splitlines()[-1])
    assert not set(found["modules"]) & {"peft", "scipy", "datasets", "xxhash", "accelerate"}
    with torch.no_grad():
        logits = model(torch.rand(1, 64, 6, generator=torch.Generator().manual_seed(0))).logits
    assert found["sum"] == pytest.approx(float(logits.double().sum()), rel=1e-4)
    # Beside the models: their records, by which public names are found; of tasks what they declare, which imports the
    # standard library alone.
    tasks = {name for name in found["own"] if name.startswith("hf_any3d.tasks.")}
    assert {name.rpartition(".")[2] for name in tasks} <= {*TASK_FOLDERS, "about", "settings", "records"}
    beside = [f"hf_any3d.{name}" for name in ("extensions", "registry", "tasks", "version")]
    assert [name for name in found["own"] if name not in tasks] == beside
    assert (tmp_path / "again" / "model.safetensors").is_file()
    # Packages that are not allowed are not found.
    assert "No module named 'numpy" in run_with(allowed - {"numpy"}, PROGRAM, str(tmp_path)).stderr
