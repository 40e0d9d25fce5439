"""Arguments that would give a wrong answer are refused by their names."""

import io
from pathlib import Path

import numpy as np
import pytest
import torch

from hf_any3d import (
    PatchAlign3DForPreTraining,
    PointFeaturesForPointCloudClassification,
    PointTransformerV3Config,
)
from hf_any3d.data.collator import PointCloudCollator
from hf_any3d.data.files import PointCloudFileError, read_point_cloud, write_labels
from hf_any3d.data.files.input_files import list_files
from hf_any3d.data.files.rgbd import Intrinsics
from hf_any3d.data.inputs import split_clouds, to_cloud
from hf_any3d.data.tables.numpy_rows import usual_types
from hf_any3d.evaluation.question_answering import find_protocol
from hf_any3d.modeling.layers.losses import point_loss
from hf_any3d.modeling.minigpt3d.stages import set_stage, stage_groups
from hf_any3d.modeling.point_ops import three_nearest_interpolate
from hf_any3d.training.folds import run_once
from hf_any3d.training.sources import Source, Task
from tests.cli.conftest import run
from tests.data.files.builders import npy, pcd, ply, ply_square
from tests.errors import raises
from tests.modeling.minigpt3d.tiny_model import tiny_model as tiny_chat
from tests.tiny_aligned import tiny_aligned
from tests.tiny_features import tiny_features

ROW = {"points": np.eye(3, dtype=np.float32)}
SQUARE = ply_square("binary_little_endian")
TEXT = b"x y z wave\n0 0 0 1\n1 0 0 2\n0 1 0 3\n1 1 0 4\n"


def label(data=SQUARE, file_type="ply", **settings):
    """Write labels into a copy of four points, in memory."""
    write_labels(io.BytesIO(data), io.BytesIO(), np.zeros(4, np.int64), file_type=file_type, **settings)


@pytest.mark.parametrize(
    "call, named",
    [
        (lambda: split_clouds({"points": [ROW["points"]] * 2, "path": ["a.ply"]}), "different numbers of clouds"),
        (lambda: to_cloud({"name": "a"}), "expected 'points' or 'path'"),
        (lambda: PointCloudCollator(3)([{"points": np.full((3, 3), np.nan, np.float32)}]), "row 0"),
        (lambda: PointCloudCollator(3)([ROW | {"label": 1}, ROW]), "rows [1] have no label"),
        (lambda: find_protocol("none"), "'none'"),
        (lambda: point_loss(torch.zeros(1, 4, 2), torch.zeros(1, 3, dtype=torch.long)), "labels"),
        (
            lambda: three_nearest_interpolate(torch.zeros(1, 2, 3), torch.ones(1, 4, 3), torch.ones(1, 5, 2)),
            "features",
        ),
        (lambda: PointTransformerV3Config(condition_batch_norms=True, condition="a"), "condition='a'"),
        (lambda: PointTransformerV3Config(condition_classes={"a": [-1]}), "condition_classes"),
        (lambda: label(codes={}), "codes is {}"),
        (lambda: label(TEXT, "txt", columns={"wave": np.arange(4)}), "'wave' already"),
        (lambda: Source({}, None, Task.SEGMENTATION, Path("a"), ["a.las"]).check_way("both", None), "--way both"),
        (lambda: Source({}, None, Task.SEGMENTATION, Path("a"), ["a.las"]).check_way("trained", "b"), "--from"),
        (lambda: Source({}, None, Task.SEGMENTATION, Path("a"), ["a.las"]).check_way("trained", None), "folder"),
        (lambda: label(columns={"number": np.full(4, 2**40)}), "number goes from"),
        (lambda: read_point_cloud(ply("comment a\n" * 20_000, b""), file_type="ply"), "lines in the header"),
        (lambda: read_point_cloud(b"0 0 0\n1 1 1\n", file_type="xyz", columns=["a", "a"]), "each name once"),
    ],
)
def test_an_argument_is_refused(call, named):
    with raises(ValueError, naming=named):
        call()


def test_a_model_refuses_what_it_cannot_use():
    points = torch.rand(1, 64, 3)
    with raises(ValueError, naming="target_centers"):
        tiny_aligned(PatchAlign3DForPreTraining)(points=points, target_features=torch.ones(1, 2, 4))
    features = tiny_features(PointFeaturesForPointCloudClassification)
    with raises(ValueError, naming="weight"):
        features.set_side_head(torch.ones(features.config.hidden_size + 1), 0.0)
    for bias in (0.5, 1.5):  # the second time, the head is there
        features.set_side_head(torch.ones(features.config.hidden_size), bias)
        assert features.side_head.bias.item() == bias


