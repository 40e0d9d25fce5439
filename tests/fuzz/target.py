"""What a kind of hostile input consists of."""

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
    """One kind of hostile input, with what reads it. See the package for how to write one.

    Attributes:
        name: unique; decides the random numbers together with the number of the input.
        refusals: exceptions by which an input is refused as it should be.
        inputs: how many the test suite tries, so that all targets together take less than 40 s of CPU.
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
            folder: empty, and there as long as the target runs.
        """

    def make(self, generator: np.random.Generator, folder: Path) -> Any:
        """Make one hostile input.

        Args:
            generator: decides everything.
            folder: the folder that `attempt` will get; payloads that run code should touch `canary(folder)`.
        """
        raise NotImplementedError

    def attempt(self, case: Any, folder: Path) -> None:
        """Read an input, with assertions on what comes out of it.

        Args:
            case: what `make` gave.
            folder: empty; put the input's files here.
        """
        raise NotImplementedError

    def check_refusal(self, error: BaseException, case: Any, folder: Path) -> None:
        """Assert that a refusal is a good one, such as that its text names the file."""

    def describe(self, case: Any) -> str:
        """Show an input in the report of a failure."""
        text = repr(case)
        return text if len(text) < 600 else text[:600] + "…"


def canary(folder: Path) -> Path:
    """Give the file whose existence shows that an input has run code."""
    return folder / "canary-that-must-not-be-there"
