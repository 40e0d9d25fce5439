"""Scores of parts that were asked for by name, and embeddings of their names."""

import numpy as np
import pytest
import torch

from hf_any3d.evaluation.part_names import FORMS, SHAPENETPART_NAMES, named_part_iou, part_embeddings
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


def test_a_bank_has_the_mean_direction_for_parts_without_a_name():
    vectors = {"Cup": torch.eye(3)[:2], "Lamp": torch.tensor([[0.0, 0, 1]])}
    found = part_embeddings(vectors, {"Cup": [3, 1], "Lamp": [2], "Mug": [0]}, 5)
    expected = torch.tensor([[1.0, 1, 1], [0, 1, 0], [0, 0, 1], [1, 0, 0], [1, 1, 1]])
    torch.testing.assert_close(found, torch.nn.functional.normalize(expected, dim=1))
    with raises(ValueError, naming="'Cup' has 2 vectors; expected"):
        part_embeddings(vectors, {"Cup": [3], "Lamp": [2]}, 5)
    assert sum(map(len, SHAPENETPART_NAMES.values())) == 50
