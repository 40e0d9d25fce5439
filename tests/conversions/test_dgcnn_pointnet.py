"""Released DGCNN and PointNet: recognized and converted, and the logits that their programs answer."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from hf_any3d import DgcnnForSemanticSegmentation, PointNetForPointCloudClassification
from hf_any3d.cli.convert import convert
from hf_any3d.data.catalog import modelnet40, s3dis
from hf_any3d.processing.point_clouds import PointCloudProcessor
from tests.reference.fill import fill, points

REFERENCE = Path(__file__).parents[1] / "reference"
WEIGHTS = next((path for up in Path(__file__).parents if (path := up / "shared/data/real/weights").is_dir()), None)
CASES = {
    "real_dgcnn_s3dis": (DgcnnForSemanticSegmentation, s3dis.CLASS_NAMES),
    "real_pointnet_modelnet40": (PointNetForPointCloudClassification, modelnet40.CLASS_NAMES),
}
over_cases = pytest.mark.parametrize("case", CASES)


def manifest_of(case: str) -> dict:
    return json.loads((REFERENCE / f"{case}.json").read_text())


def released(case: str) -> dict[str, torch.Tensor]:
    """Tensors of the names and shapes of a released file; both names of a norm hold the same."""
    state = {}
    for name, shape in manifest_of(case)["tensors"].items():
        # bn1 and conv1.1 of DGCNN; the other program has no second names.
        source = re.sub(r"^conv(\d)\.1\.", r"bn\1.", name)
        kind = "int64" if name.endswith("tracked") else "float32"
        state[name] = torch.from_numpy(np.asarray(fill(source, shape, kind)))
    return state


def sorted_numbers(tensors) -> torch.Tensor:
    return torch.cat([tensor.double().flatten() for tensor in tensors]).sort().values


@over_cases
def test_a_file_is_recognized_and_all_its_numbers_are_kept(case, tmp_path):
    prefix = "module." if "dgcnn" in case else ""
    original = {prefix + name: tensor for name, tensor in released(case).items()}
    torch.save(original, tmp_path / "theirs.t7")
    model_class, names = CASES[case]
    convert([str(tmp_path / "theirs.t7")], tmp_path / "ours", classes=",".join(names))
    model = model_class.from_pretrained(tmp_path / "ours")
    assert tuple(model.config.id2label.values()) == names
    # DGCNN's file has the norms twice, and ours once.
    once = [tensor for name, tensor in original.items() if "dgcnn" not in case or not name.startswith("module.bn")]
    theirs, ours = (
        torch.cat([tensor.double().flatten() for tensor in of]) for of in (once, model.state_dict().values())
    )
    assert torch.equal(ours.sort().values, theirs.sort().values)


@pytest.mark.skipif(WEIGHTS is None, reason="the released weights are not here")
@over_cases
@torch.no_grad()
def test_released_weights_answer_the_stored_logits(case, tmp_path):
    manifest, (model_class, names) = manifest_of(case), CASES[case]
    file = WEIGHTS / Path(manifest["file"]).name
    convert([str(file)], tmp_path / "ours")
    model = model_class.from_pretrained(tmp_path / "ours")
    # These are the authors' own files, by their checksums.
    assert tuple(model.config.id2label.values()) == names
    assert "License\n\nMIT" in (tmp_path / "ours" / "README.md").read_text()
    logits = model(torch.from_numpy(points(**manifest["input"]))).logits
    expected = load_file(REFERENCE / f"{case}.safetensors")["logits"]
    assert (logits - expected).abs().max() < manifest["tolerance"]["logits"]
    assert PointCloudProcessor.from_pretrained(tmp_path / "ours").center == ("room" if "dgcnn" in case else True)
