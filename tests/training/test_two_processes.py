"""Training in two processes equals training in one, and goes on after one has died."""

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import PartialState
from accelerate.state import AcceleratorState
from safetensors.torch import load_file
from torch.distributed.launcher import LaunchConfig, elastic_launch

from hf_any3d.modeling.kernels import set_kernels
from hf_any3d.training.processes import OwnNoise
from tests.training.program_runs import BATCH, PROGRAMS, drawing_for_all_processes, prepare, run, shard_on_cpus

SHARDED = ("classification",)
# The last of two steps has five rows: three and two.
UNEVEN_PROGRAMS = ("classification", "zero_shot")
UNEVEN = {"max_train_samples": BATCH + 5, "dataloader_drop_last": False}


@contextmanager
def signals_as_before() -> Iterator[None]:
    """Restore the handlers of signals, which a launcher replaces."""
    before = {
        number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT)
    }
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def launch_of(run_id: str, **settings: Any) -> LaunchConfig:
    """Return the settings of a launcher of two forks of this process."""
    given = {"rdzv_backend": "c10d", "rdzv_endpoint": "localhost:0", "max_restarts": 0, "start_method": "fork"}
    return LaunchConfig(min_nodes=1, max_nodes=1, nproc_per_node=2, run_id=run_id, **(given | settings))


def begin_process() -> None:
    """Forget in a fork that the process of the tests is one alone."""
    AcceleratorState._reset_state(reset_partial_state=True)
    PartialState(cpu=True)


def train_in_two(names: list[str], folder: Path, output: Path) -> None:
    """Run programs in one of two processes; those whose names end so with FSDP2, or on uneven batches."""
    begin_process()
    with drawing_for_all_processes():
        for chosen in names:
            name, _, engine = chosen.partition("-")
            if engine == "fsdp2":
                shard_on_cpus()
            run(name, folder, output, engine and f"-{engine}", **(UNEVEN if engine == "uneven" else {}))


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> Path:
    """Folder with all programs' models: `one` of this process, `two` of two processes, which are forks of it."""
    folder = tmp_path_factory.mktemp("processes")
    prepare(folder)
    # Where several rows are the maximum, fused operations pass its gradient to one of them.
    setting = set_kernels("torch")
    try:
        with drawing_for_all_processes():
            for name in PROGRAMS:
                run(name, folder, folder / "one")
            for name in UNEVEN_PROGRAMS:
                run(name, folder, folder / "one", "-uneven", **UNEVEN)
    finally:
        set_kernels(setting)
    # FSDP is the last, as it changes the environment of the process.
    chosen = [*PROGRAMS, *(f"{name}-uneven" for name in UNEVEN_PROGRAMS), *(f"{name}-fsdp2" for name in SHARDED)]
    with signals_as_before():
        elastic_launch(launch_of("programs"), train_in_two)(chosen, folder, folder / "two")
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("name", [*PROGRAMS, *(f"{name}-fsdp2" for name in SHARDED)])
def test_two_processes_train_as_one_with_larger_batches(runs, name):
    assert_equal_weights(runs / "two" / name, runs / "one" / name.removesuffix("-fsdp2"))


@pytest.mark.slow
@pytest.mark.parametrize("name", UNEVEN_PROGRAMS)
def test_two_processes_share_the_last_batch_of_an_epoch(runs, name):
    assert_equal_weights(runs / "two" / f"{name}-uneven", runs / "one" / f"{name}-uneven")


def assert_equal_weights(*folders: Path) -> None:
    found, expected = (load_file(next(folder.glob("*model.safetensors"))) for folder in folders)
    assert found.keys() == expected.keys()
    for tensor, own in expected.items():
        torch.testing.assert_close(found[tensor], own, rtol=1e-5, atol=1e-5, msg=lambda text, t=tensor: f"{t}: {text}")


def classify_and_die_once(folder: Path, output: Path) -> None:
    """Train in one of two processes; the second one dies at the end of its second step."""
    begin_process()

    def die(callback, args, state, control, **kwargs):
        if args.process_index == 1:
            with open(output / "steps", "a") as file:
                print(state.global_step, file=file)
            if os.environ["TORCHELASTIC_RESTART_COUNT"] == "0" and state.global_step == 2:
                os.kill(os.getpid(), signal.SIGKILL)

    OwnNoise.on_step_end = die  # a callback of every run
    set_kernels("torch")
    with drawing_for_all_processes():
        run("classification", folder, output, save_strategy="steps", save_steps=1)


@pytest.mark.slow
def test_the_launcher_starts_a_killed_process_again(runs, tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_DISABLE_SHARE_RDZV_TCP_STORE", "1")
    with signals_as_before():
        elastic_launch(launch_of("restarted", max_restarts=1), classify_and_die_once)(runs, tmp_path)
    assert (tmp_path / "steps").read_text().split() == ["1", "2", "2"]
    assert_equal_weights(tmp_path / "classification", runs / "one" / "classification")
