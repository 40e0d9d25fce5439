"""Trainer scales gradients correctly for accumulated and distributed batches.

Some of the clouds have no label, so that batches and processes have different numbers of them.
"""

import functools
import os
import socket

import pytest
from accelerate.state import AcceleratorState

from tests.forks import results_of
from tests.tiny_encoders import saved_encoder
from tests.training.one_step import one_step


@pytest.fixture(scope="module")
def encoder() -> str:
    return saved_encoder("bert")


def of_process(rank: int, port: int, *arguments: str | int) -> dict:
    os.environ |= {"RANK": f"{rank}", "LOCAL_RANK": f"{rank}", "WORLD_SIZE": "2", "MASTER_ADDR": "localhost"}
    os.environ["MASTER_PORT"] = str(port)
    AcceleratorState._reset_state(reset_partial_state=True)
    return one_step(*arguments)


def in_two_processes(*arguments: str | int) -> dict:
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    first, second = results_of(*(functools.partial(of_process, rank, port, *arguments) for rank in range(2)))
    assert first["world_size"] == second["world_size"] == 2
    return first


def assert_same_step(result: dict, expected: dict) -> None:
    assert result["gradient_norm"] == pytest.approx(expected["gradient_norm"], rel=1e-4)
    assert result["loss"] == pytest.approx(expected["loss"], rel=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("peft", ["none", "guided_adapter"])
def test_accumulated_batches_give_the_gradient_of_the_complete_batch(encoder, peft, tmp_path):
    whole = one_step(encoder, peft, 1, str(tmp_path))
    assert whole["world_size"] == 1 and whole["gradient_norm"] > 0.01
    assert_same_step(one_step(encoder, peft, 4, str(tmp_path)), whole)


@pytest.mark.slow
def test_two_processes_that_accumulate_give_the_gradient_of_the_complete_batch(encoder, tmp_path):
    whole = one_step(encoder, "guided_adapter", 1, str(tmp_path))
    assert_same_step(in_two_processes(encoder, "guided_adapter", 2, str(tmp_path)), whole)
