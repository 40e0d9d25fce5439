"""Devices that this machine lacks."""

import pytest
import torch

from hf_any3d.utils.devices import check_device
from tests.errors import raises


@pytest.mark.parametrize("device", ["gpu", "cuda:99", "GPU 0", 99, torch.device("cuda", 99)])
def test_a_device_that_is_not_there_is_named_with_those_that_are(device):
    with raises(ValueError, naming=f"device {device}: there is none here; expected one of cpu"):
        check_device(device)


@pytest.mark.parametrize("device", [None, "cpu", -1, torch.device("cpu"), "cpu:0"])
def test_a_device_that_is_there_is_no_error(device):
    check_device(device)
