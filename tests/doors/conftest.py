"""A shell as a stranger has it: the wheel installed in an environment of its own, no checkout, caches of its own.

Every command and program runs in a process of its own, into which nothing has imported the package: a fork of one that
has imported torch and the libraries of Hugging Face (`forked.py`), which takes a fifth of the time, or with changes of
the environment, such as `NEW`, a new interpreter. All shells without a network have the same such process. Nothing
here replaces a part of the library; only the hub is a stand-in on this machine, or cannot be reached.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest

from hf_any3d.data.files import PointCloudData, write_point_cloud
from tests import release

NO_NETWORK = "http://no-network.invalid"
"""Address whose name is known nowhere, as all names are without a network."""
NEW = {"ANYTHING": "1"}
"""A change of the environment, for which the libraries are imported anew."""
EXTRAS = ("demo", "export", "files", "meshes", "serve", "survey", "visuals")
"""What a stranger has installed beside the package; not the encoder that the extra `offline` brings."""
# Of an environment in which everything is tried, as developers have it, and others not.
_NOT_OF_A_STRANGER = ("HF_", "HUGGING", "TRANSFORMERS_", "OMP_", "MKL_", "PYTHON", "PYTEST", "TOKENIZERS_", "TORCH")


def write_scans(folder: Path, count: int = 5) -> Path:
    """Write embedded training shapes as PLY files in a folder for each class; returns the first file."""
    from hf_any3d.data import load_point_dataset
    from hf_any3d.data.files import PointCloudData, write_point_cloud

    rows = load_point_dataset("shapes", split="train").with_format("numpy")
    names = rows.features["label"].names
    labels = list(rows["label"])
    for name in ("chair", "lamp", "sofa", "table"):
        (folder / name).mkdir(parents=True)
        own = [row for row, label in enumerate(labels) if label == names.index(name)]
        for number, row in enumerate(own[:count]):
            write_point_cloud(folder / name / f"{number}.ply", PointCloudData(rows[row]["points"]))
    return folder / "chair" / "0.ply"


class Done(NamedTuple):
    """What a command printed, and its exit code."""

    code: int
    out: str
    err: str

    @property
    def text(self) -> str:
        """Both outputs."""
        return self.out + self.err


class Shell:
    """A shell in a folder; it has the program `hf-any3d` and a `python` with the package.

    Args:
        folder: Where it starts.
        python: Python of the environment.
        hub: Address of the hub.
    """

    def __init__(self, folder: Path, python: Path, hub: str = NO_NETWORK):
        self.folder = folder
        self.python = python
        kept = {name: value for name, value in os.environ.items() if not name.startswith(_NOT_OF_A_STRANGER)}
        self.environment = kept | {
            "PATH": f"{python.parent}{os.pathsep}{os.environ['PATH']}",
            "HOME": str(folder / "home"),
            "HF_ENDPOINT": hub,
            "HF_TOKEN": "hf_tests",
            "HF_HUB_DISABLE_XET": "1",  # the stand-in has no such storage
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "OMP_NUM_THREADS": "1",  # other tests run beside these
        }
        self.programs: Path | None = None

    def __call__(
        self, line: str, *, code: int | None = 0, stdin: str = "", seconds: int = 400, **environment: str
    ) -> Done:
        """Run a line of bash; its exit code must be `code`, any if that is None, and there is no traceback.

        With another environment the libraries are imported anew, as they read it.
        """
        if self.programs is not None and not environment:
            environment = {"PATH": f"{self.programs}{os.pathsep}{self.environment['PATH']}"}
        process = subprocess.run(
            ["bash", "-c", line],
            cwd=self.folder,
            env=self.environment | environment,
            input=stdin,
            capture_output=True,
            text=True,
            timeout=seconds,
        )
        done = Done(process.returncode, process.stdout, process.stderr)
        assert code in (None, done.code), f"{line}\nexit code {done.code}\n{done.out[-3000:]}\n{done.err[-5000:]}"
        assert "Traceback" not in done.text, f"{line}\n{done.text[-5000:]}"
        return done

    def run(self, program: str, **environment: str) -> Done:
        """Run a Python program."""
        (self.folder / "program.py").write_text(program, encoding="utf-8")
        return self("python program.py", **environment)

    def write(self, name: str, points: np.ndarray, **columns: np.ndarray) -> Path:
        """Write a cloud into the folder."""
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        write_point_cloud(path, PointCloudData(points, **columns))
        return path


def environment(name: str, extras: tuple[str, ...]) -> Path:
    """Return Python of an environment with the wheel and extras; built once for all processes of a run."""
    shared = Path(os.environ["HF_ANY3D_DRAWN"])
    with open(shared / "doors.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        checkout = shared / "doors" / "checkout"
        folder = shared / "doors" / name
        python = folder / "bin" / "python"
        if not (folder / "ready").exists():
            if not checkout.exists():
                release.build(release.copy_checkout(checkout))
                release.build(checkout / "survey")
            release.new_environment(folder, extras=extras)
            places = [checkout, checkout / "survey"] if "survey" in extras else [checkout]
            release.install(python, *(str(wheel) for place in places for wheel in place.glob("dist/*.whl")))
            # Python compiles a package when it is first imported, here once rather than in all first processes.
            release.run(
                str(python), "-m", "compileall", "-q", str(next(folder.glob("lib/*/site-packages"))), cwd=folder
            )
            (folder / "ready").touch()
    return python


@pytest.fixture(scope="session")
def installed() -> Path:
    """Python of an environment with the wheel and the extras of a stranger."""
    return environment("venv", EXTRAS)


@pytest.fixture(scope="session")
def installed_alone() -> Path:
    """Python of an environment with the wheel and what it requires."""
    return environment("alone", ())


def start_forks(shell: Shell, programs: Path, owner: int) -> None:
    """Start the process that answers commands as in a shell; `programs`, a new folder, gets those that ask it."""
    programs.mkdir()
    command = [shell.python, Path(__file__).with_name("forked.py"), programs, str(owner)]
    with open(programs / "log", "w") as log:
        process = subprocess.Popen(
            command, env=shell.environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
        )
    while not (programs / "hf-any3d").exists():
        assert process.poll() is None, (programs / "log").read_text()
        time.sleep(0.1)


@pytest.fixture(scope="module")
def open_shell(installed, tmp_path_factory) -> Iterator[Callable[..., Shell]]:
    """A function that opens a shell in a new folder; `hub` is an address, by default one that nobody answers."""
    own: list[Path] = []

    def opened(hub: str = NO_NETWORK) -> Shell:
        shell = Shell(tmp_path_factory.mktemp("elsewhere"), installed, hub)
        if hub == NO_NETWORK:
            shared = Path(os.environ["HF_ANY3D_DRAWN"])
            shell.programs = shared / "forks"
            with open(shared / "forks.lock", "w") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX)
                if not shell.programs.exists():
                    start_forks(shell, shell.programs, int((shared / "owner").read_text()))
        else:
            shell.programs = Path(tempfile.mkdtemp(prefix="forks-")) / "programs"
            own.append(shell.programs)
            start_forks(shell, shell.programs, os.getpid())
        return shell

    yield opened
    for programs in own:
        shutil.rmtree(programs.parent)


@pytest.fixture(scope="module")
def shell(open_shell) -> Shell:
    """A shell without a network, for all tests of a file."""
    return open_shell()


@pytest.fixture(scope="module")
def scans(shell) -> Path:
    """Twenty scans of four classes in the folder of the shell, and a scan outside of it."""
    return write_scans(shell.folder / "scans")
