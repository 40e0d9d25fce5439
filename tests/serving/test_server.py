"""One real server: killed amid load it loses no acknowledged answer, and SIGTERM finishes what it accepted."""

import concurrent.futures
import multiprocessing
import os
import re
import signal
import sys
import time

import httpx
import pytest

from hf_any3d.cli import app
from tests.serving.conftest import files


class Servers:
    """Starts servers one after the other, as `hf-any3d serve` does, in forks of this process."""

    process = None

    def start(self, *options: str) -> str:
        """Start a server and return its address."""
        source, end = os.pipe()
        self.process = multiprocessing.get_context("fork").Process(target=serve, args=(end, *options))
        self.process.start()
        os.close(end)
        self.printed = os.fdopen(source)  # open until the next start, since the server prints
        for line in self.printed:
            if found := re.search(r"http://127\.0\.0\.1:\d+", line):
                return found[0]
        raise AssertionError(f"the server ended with status {self.status()}")

    def status(self) -> int:
        """Wait for the end of the process, and return its status."""
        self.process.join()
        return self.process.exitcode


def serve(end: int, *options: str) -> None:
    """Run the command in a fork, with what it prints going to a pipe."""
    os.dup2(end, sys.stdout.fileno())
    app(["serve", "--port", "0", *options], prog_name="hf-any3d")


@pytest.fixture
def servers():
    made = Servers()
    yield made
    if made.process:
        made.process.kill()


def post(address: str, seed: int) -> httpx.Response | None:
    """Ask with a key; None if the connection breaks."""
    try:
        headers = {"Idempotency-Key": f"job-{seed}"}
        return httpx.post(f"{address}/v1/classify", **files(seed), headers=headers, timeout=60, trust_env=False)
    except httpx.TransportError:
        return None


@pytest.mark.slow
def test_killed_amid_load_it_has_every_acknowledged_answer_after_a_restart(servers, tmp_path):
    options = ("--journal", str(tmp_path / "answers.db"), "--max-batch", "2")
    address = servers.start(*options)
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        answers = [pool.submit(post, address, seed) for seed in range(40)]
        concurrent.futures.wait(answers[:8], return_when=concurrent.futures.ALL_COMPLETED)
        servers.process.kill()
        assert servers.status() == -signal.SIGKILL
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
            servers.process.terminate()
            time.sleep(0.1)
            assert kept.post(f"{address}/v1/classify", **files(200)).status_code == 503
        answers = [answer.result() for answer in accepted]
    assert all(answer.status_code in (200, 503) for answer in answers)
    assert sum(answer.status_code == 200 for answer in answers) >= 1
    assert servers.status() == 0
