"""Answer the commands and programs of a shell by forks: `python forked.py FOLDER`, with the Python of an environment.

As in `walk.py`, a fork has torch and the libraries of Hugging Face, and imports the package itself. FOLDER gets the
programs `hf-any3d` and `python`, which ask for forks. This process ends when its standard input does.
"""

import os
import select
import socket
import sys
from pathlib import Path

from walk import fork, preload, write_client


def main(folder: Path) -> None:
    """Answer clients one after the other."""
    sys.path.pop(0)  # the folder of the tests
    preload()
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(folder / "forks"))
        server.listen()
        for name in ("python", "hf-any3d"):
            write_client(folder / name, str(folder / "forks"))
        print("ready", flush=True)
        while sys.stdin not in (ready := select.select([server, sys.stdin], [], [], 1)[0]):
            if ready:
                fork(server)
            reap()


def reap() -> None:
    """Forget the forks that have ended."""
    try:
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
    except ChildProcessError:
        pass


if __name__ == "__main__":
    main(Path(sys.argv[1]))
