"""`Target`, a kind of hostile input."""

from pathlib import Path
from typing import Any, ClassVar

import numpy as np

EXECUTES = (
    "os.system",
    "os.exec",
    "os.fork",
    "os.forkpty",
    "os.posix_spawn",
    "os.spawn",
    "pickle.find_class",
    "pty.spawn",
    "socket.connect",
    "subprocess.Popen",
)
"""Audit events that reading a file never needs."""


class Target:
    """One kind of hostile input and its reader. See the package for how to write one.

    Attributes:
        name: unique; seeds the random generator together with the number of the input.
        refusals: exceptions that properly refuse an input.
        inputs: number of inputs in the test suite, so that all targets together take less than 40 s of CPU.
        seconds: CPU time allowed for one input.
        megabytes: memory allowed for one input.
        batch: inputs that one child reads at most.
        strict_warnings: whether a warning other than a UserWarning is an error.
        forbidden: Python's audit events that count as executed code.
    """

    name: str
    refusals: tuple[type[BaseException], ...] = (ValueError,)
    inputs: int = 100
    seconds: float = 5.0
    megabytes: int = 1024
    batch: int = 1000
    strict_warnings: bool = False
    forbidden: ClassVar[tuple[str, ...]] = EXECUTES

    def prepare(self, folder: Path) -> None:
        """Make the seeds, and read one of them so that the children need not import anything.

        Args:
            folder: empty, and kept while the target runs.
        """

    def make(self, generator: np.random.Generator, folder: Path) -> Any:
        """Make one hostile input.

        Args:
            generator: source of all randomness.
            folder: the folder passed to `attempt`; payloads that run code should touch `canary(folder)`.
        """
        raise NotImplementedError

    def attempt(self, case: Any, folder: Path) -> None:
        """Read an input and check the result with assertions.

        Args:
            case: the result of `make`.
            folder: empty; put the input's files here.
        """
        raise NotImplementedError

    def check_refusal(self, error: BaseException, case: Any, folder: Path) -> None:
        """Assert that the text of a refusal is good, for instance that it names the file."""

    def describe(self, case: Any) -> str:
        """Show an input in the report of a failure."""
        text = repr(case)
        return text if len(text) < 600 else text[:600] + "…"


def canary(folder: Path) -> Path:
    """Return the file whose existence shows that an input has run code."""
    return folder / "canary-that-must-not-be-there"
