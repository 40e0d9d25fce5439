"""A model alone needs torch, transformers and numpy, and what these need themselves; nothing else is imported."""

import importlib.metadata
import json
import re
import subprocess
import sys

import pytest
import torch
from packaging.requirements import Requirement

from hf_any3d.modeling.point_transformer_v3 import PointTransformerV3ForPointCloudSegmentation
from tests.tiny_ptv3 import tiny_ptv3

BASE = ("torch", "transformers", "numpy")
# Finds no other packages, imports a model, opens it from a directory and runs it. Arguments: packages, directory.
PROGRAM = """
import json, sys

allowed, directory = json.loads(sys.argv[1]), sys.argv[2]

class Hide:
    def __init__(self, finder):
        self.finder = finder

    def find_spec(self, name, path=None, target=None):
        top = name.partition(".")[0]
        if top not in allowed and top not in sys.stdlib_module_names and top != "hf_any3d":
            return None
        return self.finder.find_spec(name, path, target)

sys.meta_path[:] = map(Hide, sys.meta_path)
from hf_any3d.modeling.point_transformer_v3 import PointTransformerV3ForPointCloudSegmentation
import torch

model = PointTransformerV3ForPointCloudSegmentation.from_pretrained(directory)
with torch.no_grad():
    logits = model(torch.rand(1, 64, 6, generator=torch.Generator().manual_seed(0))).logits
model.save_pretrained(directory + "/again")
used = {name.partition(".")[0] for name in sys.modules} - set(sys.stdlib_module_names)
own = sorted(name for name in sys.modules if name.startswith("hf_any3d.") and ".modeling" not in name)
print(json.dumps({"used": sorted(used & {*allowed, "peft", "scipy", "datasets", "xxhash"}), "own": own,
                  "sum": float(logits.double().sum())}))
"""


def _closure() -> set[str]:
    """Modules of the packages that `BASE` requires, without extras."""
    found, waiting = set(), list(BASE)
    while waiting:
        name = re.sub(r"[-_.]+", "-", waiting.pop()).lower()
        if name in found:
            continue
        try:
            required = map(Requirement, importlib.metadata.requires(name) or ())
        except importlib.metadata.PackageNotFoundError:
            continue
        found.add(name)
        waiting += [one.name for one in required if one.marker is None or one.marker.evaluate({"extra": ""})]
    packages = importlib.metadata.packages_distributions().items()
    return {top for top, owners in packages if {re.sub(r"[-_.]+", "-", owner).lower() for owner in owners} & found}


def _run(allowed: set[str], directory: str) -> subprocess.CompletedProcess:
    command = [sys.executable, "-c", PROGRAM, json.dumps(sorted(allowed)), directory]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_a_model_runs_where_nothing_else_is_installed(tmp_path):
    model = tiny_ptv3(PointTransformerV3ForPointCloudSegmentation)
    model.save_pretrained(tmp_path)
    done = _run(_closure(), str(tmp_path))
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads(done.stdout.splitlines()[-1])
    assert not set(found["used"]) & {"peft", "scipy", "datasets", "xxhash", "accelerate"}
    with torch.no_grad():
        logits = model(torch.rand(1, 64, 6, generator=torch.Generator().manual_seed(0))).logits
    assert found["sum"] == pytest.approx(float(logits.double().sum()), rel=1e-4)
    # Beside the models: what is needed to find public names.
    assert found["own"] == ["hf_any3d.public_names", "hf_any3d.registry", "hf_any3d.version"]
    # The program does refuse what it does not allow.
    assert "No module named 'numpy" in _run(_closure() - {"numpy"}, str(tmp_path)).stderr
