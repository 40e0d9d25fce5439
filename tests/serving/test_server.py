"""One real server: SIGTERM finishes what it accepted."""

import concurrent.futures
import multiprocessing
import os
import re
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


def post(address: str, seed: int) -> httpx.Response:
    return httpx.post(f"{address}/v1/classify", **files(seed), timeout=60, trust_env=False)


@pytest.mark.slow
def test_sigterm_finishes_what_was_accepted(servers):
    address = servers.start("--max-batch", "2")
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
