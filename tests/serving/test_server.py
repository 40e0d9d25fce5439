"""One real server: killed amid load it loses no acknowledged answer, and SIGTERM finishes what it accepted."""

import concurrent.futures
import os
import re
import signal
import subprocess
import sys
import time

import httpx
import pytest

from tests.serving.conftest import files

# Forked servers share the imports of one process, which take seconds.
_PROGRAM = """
import os, signal, sys
from hf_any3d.cli import app
import hf_any3d.registration, hf_any3d.serving.server
for line in sys.stdin:
    child = os.fork()
    if not child:
        try:
            app(line.split(), prog_name="hf-any3d")
        except SystemExit as end:
            os._exit(end.code or 0)
    print("pid", child, flush=True)
    print("ended", os.waitpid(child, 0)[1], flush=True)
"""


class Servers:
    """Starts servers one after the other, as `hf-any3d serve` does."""

    def __init__(self):
        command = [sys.executable, "-c", _PROGRAM]
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        self.process = subprocess.Popen(command, **pipes)

    def start(self, *options: str) -> str:
        """Start a server and return its address."""
        self.process.stdin.write(" ".join(["serve", "--port", "0", *options]) + "\n")
        self.process.stdin.flush()
        self.pid, address = None, None
        while self.pid is None or address is None:
            line = self.process.stdout.readline()
            assert line and not line.startswith("ended"), "the server ended"
            if line.startswith("pid "):
                self.pid = int(line.split()[1])
            elif found := re.search(r"http://127\.0\.0\.1:\d+", line):
                address = found[0]
        return address

    def end(self, sent: int) -> int:
        """Send a signal, and return the status of the process."""
        os.kill(self.pid, sent)
        while not (line := self.process.stdout.readline()).startswith("ended"):
            assert line
        return int(line.split()[1])


@pytest.fixture(scope="module")
def servers():
    made = Servers()
    yield made
    made.process.kill()  # it has no server left
    made.process.wait()


def post(address: str, seed: int) -> httpx.Response | None:
    """Ask with a key; None if the connection breaks."""
    try:
        headers = {"Idempotency-Key": f"job-{seed}"}
        return httpx.post(f"{address}/v1/classify", **files(seed), headers=headers, timeout=60, trust_env=False)
    except httpx.TransportError:
        return None


def test_killed_amid_load_it_has_every_acknowledged_answer_after_a_restart(servers, tmp_path):
    options = ("--journal", str(tmp_path / "answers.db"), "--max-batch", "2")
    address = servers.start(*options)
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        answers = [pool.submit(post, address, seed) for seed in range(40)]
        concurrent.futures.wait(answers[:8], return_when=concurrent.futures.ALL_COMPLETED)
        assert os.WIFSIGNALED(servers.end(signal.SIGKILL))
        found = [answer.result() for answer in answers]
    acknowledged = {seed: answer.content for seed, answer in enumerate(found) if answer is not None}
    assert 8 <= len(acknowledged) < 40
    address = servers.start(*options)
    for seed, content in acknowledged.items():
        again = post(address, seed)
        assert again.content == content and again.headers["idempotent-replayed"] == "true"
    lost = next(seed for seed in range(40) if seed not in acknowledged)
    assert post(address, lost).status_code == 200
    # SIGTERM: what is accepted gets its answer, others get 503 or find no one.
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        accepted = [pool.submit(post, address, seed) for seed in range(100, 108)]
        while not re.search(r"in_flight [1-9]", httpx.get(f"{address}/metrics", trust_env=False).text):
            if all(answer.done() for answer in accepted):
                break
        with httpx.Client(trust_env=False, timeout=60) as kept:
            assert kept.get(f"{address}/ready").status_code == 200
            os.kill(servers.pid, signal.SIGTERM)
            time.sleep(0.1)
            assert kept.post(f"{address}/v1/classify", **files(200)).status_code == 503
        answers = [answer.result() for answer in accepted]
    assert all(answer.status_code in (200, 503) for answer in answers)
    assert sum(answer.status_code == 200 for answer in answers) >= 1
    while not (line := servers.process.stdout.readline()).startswith("ended"):
        assert line
    assert int(line.split()[1]) == 0
