"""Trainer scales gradients correctly for accumulated and distributed batches.

If the forward of a model has further keyword arguments, Trainer assumes that the model divides its loss by the number
of items. It then neither divides by the accumulation steps nor averages over processes, and the gradient grows with
both. This package's models have `accepts_loss_kwargs = False`.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.tiny_encoders import saved_encoder
from tests.training.one_step import one_step

ROOT = Path(__file__).resolve().parents[2]
PROGRAM = ROOT / "tests" / "training" / "one_step.py"


@pytest.fixture(scope="module")
def encoder() -> str:
    return saved_encoder("bert")


def in_two_processes(encoder: str, peft: str, accumulation_steps: int, output_dir: Path) -> dict:
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    words = [str(PROGRAM), encoder, peft, str(accumulation_steps), str(output_dir)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    for _ in range(2):  # seen to fail once, cause unknown; a wrong gradient still fails
        done = subprocess.run([*launcher, *words], env=environment, capture_output=True, text=True, timeout=300)
        if done.returncode == 0:
            break
    assert done.returncode == 0, done.stderr
    return json.loads((output_dir / "result.json").read_text())


def assert_same_step(result: dict, expected: dict) -> None:
    assert result["gradient_norm"] == pytest.approx(expected["gradient_norm"], rel=1e-4)
    assert result["loss"] == pytest.approx(expected["loss"], rel=1e-4)


@pytest.mark.parametrize("peft", ["none", "guided_adapter"])
def test_accumulated_batches_give_the_gradient_of_the_complete_batch(encoder, peft, tmp_path):
    whole = one_step(encoder, peft, 1, str(tmp_path))
    assert whole["world_size"] == 1 and whole["gradient_norm"] > 0.01
    assert_same_step(one_step(encoder, peft, 4, str(tmp_path)), whole)


def test_error_without_the_flag_of_the_models(encoder, tmp_path):
    # Trainer then passes the number of items and does not divide the loss.
    with pytest.raises(TypeError, match="num_items_in_batch"):
        one_step(encoder, "none", 4, str(tmp_path), loss_kwargs=True)


def test_two_processes_that_accumulate_give_the_gradient_of_the_complete_batch(encoder, tmp_path):
    whole = one_step(encoder, "guided_adapter", 1, str(tmp_path))
    result = in_two_processes(encoder, "guided_adapter", 2, tmp_path)
    assert result["world_size"] == 2
    assert_same_step(result, whole)
