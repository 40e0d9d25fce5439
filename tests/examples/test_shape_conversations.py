"""Facts and conversations about shapes, and the folder that the published dataset's loader reads."""

import json
from random import Random

import numpy as np
import pytest
from datasets import Array2D, ClassLabel, Dataset, Features, Value

from examples.shapes_chat import conversations, facts as shape_facts
from hf_any3d.data import load_point_dataset
from hf_any3d.data.catalog.objaverse_captions import COMPLEX, FILTERED, TEST
from hf_any3d.evaluation.llm_judge import ClassNameJudge

RED, WHITE, GREEN, BROWN = (200, 30, 30), (245, 245, 245), (60, 125, 50), (110, 70, 45)


def box(width: float, height: float, depth: float, count: int = 512) -> np.ndarray:
    corners = np.array([[x, y, z] for x in (0, 1) for y in (0, 1) for z in (0, 1)])
    inside = np.random.default_rng(0).random((count - 8, 3))
    return np.concatenate([corners, inside]) * (width, height, depth)


def plain(color, count: int = 512) -> np.ndarray:
    return np.tile(np.array(color, np.uint8), (count, 1))


@pytest.mark.parametrize(
    ("extents", "word"),
    [
        ((1, 1, 1), "compact"),
        ((1, 1.7, 1), "tall"),
        ((1, 1.5, 1), "compact"),
        ((1, 1, 1.7), "long"),
        ((1.7, 0.9, 1), "long"),
        ((1, 0.2, 1), "flat"),
        ((1, 1, 0.2), "thin"),
        ((0.2, 2, 1), "thin"),
        ((2, 0.1, 1), "flat"),
        ((0.2, 2, 0.2), "tall"),
    ],
)
def test_proportion_of_extents(extents, word):
    assert shape_facts.proportion_of(box(*extents)) == word


@pytest.mark.parametrize(
    ("color", "name"),
    [
        ((0, 0, 0), "black"), ((255, 255, 255), "white"), ((128, 128, 128), "gray"), ((255, 0, 0), "red"),
        ((0, 128, 0), "green"), ((30, 60, 200), "blue"), ((250, 220, 40), "yellow"), ((101, 67, 33), "brown"),
        ((245, 222, 179), "beige"), ((255, 165, 0), "orange"), ((128, 0, 128), "purple"), ((255, 182, 193), "pink"),
    ],
)  # fmt: skip
def test_common_colors_have_their_usual_names(color, name):
    assert shape_facts.COLORS[shape_facts.color_names(np.array([color]))[0]] == name


@pytest.fixture
def lamp():
    parts = (shape_facts.Part("white", 0.55), shape_facts.Part("black", 0.45))
    return shape_facts.ShapeFacts("lamp", parts, upper="white", middle="white", lower="black", proportion="tall")


def test_captions_name_class_and_colors_in_several_wordings(lamp):
    judge = ClassNameJudge(["chair", "lamp"])
    answers = {conversations.brief(lamp, Random(seed)).turns[0][1] for seed in range(40)}
    assert len(answers) == 4
    assert all(judge(text).startswith("1#") and conversations.named_color(text) == "white" for text in answers)
    assert conversations.reference_captions(lamp)["simple_description"] == "A white and black lamp."


@pytest.mark.parametrize(
    ("topic", "answers"),
    [
        ("kind", {"It is a lamp."}),
        ("color", {"It is mostly white."}),
        ("largest", {"The white part is the largest."}),
        ("count", {"Two, a white and a black one."}),
        ("upper", {"The upper part is white.", "The white part is at the top."}),
        ("lower", {"The lower part is black.", "The black part is at the bottom."}),
        ("proportion", {"It is tall."}),
        ("second", {"The second color is black."}),
    ],
)
def test_single_questions_are_answered_by_the_facts(lamp, topic, answers):
    found = {conversations.single_round(lamp, Random(seed), topic).turns[0][1] for seed in range(20)}
    assert found == answers


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


@pytest.mark.slow
def test_folder_is_written_once_and_never_incomplete(written, tmp_path):
    before = (written / "anno_data" / FILTERED).stat().st_mtime_ns
    assert conversations.write_tree(written, shapes_of(1), shapes_of(1)) == written
    assert (written / "anno_data" / FILTERED).stat().st_mtime_ns == before
    with pytest.raises(ValueError, match="shape 0 of train has 1000 points; expected a divisor of 8192"):
        conversations.write_tree(tmp_path / "odd", shapes_of(1, points=1000), shapes_of(1))
    assert not (tmp_path / "odd").exists()
