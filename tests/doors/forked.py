"""Answer commands and programs of shells by forks: `python forked.py FOLDER OWNER`, with the Python of an environment.

As in `walk.py`, a fork has torch and the libraries of Hugging Face, and imports the package itself. FOLDER gets the
programs `hf-any3d` and `python`, which ask for forks. This process ends when FOLDER is removed, or the process
with the number OWNER has ended.
"""

import os
import select
import socket
import sys
from pathlib import Path

from walk import fork, preload, write_client


def main(folder: Path, owner: int) -> None:
    """Answer clients one after the other."""
    sys.path.pop(0)  # the folder of the tests
    preload()
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(folder / "forks"))
        server.listen()
        for name in ("python", "hf-any3d"):
            write_client(folder / name, str(folder / "forks"))
        while (folder / "forks").exists() and is_running(owner):
            if select.select([server], [], [], 1)[0]:
                fork(server)
            reap()


def is_running(process: int) -> bool:
    """Return whether there is a process of this number."""
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    return True


def reap() -> None:
    """Forget the forks that have ended."""
    try:
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
    except ChildProcessError:
        pass


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
