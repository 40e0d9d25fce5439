"""Programs in several processes: all of them; killed, and resumed by the launcher or in another number of processes.

Minutes long, so only with HF_ANY3D_FAULTS=all (`make faults`).
"""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from hf_any3d.training.checkpoints import newest_first
from tests.examples.conftest import EXAMPLES, words_of
from tests.faults.killing import ALL
from tests.training.program_runs import PROGRAMS, prepare, settings_of

pytestmark = pytest.mark.skipif(not ALL, reason="takes minutes; make faults runs it")
RECIPES = EXAMPLES / "recipes" / "accelerate"
FILES = {
    "classification": "run_point_cloud_classification.py",
    "segmentation": "run_point_cloud_segmentation.py",
    "zero_shot": "run_zero_shot.py",
    "act_autoencoder": "run_act_autoencoder.py",
    "act_pretraining": "run_act_pretraining.py",
    "minigpt3d": "run_minigpt3d.py",
}
STILL = {
    "max_steps": 8,
    "save_strategy": "steps",
    "save_steps": 2,
    "peft_config": {"bottleneck_dropout": 0.0},
    "model_config": {"head_dropout": 0.0},
}
"""Eight steps without random numbers."""
KILLED_AFTER = 5


ACCELERATE = ("-m", "accelerate.commands.launch", "--config_file", str(RECIPES / "ddp_cpu.yaml"))
TORCHRUN = ("-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2")


def start(words: list[str], *launcher: str, **variables: str) -> subprocess.CompletedProcess:
    """Run a program in two processes, or by itself without a launcher."""
    command = [sys.executable, *launcher]
    environment = {**os.environ, **variables, "PYTHONPATH": str(EXAMPLES.parent), "OMP_NUM_THREADS": "1"}
    # Several maxima share their gradient in plain operations only.
    environment["HF_ANY3D_KERNELS"] = "torch"
    return subprocess.run([*command, *words], env=environment, capture_output=True, text=True, timeout=900)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("launched")
    prepare(folder)
    return folder


def words(folder: Path, output: Path, name: str = "classification", processes: int = 2, **settings: Any) -> list[str]:
    settings = settings_of(name, folder, processes) | settings | {"output_dir": str(output)}
    return [str(EXAMPLES / FILES[name]), *words_of(settings)]


@pytest.mark.parametrize("name", PROGRAMS)
def test_every_program_is_started_by_accelerate(folder, name):
    output = folder / "one" / name  # ACT's second stage reads the first one there
    done = start(words(folder, output, name), *ACCELERATE)
    assert done.returncode == 0, done.stderr
    assert json.loads((output / "metrics.json").read_text())["training"]["processes"] == 2


@pytest.fixture(scope="module")
def whole(folder) -> dict[str, torch.Tensor]:
    """Weights of a run that nothing interrupts."""
    done = start(words(folder, folder / "whole", **STILL), *ACCELERATE)
    assert done.returncode == 0, done.stderr
    return load_file(folder / "whole" / "adapter_model.safetensors")


def assert_ends_alike(output: Path, whole: dict[str, torch.Tensor], tolerance: float) -> None:
    found = load_file(output / "adapter_model.safetensors")
    assert found.keys() == whole.keys()
    for name, tensor in whole.items():
        torch.testing.assert_close(found[name], tensor, rtol=tolerance, atol=tolerance, msg=name)


def dying(folder: Path, marker: Path, output: Path, **settings: Any) -> list[str]:
    program = str(EXAMPLES.parent / "tests" / "faults" / "dying_program.py")
    return [program, str(KILLED_AFTER), str(marker), *words(folder, output, **STILL, **settings)]


@pytest.mark.parametrize("launcher", [TORCHRUN, ACCELERATE], ids=["torchrun", "accelerate"])
def test_the_launcher_starts_killed_processes_again(folder, whole, tmp_path, launcher):
    command = dying(folder, tmp_path / "killed", tmp_path / "run")
    apart = {"TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1", "PET_STANDALONE": "1"}
    done = start(command, *launcher, "--max_restarts", "1", **apart)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "killed").exists() and "checkpoint-4" in done.stderr
    assert_ends_alike(tmp_path / "run", whole, tolerance=1e-5)


def test_a_run_goes_on_in_another_number_of_processes(folder, whole, tmp_path):
    done = start(dying(folder, tmp_path / "killed", tmp_path / "run"), *ACCELERATE)
    assert done.returncode != 0 and newest_first(tmp_path / "run")[0].name == "checkpoint-4"
    done = start(words(folder, tmp_path / "run", **STILL))
    assert done.returncode == 1 and "its steps have 8 rows, those of this run 4" in done.stderr
    done = start(words(folder, tmp_path / "run", **STILL, per_device_train_batch_size=8))
    assert done.returncode == 0, done.stderr
    assert "checkpoint-4" in done.stderr
    assert_ends_alike(tmp_path / "run", whole, tolerance=1e-5)
