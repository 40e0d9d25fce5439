"""Facts and conversations about shapes, and the folder that the published dataset's loader reads."""

import json
from random import Random

import numpy as np
import pytest
from datasets import Array2D, ClassLabel, Dataset, Features, Value

from examples.shapes_chat import conversations, facts as shape_facts
from hf_any3d.data import load_point_dataset
from hf_any3d.data.catalog.objaverse_captions import COMPLEX, FILTERED, TEST

RED, WHITE, GREEN, BROWN = (200, 30, 30), (245, 245, 245), (60, 125, 50), (110, 70, 45)


def box(width: float, height: float, depth: float, count: int = 512) -> np.ndarray:
    corners = np.array([[x, y, z] for x in (0, 1) for y in (0, 1) for z in (0, 1)])
    inside = np.random.default_rng(0).random((count - 8, 3))
    return np.concatenate([corners, inside]) * (width, height, depth)


def plain(color, count: int = 512) -> np.ndarray:
    return np.tile(np.array(color, np.uint8), (count, 1))


@pytest.fixture
def lamp():
    parts = (shape_facts.Part("white", 0.55), shape_facts.Part("black", 0.45))
    return shape_facts.ShapeFacts("lamp", parts, upper="white", middle="white", lower="black", proportion="tall")


def test_questions_about_a_color_name_exactly_the_thirds_that_have_it(lamp):
    answers = dict(conversations.single_round(lamp, Random(seed), "where").turns[0] for seed in range(60))
    assert answers.pop("Which part is white?") == "The upper and the middle part are white."
    assert answers.pop("Where is it black?") == "The lower part is black."
    assert answers.pop("Which part is purple?") == "No part is mostly purple."
    assert all(conversations.named_thirds(answer) == lamp.where(question.split()[-1][:-1])
               for question, answer in answers.items())  # fmt: skip


def shapes_of(count: int, points: int = 1024, color=RED) -> Dataset:
    cloud = box(1, 2, 1, points).astype(np.float32)
    features = Features(
        points=Array2D((points, 3), "float32"),
        colors=Array2D((points, 3), "uint8"),
        label=ClassLabel(names=["chair", "lamp"]),
        name=Value("string"),
    )
    rows = {
        "points": [cloud] * count,
        "colors": [plain(color, points)] * count,
        "label": [number % 2 for number in range(count)],
        "name": [f"{color} {number}" for number in range(count)],
    }
    return Dataset.from_dict(rows, features=features)


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    return conversations.write_tree(tmp_path_factory.mktemp("chat") / "tree", shapes_of(4), shapes_of(3, color=WHITE))


@pytest.mark.slow
def test_dataset_loader_reads_the_folder(written, tmp_path):
    options = {"data_dir": written, "splits": ["train", "test"], "verify": False, "cache_dir": tmp_path}
    brief = load_point_dataset("objaverse_captions", **options)
    assert (len(brief["train"]), len(brief["test"])) == (4 * conversations.BRIEF_OF_A_SHAPE, 3)
    row = brief["test"].with_format("numpy")[1]
    assert row["object_id"] == "shape-test-001" and row["caption"] == "A white lamp."
    assert np.allclose(row["points"][:1024], box(1, 2, 1, 1024)) and np.allclose(
        row["points"][1024:2048], row["points"][:1024]
    )
    assert np.allclose(row["colors"], np.array(WHITE) / 255)
    for which, count in (
        ("detailed", conversations.DETAILED_OF_A_SHAPE),
        ("single_round", conversations.SINGLE_OF_A_SHAPE),
    ):
        assert len(load_point_dataset("objaverse_captions", which=which, **options)["train"]) == 4 * count


def shapes_in(annotations: list[dict]) -> set[str]:
    return {entry["object_id"] for entry in annotations}


@pytest.mark.slow
def test_no_training_conversation_is_about_a_test_shape(written):
    entries = {name: json.loads((written / "anno_data" / name).read_text()) for name in (FILTERED, COMPLEX, TEST)}
    test = shapes_in(entries[TEST])
    assert len(test) == 3
    for name in (FILTERED, COMPLEX):
        assert len(shapes_in(entries[name])) == 4 and not shapes_in(entries[name]) & test
        assert "white lamp" not in (written / "anno_data" / name).read_text()
