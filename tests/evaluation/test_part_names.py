"""Scores of parts that were asked for by name, and embeddings of their names."""

import numpy as np
import pytest
import torch

from hf_any3d.evaluation.part_names import (
    FORMS,
    SHAPENETPART_NAMES,
    named_part_iou,
    named_part_scores,
    part_embeddings,
)
from tests.errors import raises

TRUE = np.array([0, 0, 0, 1, 1, -100])
SAID = np.array([0, 0, 2, 1, 0, 3])


def test_parts_that_an_object_lacks_count_in_one_form_alone():
    # Part 0: 2 of 4; part 1: 1 of 2; part 2 is said and not there; part 3 is said where no point counts.
    assert named_part_iou(SAID, TRUE, 4, "shapenetpart") == pytest.approx((2 / 4 + 1 / 2) / 2)
    assert named_part_iou(SAID, TRUE, 4, "faust") == pytest.approx((2 / 4 + 1 / 2 + 0 + 1) / 4)
    with raises(ValueError, naming="form='other'; expected one of 'shapenetpart'"):
        named_part_iou(SAID, TRUE, 4, "other")
    for form in FORMS:
        with pytest.raises(ValueError, match="all points are ignored; expected labels from 0"):
            named_part_iou(SAID, np.full(6, -100), 4, form)


NAMES = {"Cup": ("bowl", "handle"), "Lamp": ("base", "pole", "shade")}
ROWS = [
    {"points": "cup 1", "labels": [0, 0, 1, 1], "category": "Cup"},
    {"points": "cup 2", "labels": [0, 1, 1, -100], "category": "Cup"},
    {"points": "lamp", "labels": [0, 1, 2], "category": "Lamp"},
]
ANSWERS = {"cup 1": [0, 0, 1, 1], "cup 2": [0, 0, 0, 0], "lamp": [0, 1, 1]}


@pytest.mark.parametrize(
    ("given", "asked"),
    [
        ({}, {"templates": "part_only"}),
        ({"templates": "ensemble"}, {"templates": "ensemble", "category": "Cup"}),
        ({"templates": "part_plus_cat", "more": 1}, {"templates": "part_plus_cat", "category": "Cup", "more": 1}),
        ({"templates": ["a {}"]}, {"templates": ["a {}"]}),
        ({"templates": None, "text_features": "bank"}, {"text_features": "bank"}),
    ],
)
def test_objects_are_asked_for_the_names_of_their_category(given, asked):
    calls = []

    def segment(cloud, **arguments):
        calls.append((cloud, arguments))
        return {"labels": ANSWERS[cloud["points"]]}

    found = named_part_scores(segment, ROWS, NAMES, **given)
    assert calls[0] == ({"points": "cup 1"}, {"candidate_labels": NAMES["Cup"], **asked})
    assert calls[2][1]["candidate_labels"] == NAMES["Lamp"]
    cups, lamp = [1.0, (1 / 3 + 0) / 2], (1 + 1 / 2 + 0) / 3
    assert found["category_ious"] == {"Cup": pytest.approx(np.mean(cups)), "Lamp": pytest.approx(lamp)}
    assert found["instance_miou"] == pytest.approx(np.mean([*cups, lamp]))
    assert found["category_miou"] == pytest.approx((np.mean(cups) + lamp) / 2)
    assert found["accuracy"] == pytest.approx((4 + 1 + 2) / (4 + 3 + 3))


def test_the_form_is_that_of_the_scores():
    rows = [{"points": "lamp", "labels": [0, 0, 0], "category": "Lamp"}]
    scores = [
        named_part_scores(lambda *_, **__: {"labels": [0, 0, 1]}, rows, NAMES, form=form)["instance_miou"]
        for form in FORMS
    ]
    assert scores == [pytest.approx(2 / 3), pytest.approx((2 / 3 + 0 + 1) / 3)]


def test_a_bank_has_the_mean_direction_for_parts_without_a_name():
    vectors = {"Cup": torch.eye(3)[:2], "Lamp": torch.tensor([[0.0, 0, 1]])}
    found = part_embeddings(vectors, {"Cup": [3, 1], "Lamp": [2], "Mug": [0]}, 5)
    expected = torch.tensor([[1.0, 1, 1], [0, 1, 0], [0, 0, 1], [1, 0, 0], [1, 1, 1]])
    torch.testing.assert_close(found, torch.nn.functional.normalize(expected, dim=1))
    with raises(ValueError, naming="'Cup' has 2 vectors; expected"):
        part_embeddings(vectors, {"Cup": [3], "Lamp": [2]}, 5)
    assert sum(map(len, SHAPENETPART_NAMES.values())) == 50
