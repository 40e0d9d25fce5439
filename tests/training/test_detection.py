"""A run of the detection program: rows, metrics during training, card, resuming."""

import json
import math

import numpy as np
import pytest
import torch
from datasets import ClassLabel, DatasetDict, List, Value

from hf_any3d import AutoModelForPointCloudObjectDetection, PointCloudProcessor, load_point_dataset
from hf_any3d.data.annotations.boxes import build_changes
from hf_any3d.modeling.act import ActConfig, ActModel
from hf_any3d.training.detection import (
    Detection,
    DetectionDataArguments,
    DetectionTrainingArguments,
    DetectorArguments,
    SceneRows,
    box_classes,
    collate_scenes,
    train_detector,
)
from tests.cli.conftest import run
from tests.data.catalog.test_detection_datasets import write_sunrgbd
from tests.errors import raises

ROOMS = {
    **{"train_rooms": 6, "validation_rooms": 2, "test_rooms": 2, "num_points": 512, "num_objects": 3},
    "headings": False,
}
SMALL = {
    **{"num_tokens": 32, "num_queries": 8, "num_neighbors": 8, "group_radius": 0.6, "group_widths": [8, 8]},
    **{"encoder_hidden_size": 16, "encoder_layers": 1, "encoder_ffn_dim": 16, "attention_radii": None},
    **{"hidden_size": 16, "decoder_layers": 2, "decoder_ffn_dim": 16},
}


@pytest.fixture(scope="module")
def rooms():
    return load_point_dataset("rooms_with_boxes", **ROOMS)


def test_rows_differ_by_epoch_and_not_by_worker(rooms):
    processor = PointCloudProcessor(num_points=256, center=False, scale=None, up_axis="z")
    rows = SceneRows(rooms["train"], processor, build_changes(["flip", "turn"]), seed=3)
    first, again = rows[2], rows[2]
    assert torch.equal(first["points"], again["points"]) and first["points"].shape == (256, 3)
    rows.epoch = 1
    assert not torch.equal(rows[2]["points"], first["points"])
    judged = SceneRows(rooms["validation"], processor)
    assert torch.equal(judged[0]["points"], processor(rooms["validation"][0])["points"][0])
    batch = collate_scenes([first, judged[0]])
    assert batch["points"].shape == (2, 256, 3) and "points_mask" not in batch
    ragged = collate_scenes([first, {**first, "points": first["points"][:100]}])
    assert ragged["points_mask"].sum(dim=1).tolist() == [256, 100]
    assert torch.equal(ragged["points"][1][ragged["points_mask"][1]], first["points"][:100])


def task_of(folder, model=SMALL, start=None, **data) -> Detection:
    arguments = DetectionTrainingArguments(
        str(folder), seed=9, use_cpu=True, report_to="none", per_device_eval_batch_size=2, disable_tqdm=True
    )
    data = DetectionDataArguments(**{"num_points": 64, "augment": ["turn"], **data})
    return Detection(DetectorArguments(start, model), data, arguments)


def test_a_detector_has_the_classes_of_the_data_and_the_settings_of_the_arguments(rooms, tmp_path):
    model, processor = task_of(tmp_path).build(rooms)
    names = dict(enumerate(box_classes(rooms["train"])))
    assert model.config.id2label == names and model.config.num_heading_bins == 1 and processor.num_points == 64
    model.save_pretrained(tmp_path / "start")
    # Started from, it keeps its weights, and has new heads for other classes; one turned box needs headings.
    rows = rooms["train"].cast_column("box_labels", List(ClassLabel(names=["a", *names.values()])))
    again, _ = task_of(tmp_path, {"num_queries": 5}, str(tmp_path / "start")).build(DatasetDict(train=rows))
    assert (again.config.num_queries, again.config.id2label[0]) == (5, "a")
    before, after = model.state_dict(), again.state_dict()
    same = [name for name in before if before[name].shape == after[name].shape]
    assert len(same) < len(before) and all(torch.equal(before[name], after[name]) for name in same)
    for heading, bins in ((1e-3, 12), (-1e-3, 12), (1e-5, 1)):
        boxes = [[*row[:-1], [*row[-1][:6], heading]] for row in rooms["train"]["boxes"]]
        turned = rooms["train"].remove_columns("boxes").add_column("boxes", boxes)
        assert task_of(tmp_path).build(DatasetDict(train=turned))[0].config.num_heading_bins == bins


def test_scenes_that_a_detector_cannot_answer_are_named(rooms, tmp_path):
    most = max(map(len, rooms["train"]["box_labels"]))
    task_of(tmp_path, SMALL | {"num_queries": most}).build(rooms)
    with raises(ValueError, naming=f"has {most} boxes; expected at most {most - 1}"):
        task_of(tmp_path, SMALL | {"num_queries": most - 1}).build(rooms)
    other = rooms["train"].cast_column("box_labels", List(Value("int64")))
    others = other.map(lambda row: {"box_labels": [99, *row["box_labels"][1:]]})
    with raises(ValueError, naming="row 0 of the validation split has a box of class 99"):
        task_of(tmp_path).build(DatasetDict(train=rooms["train"], validation=others))


