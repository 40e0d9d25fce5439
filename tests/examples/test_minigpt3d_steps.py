"""Training steps of MiniGPT-3D are equal with accumulation and checkpointing."""

from pathlib import Path

import pytest
import torch

from examples import run_minigpt3d
from tests.examples.act_runs import losses_of
from tests.examples.conftest import words_of
from tests.examples.minigpt3d_runs import CONFIG, SHORT, tensors_of, write_parts, write_talks

Steps = tuple[list[float], dict[str, torch.Tensor]]
"""Losses of the steps, and all tensors after the last one."""


class Runs:
    """Trains from pretrained parts; returns losses and tensors.

    Args:
        folder: For parts and data.
    """

    def __init__(self, folder: Path):
        self.folder, self.parts = folder, {}
        self.data = write_talks(folder / "data")

    def words(self, output_dir: Path, dropout: float = 0.0, **settings) -> list[str]:
        if dropout not in self.parts:
            self.parts[dropout] = write_parts(self.folder / f"parts-{dropout}", resid_pdrop=dropout)
        lora = {name: CONFIG[name] | {"lora_dropout": dropout} for name in ("text_lora", "qformer_lora")}
        own = {"stage": 2, "data_dir": str(self.data), "output_dir": str(output_dir), "model_config": CONFIG | lora}
        own |= {"max_steps": 3, "save_strategy": "steps", "save_steps": 3}
        return words_of(SHORT | self.parts[dropout] | own | settings)

    def __call__(self, output_dir: Path, **settings) -> Steps:
        run_minigpt3d.main(self.words(output_dir, **settings))
        return losses_of(output_dir / "checkpoint-3"), tensors_of(output_dir)


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Runs:
    return Runs(tmp_path_factory.mktemp("steps"))


def assert_close(one: Steps, other: Steps, tolerance: float) -> None:
    torch.testing.assert_close(torch.tensor(one[0]), torch.tensor(other[0]), rtol=0, atol=tolerance)
    for name, tensor in one[1].items():
        torch.testing.assert_close(tensor, other[1][name], rtol=0, atol=tolerance, msg=name)


@pytest.mark.slow
def test_accumulated_gradients_equal_those_of_a_larger_batch(run, tmp_path):
    settings = {"max_train_samples": 2, "learning_rate": 1e-3}
    large = run(tmp_path / "large", batch_sizes=[2], **settings)
    small = run(tmp_path / "small", batch_sizes=[1], gradient_accumulation_steps=2, **settings)
    assert_close(large, small, 1e-5)
