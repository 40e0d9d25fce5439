"""Commands of the pages that label rooms and streets, with small files in the place of the published ones."""

import dataclasses
import json
import re
import shlex

import huggingface_hub
import numpy as np
import pytest

from docs.tools.snippets import ROOT
from hf_any3d.conversions.point_transformer_v3.benchmarks import BENCHMARKS
from hf_any3d.data.files import PointCloudData, write_point_cloud
from hf_any3d.hub.published_table import PUBLISHED
from studies.speed.segmentation_memory import write_street
from tests.cli.conftest import run
from tests.modeling.ptv3_case import SupervisedCase
from tests.published.test_published import forget, stored

PTV3 = "Pointcept/PointTransformerV3"


def commands(page: str, model: str) -> list[list[str]]:
    """The words of the `hf-any3d` commands of a page that name a model."""
    text = (ROOT / "docs" / page).read_text(encoding="utf-8")
    lines = re.findall(rf"^hf-any3d (.*{re.escape(model)}.*)$", text, flags=re.M)
    return [shlex.split(line) for line in lines]


@pytest.fixture
def scans(tmp_path, monkeypatch):
    """A folder with a room that has colors and normals, and a street with intensities."""
    monkeypatch.chdir(tmp_path)
    generator = np.random.default_rng(0)
    room = PointCloudData(generator.random((600, 3)), generator.random((600, 3)), np.tile([0, 0, 1.0], (600, 1)))
    write_point_cloud(tmp_path / "room.ply", room)
    write_street(tmp_path / "street.laz", 600)
    return tmp_path


def test_rooms_and_streets_get_the_labels_of_their_benchmarks(hub, scans, monkeypatch):
    cases = {"scannet": SupervisedCase("ptv1_segment"), "nuscenes": SupervisedCase("ptv1_nuscenes")}
    entry = PUBLISHED[PTV3]
    files = dict(entry.files)
    try:
        for size, case in cases.items():
            (scans / f"{size}.json").write_text(json.dumps(case.arguments))
            options = {**files[size].options, "arguments": str(scans / f"{size}.json")}
            hub.commit(PTV3, {files[size].path: stored({"state_dict": case.tensors()})}, in_lfs=True)
            files[size] = dataclasses.replace(files[size], config={"block_rule": "branch"}, options=options)
        monkeypatch.setitem(PUBLISHED, PTV3, dataclasses.replace(entry, files=files))
        found = commands("scenes.md", f"{PTV3}:scannet") + commands("scenes.md", f"{PTV3}:nuscenes")
        assert [words[1] for words in found] == ["room.ply", "street.laz"]
        for words, size in zip(found, cases, strict=True):
            code, out, err = run(*words, "--json")
            assert code == 0, err
            parts = json.loads(out)[0]["segments"]
            assert {part["label"] for part in parts} <= set(BENCHMARKS[size].classes)
            assert sum(part["points"] for part in parts) == 600
        assert BENCHMARKS["scannet"].hex_colors[0] in (scans / "room.html").read_text()
        code, out, err = run(*found[0], "--votes")
        assert code == 0 and "600 points" in out, err
    finally:
        huggingface_hub.delete_repo(PTV3)
        forget(PTV3)