@pytest.mark.slow
def test_a_run_trains_evaluates_and_resumes(tmp_path):
    words = ["--output_dir", tmp_path, "--dataset_name", "rooms_with_boxes", "--dataset_options", json.dumps(ROOMS)]
    words += ["--model_config", json.dumps(SMALL), "--num_points", 256, "--augment", "flip:along_axes=True"]
    words += ["--per_device_train_batch_size", 3, "--num_train_epochs", 2, "--use_cpu", "--report_to", "none"]
    report = train_detector([str(word) for word in words])
    assert set(report.metrics) == {"validation", "test"}
    assert 0 <= report.metrics["test"]["map_25"] <= 1 and np.isfinite(report.metrics["test"]["loss"])
    assert report.selection["metric"] == "map_25" and report.data["rows"]["train"] == 6
    model = AutoModelForPointCloudObjectDetection.from_pretrained(tmp_path)
    assert model.config.num_heading_bins == 1 and model.config.id2label[0] == "bed"
    card = (tmp_path / "README.md").read_text()
    assert "pipeline_tag: point-cloud-object-detection" in card and "mAP at an overlap of 0.25" in card
    longer = [str(word) for word in words]
    longer[longer.index("--num_train_epochs") + 1] = "3"
    resumed = train_detector(longer)
    assert resumed.training["resumed_from"] is not None and resumed.training["steps"] == 6


def test_a_new_decoder_trains_on_a_pretrained_encoder_and_with_it(tmp_path):
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "num_groups": 4, "group_size": 8}
    encoder = ActModel(ActConfig(**sizes))
    encoder.save_pretrained(tmp_path / "encoder")
    words = ["--output_dir", tmp_path / "out", "--dataset_options", json.dumps(ROOMS), "--point_encoder"]
    words += [tmp_path / "encoder", "--point_encoder_config", '{"num_groups": 12}', "--num_points", 64, "--use_cpu"]
    words += ["--model_config", json.dumps({"num_queries": 8, "decoder_layers": 1}), "--max_steps", 2]
    report = train_detector([str(word) for word in [*words, "--report_to", "none", "--save_strategy", "no"]])
    assert report.start == {"name_or_path": str(tmp_path / "encoder")}
    model = AutoModelForPointCloudObjectDetection.from_pretrained(tmp_path / "out")
    assert model(torch.rand(1, 64, 3)).encoder_last_hidden_state.shape[1] in (12, 13)
    trained = dict(model.base_model.point_encoder.model.named_parameters())
    changed = [name for name, weight in encoder.named_parameters() if not torch.equal(weight, trained[name])]
    assert changed and len(trained) == len(list(encoder.parameters()))


@pytest.mark.slow
def test_scenes_in_the_published_layout_are_trained_on_with_their_colors(tmp_path):
    options = {"verify": False, "cache_dir": str(tmp_path / "cache")}
    words = ["--output_dir", tmp_path / "out", "--dataset_name", "sunrgbd", "--data_dir", write_sunrgbd(tmp_path)]
    words += ["--dataset_options", json.dumps(options), "--features", "xyz", "rgb", "--num_points", 256, "--use_cpu"]
    words += ["--model_config", json.dumps(SMALL | {"num_queries": 24}), "--max_steps", 1, "--augment", "flip", "turn"]
    train_detector([str(word) for word in [*words, "--report_to", "none"]])
    model = AutoModelForPointCloudObjectDetection.from_pretrained(tmp_path / "out")
    assert model.config.in_channels == 6 and model.config.num_heading_bins == 12
    row = load_point_dataset("sunrgbd", data_dir=tmp_path, **options)["validation"][0]
    rows = {rgb: {"points": row["points"], "colors": np.full_like(row["colors"], rgb)} for rgb in (0, 255)}
    processor = PointCloudProcessor.from_pretrained(tmp_path / "out")
    dark, light = (model(processor(rows[rgb], return_tensors="pt")["points"]).logits for rgb in rows)
    assert not torch.allclose(dark, light)


BOX = {"label": "chair", "center": [0.5, 0.5, 0.5], "size": [1.0, 1.0, 1.0], "heading": 0.0}


def folder_of(tmp_path, boxes):
    """Write a folder of two scans: one with these boxes, and one with a single good one."""
    folder = tmp_path / "scans"
    folder.mkdir()
    for name in ("first", "second"):
        np.save(folder / f"{name}.npy", np.random.default_rng(0).random((300, 3)).astype(np.float32))
    (folder / "boxes.json").write_text(json.dumps({"first.npy": boxes, "second.npy": [BOX]}))
    return folder


def train_on(folder, tmp_path):
    words = ["scans_with_boxes", "--data_dir", folder, "--output", tmp_path / "out", "--points", 128, "--use_cpu"]
    return run("train", *words, "--batch-size", 2, "--max_steps", 1, "--model_config", json.dumps(SMALL))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("boxes", "error"),
    [
        ([{**BOX, "size": [1, 0, 1]}], "first.npy: box 0: size is [1, 0, 1]; expected three finite numbers above 0"),
        ([BOX, {**BOX, "size": [1, -2, 1]}], "first.npy: box 1: size is [1, -2, 1]"),
        ([{**BOX, "center": [0, math.nan, 0]}], "first.npy: box 0: center is [0, nan, 0]; expected three finite"),
        ([{**BOX, "heading": 90}], "first.npy: box 0: heading is 90; expected radians"),
        ([BOX] * 9, " split has 9 boxes; expected at most 8, num_queries"),
        ([{**BOX, "center": [500, 500, 500]}], "first.npy: none of 1 boxes reaches the points"),
    ],
)
def test_wrong_boxes_are_one_error_of_the_command(boxes, error, tmp_path):
    made = train_on(folder_of(tmp_path, boxes), tmp_path)
    assert made.code == 1 and error in made.err and "Traceback" not in made.err


@pytest.mark.slow
@pytest.mark.parametrize(
    ("words", "match"),
    [
        (["--dataset_name", "rooms"], "box_labels are None"),
        (["--up_axis", "y"], "up_axis='y'; expected one of 'z'"),
        (["--augment", "rotate"], "transform is 'rotate'"),
    ],
)
def test_wrong_arguments_are_named(words, match, tmp_path):
    with pytest.raises(ValueError, match=match):
        train_detector(["--output_dir", str(tmp_path), "--use_cpu", *words])
