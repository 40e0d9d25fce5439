"""The segmentation program, from its arguments to the pushed repository, for scenes and parts."""

from pathlib import Path

import numpy as np
import pytest
import torch
from huggingface_hub import ModelCard
from transformers import pipeline

from hf_any3d import AutoModelForPointCloudSegmentation, PointCloudProcessor, load_point_dataset, read_point_cloud
from hf_any3d.data.catalog.s3dis import CLASS_NAMES
from hf_any3d.data.catalog.shapenetpart import CATEGORY_PARTS, PART_NAMES
from hf_any3d.data.files import write_point_cloud
from hf_any3d.evaluation.metrics import MeanIoU, PartIoU
from hf_any3d.model_card.run_report import RunReport
from hf_any3d.training import tasks as segmentation
from tests.data.catalog.s3dis_trees import write_arrays
from tests.data.catalog.shapenet_trees import write_shapenetpart
from tests.examples.conftest import SMALL, python_blocks, words_of

FILES = Path(__file__).resolve().parents[1] / "files"
DATA = {
    "rooms": {"train_rooms": 2, "validation_rooms": 1, "test_rooms": 2, "num_points": 512},
    "parts": {"train_objects": 12, "validation_objects": 6, "test_objects": 8, "num_points": 128},
}
OWN = {"rooms": {"block_size": 2.5}, "parts": {}}
NAMES = pytest.mark.parametrize("name", ["rooms", "parts"])


@pytest.fixture
def run(tiny_encoder, tmp_path):
    """Run the program with small settings and further ones; returns the report."""

    def start(name, output_dir="run", **settings):
        settings = {
            "encoder_name_or_path": tiny_encoder,
            "output_dir": str(tmp_path / output_dir),
            "dataset_name": name,
            "dataset_options": DATA.get(name, {}),
            **SMALL,
            **OWN.get(name, {}),
            **settings,
        }
        return segmentation.train_segmenter(words_of(settings))

    return start


def folder_with_chair(folder: Path) -> Path:
    """Write a folder with the test files' chair at a height of one meter."""
    folder.mkdir()
    chair = read_point_cloud(FILES / "chair.ply")
    chair.points /= np.ptp(chair.points, axis=0).max()
    write_point_cloud(folder / "chair.ply", chair)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize(("name", "peft"), [("parts", "none"), ("rooms", "guided_adapter")])
def test_pushed_repository_is_small_and_its_card_runs(hub, run, tmp_path, monkeypatch, name, peft):
    repository = f"me/segmentation-{name}-{peft.replace('_', '-')}"
    report = run(name, peft=peft, augment=["scale", "rotate"], push_to_hub=True, hub_model_id=repository)
    files = hub.files(repository)
    assert sum(files.values()) <= 3 * 4 * report.trained_parameters + 100_000
    assert {"config.json", "preprocessor_config.json", "README.md", "metrics.json"} <= files.keys()
    processor = PointCloudProcessor.from_pretrained(repository)
    assert processor.block_size == OWN[name].get("block_size") and processor.up_axis == "y"
    assert processor.scale == (None if name == "rooms" else "unit_sphere")

    monkeypatch.chdir(folder_with_chair(tmp_path / "elsewhere"))
    points = processor("chair.ply")["points"]
    category = {"category": torch.tensor([0])} if name == "parts" else {}
    local = AutoModelForPointCloudSegmentation.from_pretrained(tmp_path / "run")
    with torch.no_grad():
        expected = local(points, **category).logits
    blocks = python_blocks(hub.content(repository, "README.md").decode())
    assert len(blocks) == (2 if peft == "none" else 3)
    seen = {}
    for block in blocks:
        exec(block, seen)
    torch.testing.assert_close(seen["logits"], expected, rtol=0, atol=1e-6)
    with torch.no_grad():
        torch.testing.assert_close(seen["model"](points, **category).logits, expected, rtol=0, atol=1e-6)
    assert len(seen["answer"]["labels"]) == len(seen["answer"]["points"])
    assert {path.name for path in Path("segmented").iterdir()} == {"chair.ply", "chair.html"}


@pytest.mark.slow
@NAMES
def test_pipeline_reaches_the_reported_scores(run, tmp_path, name):
    report = run(name, num_train_epochs=2)
    assert RunReport.load(tmp_path / "run" / "metrics.json") == report
    main = "mean_iou" if name == "rooms" else "instance_miou"
    assert report.selection["metric"] == main and 0 <= report.selection["value"] <= 1
    card = ModelCard.load(tmp_path / "run" / "README.md")
    assert card.data.pipeline_tag == "point-cloud-segmentation"
    assert {result.metric_type for result in card.data.eval_results} >= {main, "accuracy"}
    assert "IoU by" in card.text and f"{100 * report.metrics['test'][main]:.1f} %" in card.text
    rows = load_point_dataset(name, split="test", **DATA[name])
    answers = pipeline("point-cloud-segmentation", model=str(tmp_path / "run"))(list(rows), batch_size=4)
    predicted, true = [answer["labels"] for answer in answers], [row["labels"] for row in rows]
    reported = report.metrics["test"]
    right = np.concatenate(predicted) == np.concatenate(true)
    assert right.mean() == pytest.approx(reported["accuracy"])
    if name == "rooms":
        metric = MeanIoU(cache_dir=str(tmp_path)).compute(predictions=predicted, references=true)
        assert metric["mean_iou"] == pytest.approx(reported["mean_iou"])
        assert "floor" in report.class_accuracy["test"]
    else:
        parts = AutoModelForPointCloudSegmentation.from_pretrained(tmp_path / "run").config.category_parts
        categories = [int(row["label"]) for row in rows]
        metric = PartIoU(cache_dir=str(tmp_path)).compute(
            predictions=predicted, references=true, categories=categories, category_parts=parts
        )
        assert metric["instance_miou"] == pytest.approx(reported["instance_miou"])
        assert metric["category_miou"] == pytest.approx(reported["category_miou"])


PUBLISHED = {
    "shapenetpart": (write_shapenetpart, {"verify": False}, {}),
    "s3dis": (
        write_arrays,
        {"verify": False, "block_size": 1.5, "block_points": 64},
        {"block_size": 1.5, "up_axis": "z", "group_column": "room"},
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", PUBLISHED)
def test_published_datasets_train_from_their_files(run, tmp_path, name):
    write, options, settings = PUBLISHED[name]
    write(tmp_path / "data")
    options = {**options, "cache_dir": str(tmp_path / "cache")}
    report = run(name, data_dir=str(tmp_path / "data"), dataset_options=options, **settings)
    config = AutoModelForPointCloudSegmentation.from_pretrained(tmp_path / "run").config
    names = [config.id2label[number] for number in range(config.num_labels)]
    if name == "shapenetpart":
        # Also categories that no training object here belongs to.
        assert names == list(PART_NAMES)
        assert [list(parts) for parts in config.category_parts] == list(map(list, CATEGORY_PARTS.values()))
        assert report.data["rows"] == {"train": 2, "validation": 2, "test": 1}
        assert 0 <= report.metrics["test"]["instance_miou"] <= 1
    else:
        assert names == list(CLASS_NAMES) and not config.category_parts
        # Four blocks of each of two training rooms and of one validation room, and two complete test rooms.
        assert report.data["rows"] == {"train": 8, "validation": 4, "test": 2}
        assert 0 <= report.metrics["test"]["mean_iou"] <= 1 and "ceiling" in report.class_accuracy["test"]
