"""What Any2Point models return, compared with their parts run by hand."""

import re

import pytest
import torch

from hf_any3d.modeling.any2point import (
    Any2PointConfig,
    Any2PointModel,
    PointIndexer,
)
from tests.tiny_encoders import (
    SMALL,
    clouds,
    saved_encoder,
)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"centers": torch.zeros(2, 31, dtype=torch.int32)}, "centers has shape (2, 31); expected (2, 32)"),
        ({"center_positions": torch.zeros(2, 32, 2)}, "center_positions has shape (2, 32, 2); expected (2, 32, 3)"),
        ({1: torch.zeros(2, 16, 5, dtype=torch.int32)}, "neighbors[1] has shape (2, 16, 5); expected (2, 16, 4)"),
        ({2: torch.zeros(2, 16, 4, dtype=torch.int32)}, "neighbors[2] has shape (2, 16, 4); expected (2, 8, 4)"),
    ],
)
def test_an_index_of_another_form_is_named(change, message):
    config = Any2PointConfig(**SMALL)
    index = PointIndexer(config)(clouds(2))
    stages = list(index["neighbors"])
    for key, value in change.items():
        if isinstance(key, int):
            stages[key] = value
    index |= {"neighbors": tuple(stages)} | {key: value for key, value in change.items() if isinstance(key, str)}
    model = Any2PointModel.from_encoder_pretrained(saved_encoder("bert"), **SMALL)
    with pytest.raises(ValueError, match=f"^{re.escape('point_index: ' + message)}"):
        model(clouds(2), point_index=index)
