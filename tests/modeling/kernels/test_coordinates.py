"""Coordinates that operations accept, and the words in which others are refused."""

import importlib
import re

import pytest
import torch

from hf_any3d.modeling.kernels.coordinates import LARGEST_COORDINATE, coordinates, refuse_out_of_range
from tests.errors import raises

MODULE = importlib.import_module("hf_any3d.modeling.kernels.coordinates")


@pytest.mark.parametrize("shape", [(4, 3), (1, 1, 4, 3), (2, 4, 2)])
def test_clouds_of_other_shapes_are_refused(shape):
    message = f"query: shape {shape}; expected (batch, points, channels) with channels >= 3"
    with pytest.raises(ValueError, match=re.escape(message)):
        coordinates("query", torch.zeros(shape))


def test_integers_are_refused():
    with raises(ValueError, naming="query: dtype torch.int64; expected a"):
        coordinates("query", torch.zeros(1, 4, 3).long())


@pytest.mark.parametrize(
    ("number", "largest", "message"),
    [
        (float("nan"), None, "query: found NaN or infinite coordinates in cloud 1; expected finite numbers"),
        (float("-inf"), None, "query: found NaN or infinite coordinates in cloud 1; expected finite numbers"),
        (-2.5e12, None, "query: found 2.5e+12 in cloud 1; expected numbers of at most 1e+12 in size"),
        (5.5, 5.0, "query: found 5.5 in cloud 1; expected numbers of at most 5 in size"),
        (-5.5, 5.0, "query: found 5.5 in cloud 1; expected numbers of at most 5 in size"),
    ],
)
def test_the_first_cloud_out_of_range_is_named(number, largest, message):
    values = torch.ones(4, 3, 5)
    values[0, 1, 1] = -(largest or LARGEST_COORDINATE)  # is allowed
    values[1, 2, 4] = number
    values[3] = float("nan")
    with pytest.raises(ValueError) as error:
        refuse_out_of_range("query", values.requires_grad_(), *([] if largest is None else [largest]))
    assert str(error.value) == message


def test_devices_that_would_wait_are_checked_later(monkeypatch):
    later = []
    monkeypatch.setattr(MODULE, "refuse_later", lambda failed, message: later.append((failed, message)))
    assert refuse_out_of_range("points", torch.empty(2, 3, 3, device="meta"), 1e4) is None
    ((failed, message),) = later
    assert failed.is_meta and failed.dtype == torch.bool and failed.shape == ()
    assert message == "points: found NaN, infinite numbers or numbers above 1e+04 in an earlier batch"
