"""Real servers: their start, and SIGTERM, which finishes what they accepted."""

import concurrent.futures
import json
import multiprocessing
import os
import re
import shlex
import shutil
import subprocess
import sys
import time
from functools import partial

import httpx
import pytest

import hf_any3d
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


@pytest.mark.slow
def test_a_server_tells_its_start_its_requests_and_its_end():
    program = "from hf_any3d_command import main; main()"
    command = [sys.executable, "-c", program, "serve", "--port", "0", "--log-format", "json"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout and process.stderr
        port = re.search(r"port (\d+)", json.loads(process.stderr.readline())["message"])
        assert port
        address = f"http://127.0.0.1:{port[1]}"
        ask = partial(httpx.get, trust_env=False, timeout=60)
        starting = ask(f"{address}/ready")
        assert (starting.status_code, starting.json()["status"]) == (503, "starting")
        assert ask(f"{address}/health").status_code == 200
        assert "loaded" in process.stdout.readline() and address in process.stdout.readline()
        assert ask(f"{address}/ready").status_code == 200
        assert ask(f"{address}/health", headers={"Host": "evil.example"}).status_code == 403
        process.terminate()
        # Libraries write lines of their own.
        logged = [json.loads(line) for line in process.stderr if line.startswith("{")]
    assert process.returncode == 0
    assert [(line["path"], line["status"]) for line in logged if "status" in line] == [
        ("/ready", 200),
        ("/health", 403),
    ]
    assert "stopping" in logged[-2]["message"] and "stopped" in logged[-1]["message"]


@pytest.mark.slow
def test_the_front_page_answers_about_a_file(servers, browser, tmp_path):
    file = shutil.copy(hf_any3d.example_file("chair.ply"), tmp_path / "it's a chair.ply")
    address = servers.start()
    browser.open(address)
    browser.all("input[type=file]")[0].send_keys(str(file))
    words = shlex.split(browser.text("#command"))
    assert words == ["curl", "-F", "file=@it's a chair.ply", f"{address}/v1/classify"]
    browser.all("button")[0].click()
    browser.wait(lambda: len(browser.text("[role=status]")) > 1)
    assert browser.texts("[role=status] td:first-child")[0] == "chair", browser.text("[role=status]")
    assert browser.errors() == []