def test_a_stage_trains_what_is_there():
    model = tiny_chat(qformer_lora=None)
    for stage, named in ((5, "stage=5"), (2, "qformer_lora=None")):
        with raises(ValueError, naming=named):
            stage_groups(model, stage)
    with raises(ValueError, naming="'norms'"):
        set_stage(model, 1, left_frozen=["norms"])


def test_the_place_of_the_sensor_in_a_pcd_is_told():
    data = pcd("x y z", "4 4 4", "F F F", np.eye(3, dtype="<f4").tobytes(), 3, VIEWPOINT="1 0 0 1 0 0 0")
    with pytest.warns(UserWarning, match="VIEWPOINT"):
        assert len(read_point_cloud(data, file_type="pcd")) == 3
    with pytest.raises(PointCloudFileError):
        read_point_cloud(data[:-4], file_type="pcd")


def test_words_and_further_numbers_are_kept():
    kinds = [(axis, "f4") for axis in "xyz"] + [("class", "U4")]
    rows = np.array([(0, 0, 0, "tree"), (1, 0, 0, "car"), (0, 1, 0, "tree")], kinds)
    read = read_point_cloud(npy(rows), file_type="npy")
    assert read.labels.tolist() == [1, 0, 1] and read.label_names == ("car", "tree")
    cloud = to_cloud(ROW | {"wave": np.arange(3.0)}, columns=("wave",))
    assert cloud.further["wave"].tolist() == [0, 1, 2]
    assert usual_types({"points": np.ones(3, np.float16)})["points"].dtype == np.float32


@pytest.mark.parametrize(
    "words, named",
    [
        (["zero-shot", "a.ply", "--model", "someone/model"], "--labels is missing"),
        (["segment", "a.ply", "--model", "someone/model", "--workers", 2], "--output is missing"),
        (["show", "a.ply", "b.ply", "--serve"], "2 were given"),
    ],
)
def test_a_command_refuses_before_it_opens_a_model(words, named, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("a.ply", "b.ply"):
        (tmp_path / name).write_bytes(SQUARE)
    assert named in run(*words).err


def test_labels_that_are_words_are_compared_by_their_names(tmp_path):
    kinds = [(axis, "f4") for axis in "xyz"]
    places = [tuple(row) for row in np.arange(12.0).reshape(4, 3)]
    for name, words in (("a", ["car", "tree", "car", "wall"]), ("b", ["tree", "tree", "car", "wall"])):
        rows = [(*place, word) for place, word in zip(places, words, strict=True)]
        np.save(tmp_path / f"{name}.npy", np.array(rows, [*kinds, ("class", "U4")]))
    np.save(tmp_path / "c.npy", np.array([(*place, 1) for place in places], [*kinds, ("class", "i4")]))
    done = run("evaluate", tmp_path / "a.npy", tmp_path / "b.npy", "--json")
    assert done.code == 0 and '"accuracy": 0.75' in done.out, done
    assert "words in the other file" in run("evaluate", tmp_path / "a.npy", tmp_path / "c.npy").err


def test_a_folder_says_what_it_leaves_out(tmp_path):
    for name in ("a.ply", "b.ply.gz", "notes.pdf"):
        (tmp_path / name).write_bytes(SQUARE)
    for name in ("coord.npy", "color.npy"):
        np.save(tmp_path / name, np.ones((4, 3)))
    with pytest.warns(UserWarning) as warned:
        assert list_files(tmp_path) == [str(tmp_path / "a.ply"), str(tmp_path / "coord.npy")]
    assert ["b.ply.gz" in str(warned[0].message), "color.npy" in str(warned[1].message)] == [True, True]


def test_the_lens_of_a_camera_is_told():
    camera = {"fx": 60, "fy": 60, "cx": 32, "cy": 24, "width": 64, "height": 48, "D": {"data": [0.1, 0.0]}}
    with pytest.warns(UserWarning, match="distortion D"):
        Intrinsics.of(camera)


def test_a_run_of_other_data_is_not_taken_for_this_one(tmp_path):
    (tmp_path / "rows.parquet").write_bytes(b"1")
    words = ["--train_file", str(tmp_path / "rows.parquet")]
    with pytest.raises(FileNotFoundError):
        run_once(lambda words: None, words, tmp_path / "run")
    (tmp_path / "rows.parquet").write_bytes(b"22")
    with raises(ValueError, naming="another content of"):
        run_once(lambda words: None, words, tmp_path / "run")
