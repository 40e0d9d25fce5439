"""Training runs that are killed, or run out of disk space, at any write resume with identical results."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from examples import run_point_cloud_classification
from hf_any3d import AutoModelForPointCloudClassification
from hf_any3d.training.program import run_program
from tests.examples.conftest import tiny_shapes, words_of
from tests.faults.killing import ALL, MODES, Ending, fill, points, report, run_child
from tests.tiny_encoders import clouds, random_encoder, tiny_config

EVERY = 23
SETTINGS = {
    "num_tokens": 4,
    "tokenizer_neighbors": 4,
    "num_points": 32,
    "num_layers": 1,
    "augment": ["scale", "jitter"],
    "per_device_train_batch_size": 4,
    "per_device_eval_batch_size": 8,
    "num_train_epochs": 3,
    "save_total_limit": 2,
    "logging_steps": 1,
    "learning_rate": 0.01,
    "peft": "lora",
    "peft_config": {"lora_dropout": 0.1},
    "report_to": "none",
    "use_cpu": True,
    "disable_tqdm": True,
}


class Training:
    """A small training program and the results of its uninterrupted run."""

    def __init__(self, folder: Path):
        self.folder, self.program = folder, run_point_cloud_classification
        random_encoder(tiny_config("bert")).save_pretrained(folder / "encoder")
        shapes = tiny_shapes(points=40)
        shapes["train"].to_parquet(folder / "train.parquet")
        shapes["test"].to_parquet(folder / "test.parquet")
        self.run(folder / "warm")  # imports everything in the parent process
        self.whole = folder / "whole"
        self.ending = self.child(self.whole)
        assert self.ending.how == "done", self.ending.output
        self.answers = answers(self.whole)

    def run(self, output: Path) -> None:
        files = {f"{split}_file": str(self.folder / f"{split}.parquet") for split in ("train", "test")}
        files |= {"validation_file": files["test_file"], "encoder_name_or_path": str(self.folder / "encoder")}
        options = {"cache_dir": str(self.folder / "cache")}
        words = words_of({**SETTINGS, **files, "output_dir": str(output), "dataset_options": options})
        run_program(lambda: self.program.main(words))

    def child(self, output: Path, at: int | None = None, mode: str = "kill") -> Ending:
        return run_child(lambda: self.run(output), output, at, mode)

    def check(self, output: Path) -> None:
        """Compare a run that finished after interruptions with the uninterrupted one."""
        expected, found = (json.loads((folder / "metrics.json").read_text()) for folder in (self.whole, output))
        assert found["metrics"] == expected["metrics"] and found["selection"] == expected["selection"]
        assert losses(output) == losses(self.whole)
        assert_equal(
            load_file(output / "adapter_model.safetensors"), load_file(self.whole / "adapter_model.safetensors")
        )
        names = [
            {path.relative_to(folder).as_posix() for path in folder.rglob("*")} for folder in (self.whole, output)
        ]
        assert names[0] == names[1], names[0] ^ names[1]

    def check_interrupted(self, output: Path) -> None:
        """Check that the output of an interrupted run does not open, or opens correctly."""
        if (output / "metrics.json").exists():
            assert (output / "README.md").exists()
        try:
            found = answers(output)
        except (OSError, ValueError):
            assert not (output / "metrics.json").exists()
            return
        assert torch.equal(found, self.answers)


def answers(model: Path) -> torch.Tensor:
    with torch.no_grad():
        return AutoModelForPointCloudClassification.from_pretrained(model)(clouds(4, 32)).logits


def losses(output: Path) -> list[tuple[int, float]]:
    last = max(output.glob("checkpoint-*"), key=lambda path: int(path.name.rpartition("-")[2]))
    history = json.loads((last / "trainer_state.json").read_text())["log_history"]
    return [(entry["step"], entry[name]) for entry in history for name in ("loss", "eval_loss") if name in entry]


def assert_equal(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name, tensor in found.items():
        assert torch.equal(tensor, expected[name]), name


@pytest.fixture(scope="module")
def training(tmp_path_factory) -> Training:
    return Training(tmp_path_factory.mktemp("faults"))


@pytest.mark.slow
@pytest.mark.parametrize("mode", MODES)
def test_an_interrupted_training_ends_like_an_uninterrupted_one(training, mode, tmp_path):
    count = len(training.ending.events)
    for number, at in enumerate(points(count, EVERY, mode)):
        output = tmp_path / f"run-{at}"
        ending = training.child(output, at, mode)
        assert ending.how in {"kill": ["killed"], "tear": ["killed", "done"], "full": ["failed", "done"]}[mode], (
            f"{at}: {ending.output}"
        )
        if mode == "full" and ending.how == "failed":
            assert "Traceback" not in ending.output, f"{at}: {ending.output}"
            message = ending.output.splitlines()[-1]
            assert message.startswith("error: ") and str(output) in message, f"{at}: {ending.output}"
        training.check_interrupted(output)
        if number % 2:  # twice in a row
            training.child(output, (at * 7 + 5) % count, "kill")
            training.check_interrupted(output)
        ending = training.child(output)
        assert ending.how == "done", f"{at}: {ending.output}"
        training.check(output)
        shutil.rmtree(output)
    report("training", mode, number + 1, (number + 1) // 2)


@pytest.mark.slow
@pytest.mark.parametrize("left", [0, 100, 400] if ALL else [100])
def test_a_training_resumes_once_a_full_disk_has_space(training, small_disk, left):
    fill(small_disk, but=left << 10)
    ending = training.child(small_disk / "run")
    message = ending.output.splitlines()[-1]
    assert ending.how == "failed" and message.startswith("error: "), ending.output
    # torch's writer says how many bytes it could write instead.
    assert "No space left on device" in message or "is the disk full?" in message, ending.output
    (small_disk / "ballast").unlink()
    ending = training.child(small_disk / "run")
    assert ending.how == "done", ending.output
    training.check(small_disk / "run")
