"""Children that are forks of the test process: others would import the libraries again, which takes seconds."""

import multiprocessing
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any

FORKED = multiprocessing.get_context("fork")
SECONDS = 300


def results_of(*calls: Callable[[], Any]) -> list[Any]:
    """Call functions at the same time, each in a child of its own, and return their results.

    Raises:
        ChildProcessError: If a child died, or its function raised an error, which is part of the message.
    """
    pipes = [FORKED.Pipe(duplex=False) for _ in calls]
    children = [FORKED.Process(target=_tell, args=(call, end)) for call, (_, end) in zip(calls, pipes, strict=True)]
    for child, (_, end) in zip(children, pipes, strict=True):
        child.start()
        end.close()  # the child's own is the last one, so that its death ends the pipe
    try:
        return [_heard(child, source) for child, (source, _) in zip(children, pipes, strict=True)]
    finally:
        for child in children:
            child.kill()
            child.join()


def _tell(call: Callable[[], Any], end: Connection) -> None:
    try:
        told = (call(), None)
    except BaseException:
        told = (None, traceback.format_exc())
    end.send(told)


def _heard(child: Any, source: Connection) -> Any:
    if not source.poll(SECONDS):
        raise ChildProcessError(f"a child has not ended after {SECONDS} seconds")
    try:
        result, error = source.recv()
    except EOFError:
        child.join()
        raise ChildProcessError(f"a child died with status {child.exitcode}") from None
    if error is not None:
        raise ChildProcessError(error)
    return result
