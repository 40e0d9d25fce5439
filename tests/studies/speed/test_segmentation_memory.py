"""The benchmark of segmentation's memory: peaks are those of a process of its own; large scenes are thinned too."""

import json
import sys

import numpy as np
import pytest
from transformers import pipeline

from hf_any3d import read_point_cloud
from hf_any3d.conversions.point_transformer_v3.benchmarks import BENCHMARKS
from studies.speed import segmentation_memory
from tests.cli.conftest import run
from tests.errors import raises


def test_the_peak_is_that_of_the_command():
    plain, _ = segmentation_memory.peak_of([sys.executable, "-c", "pass"])
    large, seconds = segmentation_memory.peak_of([sys.executable, "-c", "bytearray(b'1' * 50_000_000)"])
    assert 50 < large - plain < 150 and 0 < seconds < 10
    with raises(RuntimeError, naming="exit code 3"):
        segmentation_memory.peak_of([sys.executable, "-c", "raise SystemExit(3)"])


@pytest.mark.usefixtures("libraries_as_they_were")
def test_a_street_is_voted_on_with_the_names_and_colors_of_its_benchmark(tmp_path):
    segmentation_memory.save_street_model(tmp_path / "model")
    segmentation_memory.write_street(tmp_path / "street.laz", 400)
    arguments = ("segment", tmp_path / "street.laz", "--model", tmp_path / "model", "--votes")
    code, out, err = run(*arguments, "--json", "--output", tmp_path / "labeled.ply")
    assert code == 0, err
    (row,) = json.loads(out)
    benchmark = BENCHMARKS["nuscenes"]
    assert {part["label"] for part in row["segments"]} <= set(benchmark.classes) and row["points"] == 400
    # As the pipeline votes on the same file.
    pipe = pipeline("point-cloud-segmentation", model=str(tmp_path / "model"))
    answer = pipe(str(tmp_path / "street.laz"), votes=True)
    labeled = read_point_cloud(tmp_path / "labeled.ply")
    np.testing.assert_array_equal(labeled.labels, answer["labels"])
    palette = np.array([[int(color[at : at + 2], 16) for at in (1, 3, 5)] for color in benchmark.hex_colors]) / 255
    np.testing.assert_allclose(labeled.colors, palette[answer["labels"]], atol=1 / 255)
