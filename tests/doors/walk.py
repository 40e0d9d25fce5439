"""Run the blocks of pages as a reader does: `python walk.py JOB RESULTS`, with the Python of an environment.

Each page runs in a process of its own, from top to bottom: Python in one namespace, bash in a shell.
Every process is a fork of this one, which has imported torch and the libraries of Hugging Face but not the package: a
command then takes a fifth of the time that it takes in a new interpreter, most of which are these imports. The shells
find a program `hf-any3d` that asks this process for such a fork.

JOB is a JSON file: `pages`, each with its `name`, the `folder` in which it runs, perhaps with pages before it, and
`blocks` with `line`, `language`, `text`, `network` and `in_order`, which asks for one text of both outputs as they
come; `folder`, a new one; `hub`, the port that is reached by blocks with `network` alone. RESULTS gets a line of JSON
for each block.
"""

from __future__ import annotations

import ast
import gc
import io
import json
import os
import resource
import runpy
import select
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import traceback
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

# What the package, its pipelines and its training import of others.
PRELOADED = (
    "accelerate datasets peft scipy.spatial torch torch.utils.data transformers transformers.pipelines typer rich "
    "transformers.trainer safetensors.torch huggingface_hub transformers.models.auto.modeling_auto tokenizers xxhash"
)
CLIENT = """#!{python} -IS
import os, socket, sys, json
name = os.path.basename(sys.argv[0])
if name == "python" and not (sys.argv[1:] and sys.argv[1].endswith(".py")):
    os.execv({python!r}, [{python!r}, *sys.argv[1:]])
with socket.socket(socket.AF_UNIX) as server:
    server.connect({address!r})
    socket.send_fds(server, [b"."], [0, 1, 2])
    server.sendall(json.dumps([os.getcwd(), dict(os.environ), [name, *sys.argv[1:]]]).encode())
    server.shutdown(socket.SHUT_WR)
    sys.exit(int(server.recv(16) or 1))
"""
NETWORK = "WALK_HAS_A_NETWORK"
SECONDS = 240


def main(job: dict[str, Any], results: Path) -> None:
    """Run all pages of a job."""
    preload()
    folder = Path(job["folder"])
    shut_the_hub(job["hub"])
    address = str(folder / "forks")
    write_client(folder / "bin" / "hf-any3d", address)
    os.environ["PATH"] = f"{folder / 'bin'}{os.pathsep}{os.environ['PATH']}"
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(address)
        server.listen()
        for page, following in zip(job["pages"], [*job["pages"][1:], None], strict=True):
            # What another page has fetched is not there.
            shutil.rmtree(os.environ["HF_HOME"], ignore_errors=True)
            place = folder / page["folder"]
            place.mkdir(exist_ok=True)
            child = os.fork()
            if child == 0:
                server.close()
                os.chdir(place)
                leave(run_page, page, results)
            serve(server, child)
            if following is None or following["folder"] != page["folder"]:
                shutil.rmtree(place)
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    own = resource.getrusage(resource.RUSAGE_SELF)
    print(f"{used.ru_utime + used.ru_stime + own.ru_utime + own.ru_stime:.0f} s of processor time")


def preload() -> None:
    """Import what forks need not import again."""
    for name in PRELOADED.split():
        __import__(name)
    assert "hf_any3d" not in sys.modules
    import torch

    torch.set_num_threads(1)
    gc.collect()
    gc.freeze()


