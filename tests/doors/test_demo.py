"""The demo by its command, in a process of its own."""

import signal
import socket
import subprocess
import urllib.error
import urllib.request
from functools import partial

import pytest

from tests.cli.conftest import save


@pytest.mark.slow
def test_the_demo_opens_a_page_and_ends_on_ctrl_c(shell):
    pytest.importorskip("gradio")
    save("detector", shell.folder / "detector")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = ["bash", "-c", f"exec hf-any3d demo detector --port {port}"]
    demo = subprocess.Popen(
        command,
        cwd=shell.folder,
        env=shell.environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # Tests that run in the background of a shell ignore Ctrl-C, and so would their processes.
        preexec_fn=partial(signal.signal, signal.SIGINT, signal.SIG_DFL),
    )
    try:
        lines = []
        while not (lines and lines[-1].startswith("open http")):
            lines.append(demo.stdout.readline())
            assert lines[-1], demo.communicate()
        address = lines[-1].split()[1]
        with urllib.request.urlopen(address, timeout=60) as page:
            assert page.status == 200
        # A page of the internet whose name leads to this machine reads nothing.
        foreign = urllib.request.Request(address, headers={"Host": "evil.example"})
        with pytest.raises(urllib.error.HTTPError, match="403"):
            urllib.request.urlopen(foreign, timeout=60)
    finally:
        demo.send_signal(signal.SIGINT)
        _, errors = demo.communicate(timeout=60)
    assert demo.returncode in (0, 130) and "Traceback" not in errors, errors
