"""Steps of MiniGPT-3D's training: equal however they are computed."""

import pytest
import torch

from tests.examples.act_runs import losses_of
from tests.examples.conftest import load_program, words_of
from tests.examples.minigpt3d_runs import CONFIG, SHORT, tensors_of, write_parts, write_talks

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Trains the second stage from parts; gives losses and tensors."""
    folder, program = tmp_path_factory.mktemp("steps"), load_program("run_minigpt3d")
    data, parts = write_talks(folder / "data"), {}

    def start(output_dir, stage: int = 2, lora_dropout: float = 0.0, resid_pdrop: float = 0.0, **settings):
        if resid_pdrop not in parts:
            parts[resid_pdrop] = write_parts(folder / f"parts-{resid_pdrop}", resid_pdrop=resid_pdrop)
        config = CONFIG | {
            name: CONFIG[name] | {"lora_dropout": lora_dropout} for name in ("text_lora", "qformer_lora")
        }
        own = {"stage": stage, "data_dir": str(data), "output_dir": str(output_dir), "model_config": config}
        own |= {"max_steps": 3, "save_strategy": "steps", "save_steps": 3}
        program.main(words_of(SHORT | parts[resid_pdrop] | own | settings))
        return losses_of(output_dir / "checkpoint-3"), tensors_of(output_dir)

    return start


def assert_close(one, other, tolerance: float) -> None:
    torch.testing.assert_close(torch.tensor(one[0]), torch.tensor(other[0]), rtol=0, atol=tolerance)
    for name, tensor in one[1].items():
        torch.testing.assert_close(tensor, other[1][name], rtol=0, atol=tolerance, msg=name)


def test_gradients_add_up_to_those_of_a_larger_batch(run, tmp_path):
    settings = {"max_train_samples": 2, "learning_rate": 1e-3}
    large = run(tmp_path / "large", batch_sizes=[2], **settings)
    small = run(tmp_path / "small", batch_sizes=[1], gradient_accumulation_steps=2, **settings)
    assert_close(large, small, 1e-5)


def test_checkpointing_changes_nothing_even_with_dropout(run, tmp_path):
    settings = {"lora_dropout": 0.2, "resid_pdrop": 0.2, "stage": 3, "batch_sizes": [2, 3, 2]}
    plain = run(tmp_path / "plain", **settings)
    assert_close(plain, run(tmp_path / "checkpointed", gradient_checkpointing=True, **settings), 1e-6)


def test_another_seed_draws_other_batches(run, tmp_path):
    settings = {"stage": 3, "batch_sizes": [1, 2, 1]}
    assert run(tmp_path / "one", **settings)[0] != run(tmp_path / "other", seed=7, **settings)[0]
