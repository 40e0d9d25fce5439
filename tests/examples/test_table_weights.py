"""Tables of the authors' weights: a tiny model on tiny data, whole and in part, beside the published figure."""

import json

import pytest
import torch
from typer.testing import CliRunner

from examples.repeat import __main__ as repeat
from hf_any3d import PointCloudProcessor, PointNetConfig, PointNetForPointCloudClassification
from hf_any3d.data.catalog.modelnet40 import CLASS_NAMES
from hf_any3d.evaluation.statistics import wilson_interval
from tests.data.catalog.modelnet_trees import MODELS, write_text

TEST = MODELS["test"]


@pytest.fixture
def weights(tmp_path):
    """A PointNet that calls everything an airplane, of which the tiny test split has one."""
    labels = {"id2label": dict(enumerate(CLASS_NAMES)), "label2id": {name: n for n, name in enumerate(CLASS_NAMES)}}
    model = PointNetForPointCloudClassification(PointNetConfig(hidden_sizes=[8], head_widths=[8], **labels))
    model.classifier.out.weight.data.zero_()
    model.classifier.out.bias.data.copy_(-torch.arange(float(len(CLASS_NAMES))))
    model.save_pretrained(tmp_path / "weights")
    PointCloudProcessor(num_points=40).save_pretrained(tmp_path / "weights")
    return tmp_path / "weights"


@pytest.fixture
def reproduce(tmp_path, monkeypatch, weights):
    """Run the command on a folder of data, with the tiny weights in place of the authors'."""
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")

    def run(*words, table="pointnet-modelnet40", start=weights, data=tmp_path / "data"):
        words = ["reproduce", table, "--data-dir", data, "--output-dir", tmp_path / "out", "--start", start, *words]
        return CliRunner().invoke(repeat.app, [str(word) for word in words])

    return run


def leave(folder, models, with_lists=False):
    """Leave these models alone in a folder."""
    for path in folder.rglob("*.txt"):
        if path.stem not in models and not (with_lists and path.parent == folder):
            path.unlink()


@pytest.mark.parametrize(
    ("models", "with_lists", "right"),
    [([*TEST, *MODELS["train"]], True, 1), (TEST, False, 1), (TEST[:2], True, 1), (TEST[1:], False, 0)],
    ids=["all files", "test files alone", "some with lists", "some without lists"],
)
def test_the_published_figure_stands_beside_ours_with_its_interval(reproduce, tmp_path, models, with_lists, right):
    leave(write_text(tmp_path / "data"), models, with_lists)
    total = len({*models} & {*TEST})
    result = reproduce("--json")
    assert result.exit_code == 0, result.output
    (row,) = json.loads(result.stdout)["rows"]
    seen = row["evaluated"]
    assert (row["published"], seen["right"], seen["objects"], seen["official"]) == (89.2, right, total, 2468)
    assert row["plain"]["mean"] == pytest.approx(100 * right / total)
    assert seen["interval"] == pytest.approx([100 * bound for bound in wilson_interval(right, total)])
    text = (tmp_path / "out" / "pointnet-modelnet40" / "pointnet-modelnet40.md").read_text()
    low, high = seen["interval"]
    assert (
        f"| 89.2 | {100 * right / total:.2f} | {low:.1f} to {high:.1f} | {right} of {total} | {total} of 2,468 |"
        in text
    )
    assert f"Only {total} of 2,468 objects of the official test split are there" in text
    assert "no accuracy of the whole" in text


def test_clouds_with_too_few_points_are_refused(reproduce, tmp_path, weights):
    write_text(tmp_path / "data")
    PointCloudProcessor(num_points=41).save_pretrained(weights)
    result = reproduce()
    assert result.exit_code == 1 and "cloud 0 has 40 points; expected at least 41" in result.stderr


def test_another_file_than_the_authors_is_refused(reproduce, tmp_path):
    write_text(tmp_path / "data")
    (tmp_path / "mine.t7").write_bytes(b"mine")
    result = reproduce(start=tmp_path / "mine.t7")
    assert (
        result.exit_code == 1 and "mine.t7: its SHA-256 is not that of vinits5/learning3d:modelnet40" in result.stderr
    )


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ({"table": "dgcnn-modelnet40"}, "dgcnn-modelnet40 has 2 rows; choose its row with --row"),
        ({"start": "no.t7"}, "no.t7: no such file or directory"),
        ({"data": "nowhere"}, "nowhere; expected the folder with the files of modelnet40"),
    ],
)
def test_what_is_missing_or_unclear_is_told(reproduce, tmp_path, words, message):
    write_text(tmp_path / "data")
    result = reproduce(**words)
    assert result.exit_code == 1 and message in result.stderr
