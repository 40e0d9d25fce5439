"""`hf-any3d detect`: tables, files, pages, and what is refused."""

import json

import numpy as np
import pytest
import torch
from transformers import pipeline

from hf_any3d import PointCloudProcessor
from hf_any3d.modeling.detr3d import Detr3DForPointCloudObjectDetection
from tests.cli.conftest import run
from tests.common.case import varied_clouds
from tests.tiny_detr3d import tiny_detr3d


@pytest.fixture(scope="module")
def detector(tmp_path_factory):
    """A directory with a detector, and one with two scans and a damaged file."""
    folder = tmp_path_factory.mktemp("detector")
    model = tiny_detr3d(Detr3DForPointCloudObjectDetection, id2label={0: "chair", 1: "lamp", 2: "table"})
    with torch.no_grad():
        model.class_head.out.bias[1] = 9.0
    model.save_pretrained(folder / "model")
    PointCloudProcessor(num_points=40, center=False, scale=None, up_axis="z").save_pretrained(folder / "model")
    (folder / "scans").mkdir()
    for number in range(2):
        np.save(folder / "scans" / f"room{number}.npy", varied_clouds(1, 60, seed=number)[0].numpy())
    return folder


@pytest.mark.slow
def test_boxes_are_the_pipelines(detector, tmp_path):
    scan = detector / "scans" / "room0.npy"
    expected = pipeline("point-cloud-object-detection", model=str(detector / "model"))(str(scan))
    made = run("detect", scan, "--model", detector / "model", "--json")
    assert made.code == 0, made.err
    assert json.loads(made.out)[0]["boxes"] == expected and len(expected) >= 1
    listed = run("detect", scan, "--model", detector / "model")
    assert f"{len(expected)} box" in listed.out and "lamp" in listed.out
    few = run("detect", scan, "--model", detector / "model", "--top-k", 1, "--csv")
    assert len(few.out.splitlines()) == 2
    assert few.out.startswith("file,label,score,x,y,z,length,width,height,heading")
    counts = []
    for nms in ("base", "none"):
        asked = ("--nms", nms, "--nms-iou", 0)
        counts.append(
            len(json.loads(run("detect", scan, "--model", detector / "model", *asked, "--json").out)[0]["boxes"])
        )
    assert counts[0] < counts[1], "boxes that overlap at all"


@pytest.mark.slow
@pytest.mark.parametrize("ending", ["json", "csv", "html"])
def test_files_of_boxes_and_pages_are_written(detector, tmp_path, ending):
    output = tmp_path / f"boxes.{ending}"
    made = run("detect", detector / "scans", "--model", detector / "model", "--output", output)
    assert made.code == 0, made.err
    text = output.read_text()
    assert "lamp" in text and "room1" in text


@pytest.mark.slow
def test_a_page_has_boxes_of_all_scores_and_starts_at_the_threshold(detector, models, tmp_path):
    from tests.visualization.test_viewer import content

    scan, output, model = detector / "scans" / "room0.npy", tmp_path / "boxes.html", models("detector")
    expected = pipeline("point-cloud-object-detection", model=model)(str(scan), threshold=0.05)
    threshold = (expected[0]["score"] + expected[-1]["score"]) / 2
    made = run("detect", scan, "--model", model, "--output", output, "--threshold", threshold, "--json")
    assert made.code == 0, made.err
    data, _ = content(output.read_text())
    assert data["boxes"]["threshold"] == threshold and data["boxes"]["names"] == ["chair", "lamp", "table"]
    found = data["panels"][0]["boxes"]
    assert [data["boxes"]["names"][number] for number, _, _ in found] == [one["label"] for one in expected]
    assert [score for _, score, _ in found] == pytest.approx([one["score"] for one in expected], abs=1e-4)
    above = [one for one in expected if one["score"] >= threshold]
    assert json.loads(made.out)[0]["boxes"] == above and 0 < len(above) < len(expected)


def test_errors_and_warnings_name_the_file(detector, tmp_path):
    files = {count: tmp_path / f"points{count}.npy" for count in (1, 5)}
    for count, file in files.items():
        np.save(file, varied_clouds(1, count)[0].numpy())
    model = detector / "model"
    alone = run("detect", files[1], "--model", model)
    assert alone.code == 1
    assert alone.err == f"error: {files[1]}: {model}: 1 point; expected at least 3\n"
    both = run("detect", *files.values(), "--model", model, "--json")
    assert alone.err in both.err and both.code == 2
    told = f"{files[5]}: 1 of 1 clouds have fewer than num_points=40 points, the smallest 5; their points are repeated"
    assert json.loads(both.out)[1]["warnings"] == [told] and f"warning: {told}\n" in both.err
    other = tmp_path / "other5.npy"
    np.save(other, varied_clouds(1, 5)[0].numpy())
    table = ("--output", tmp_path / "boxes.jsonl", "--batch-size", 2)
    many = run("detect", files[5], other, "--model", model, *table, "--resume")
    assert many.code == 0 and f"warning: one of {files[5]}, {other}: " in many.err and "num_points=40" in many.err


@pytest.mark.parametrize(
    "words", [("--labels", "chair"), ("--grammar",), ("--no-grammar",), ("--align",), ("--align-parts", "unit")]
)
def test_options_of_layouts_are_refused_for_other_models(words, detector, tmp_path):
    scan = detector / "scans" / "room0.npy"
    for more in ((), ("--output", tmp_path / "boxes.csv", "--resume")):
        made = run("detect", scan, "--model", detector / "model", *more, *words)
        assert made.code == 1 and "unknown arguments: " in made.err and made.err.count("\n") == 1, made.err


@pytest.mark.slow
def test_other_models_and_options_are_refused(detector, tmp_path):
    scan, model = detector / "scans" / "room0.npy", detector / "model"
    assert "is a detector; use hf-any3d detect" in run("segment", scan, "--model", model).err
    wrong = run("detect", scan, "--model", model, "--output", tmp_path / "boxes.ply")
    assert wrong.code == 1 and "expected one of .html, .png, .json, .csv" in wrong.err
    (tmp_path / "bad.ply").write_text("ply\n")
    made = run("detect", scan, tmp_path / "bad.ply", "--model", model)
    assert made.code == 2 and "lamp" in made.out