def write_client(path: Path, address: str) -> None:
    """Write a program that asks for a fork in its place."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(CLIENT.format(python=sys.executable, address=address), encoding="utf-8")
    path.chmod(0o755)


def shut_the_hub(port: int) -> None:
    """Refuse connections to the hub unless the environment says that there is a network."""
    connect = socket.socket.connect

    def guarded(self: socket.socket, address: Any) -> None:
        if isinstance(address, tuple) and address[1] == port and NETWORK not in os.environ:
            raise ConnectionRefusedError("no network: the block does not say `# needs a network`")
        connect(self, address)

    socket.socket.connect = guarded


def leave(function: Any, *values: Any) -> None:
    """Call a function and end this process."""
    code = 1
    try:
        function(*values)
        code = 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        traceback.print_exc()
    finally:
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
        os._exit(code)


def serve(server: socket.socket, child: int) -> None:
    """Fork for the commands of a page until the process of the page ends."""
    end = time.monotonic() + 2 * SECONDS
    while True:
        ready, _, _ = select.select([server], [], [], 0.02)
        if ready:
            fork(server)
        if time.monotonic() > end:
            os.kill(child, signal.SIGKILL)
        while (done := _ended()) is not None:
            if done == child:
                return


def fork(server: socket.socket) -> None:
    """Answer the next client by a fork."""
    connection, _ = server.accept()
    if os.fork() == 0:
        server.close()
        leave(answer, connection)
    connection.close()


def _ended() -> int | None:
    """Return the number of a process that has ended, None if there is none."""
    try:
        return os.waitpid(-1, os.WNOHANG)[0] or None
    except ChildProcessError:
        return None


def answer(connection: socket.socket) -> None:
    """Run a command for a client in this process, and tell its exit code."""
    _, files, _, _ = socket.recv_fds(connection, 1, 3)
    request = b"".join(iter(lambda: connection.recv(1 << 16), b""))
    folder, environment, words = json.loads(request)
    for number, file in enumerate(files):
        os.dup2(file, number)
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    # Both outputs may be one.
    sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]
    code: Any = 0
    try:
        if words[0] == "python":
            sys.argv = words[1:]
            sys.path.insert(0, folder)
            runpy.run_path(words[1], run_name="__main__")
        else:
            from hf_any3d_command import main as command

            sys.argv = words
            command()
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        traceback.print_exc()
        code = 1
    sys.stdout.flush()
    sys.stderr.flush()
    connection.sendall(str(code).encode())


def run_page(page: dict[str, Any], results: Path) -> None:
    """Run the blocks of a page, and write what they printed."""
    namespace: dict[str, Any] = {"__name__": "__main__"}
    with open(results, "a", encoding="utf-8") as file:
        for block in page["blocks"]:
            os.environ.pop(NETWORK, None)
            if block["network"]:
                os.environ[NETWORK] = "1"
            start = time.monotonic()
            run = run_python if block["language"] == "python" else run_bash
            done = run(block["text"], f"{page['name']}, line {block['line']}", namespace, block["in_order"])
            told = {"page": page["name"], "folder": page["folder"], "line": block["line"], **done}
            told["seconds"] = round(time.monotonic() - start, 2)
            file.write(json.dumps(told) + "\n")
            file.flush()


def run_python(text: str, name: str, namespace: dict[str, Any], in_order: bool) -> dict[str, Any]:
    """Run the statements of a block one by one, and keep what each printed, by its last line."""
    printed: dict[int, str] = {}
    seen, told = "", 0
    error = ""
    with tempfile.TemporaryFile() as remarks:
        usual = os.dup(2)
        if in_order:
            os.dup2(remarks.fileno(), 2)
        try:
            for statement in ast.parse(text, name).body:
                out = io.StringIO()
                try:
                    with redirect_stdout(out):
                        exec(compile(ast.Module([statement], []), name, "exec"), namespace)
                finally:
                    printed[statement.end_lineno or 0] = out.getvalue()
                    sys.stderr.flush()
                    seen += os.pread(remarks.fileno(), 1 << 20, told).decode() + out.getvalue()
                    told = os.fstat(remarks.fileno()).st_size
        except BaseException:
            error = traceback.format_exc()
        os.dup2(usual, 2)
        os.close(usual)
    return {"error": error, "printed": seen if in_order else "".join(printed.values()), "statements": printed}


def run_bash(text: str, name: str, namespace: dict[str, Any], in_order: bool) -> dict[str, Any]:
    """Run a block in a shell that stops at the first command that fails."""
    shell = subprocess.Popen(
        ["bash", "-ec", text],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT if in_order else subprocess.PIPE,
        text=True,
    )
    try:
        out, remarks = shell.communicate(timeout=SECONDS)
    except subprocess.TimeoutExpired:
        shell.kill()
        out, remarks = shell.communicate()
    remarks = remarks or ""
    error = f"exit code {shell.returncode}\n{out[-2000:]}\n{remarks[-4000:]}" if shell.returncode else ""
    if "Traceback" in out + remarks:
        error = (out + remarks)[-5000:]
    return {"error": error, "printed": out, "remarks": remarks, "statements": {}}


if __name__ == "__main__":
    main(json.loads(Path(sys.argv[1]).read_text(encoding="utf-8")), Path(sys.argv[2]))
