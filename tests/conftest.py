"""Shared by all tests: few threads, and a hub of our own in place of the network."""

import os
import shutil
import sys
import tempfile

import pytest

from tests.hub import LocalHub

# huggingface_hub reads these once, when it is imported; processes that tests start inherit them.
if "huggingface_hub" in sys.modules:
    raise RuntimeError("huggingface_hub was imported before tests/conftest.py could point it to the local hub")
_hub = LocalHub()
_home = tempfile.mkdtemp(prefix="hf-any3d-tests-")
for _name in [name for name in os.environ if name.startswith(("HF_", "HUGGING", "TRANSFORMERS_"))]:
    del os.environ[_name]
os.environ.update(
    HF_ENDPOINT=_hub.url,
    HF_HOME=_home,
    HF_TOKEN="hf_tests",
    HF_HUB_DISABLE_XET="1",
    HF_HUB_DISABLE_TELEMETRY="1",
    HF_HUB_DISABLE_PROGRESS_BARS="1",
    OMP_NUM_THREADS="1",
    TOKENIZERS_PARALLELISM="false",
)


def pytest_configure(config: pytest.Config) -> None:
    import torch

    torch.set_num_threads(1)


def pytest_unconfigure(config: pytest.Config) -> None:
    _hub.close()
    shutil.rmtree(_home, ignore_errors=True)


@pytest.fixture(scope="session")
def hub() -> LocalHub:
    """The hub that huggingface_hub, transformers, peft and datasets talk to in this process and those it starts.

    It lives as long as the session, so each test takes names of its own.
    """
    return _hub


@pytest.fixture(scope="session")
def browser(tmp_path_factory):
    """A headless browser; tests that want one are skipped where there is none."""
    from tests.browser import headless_browser

    with headless_browser(tmp_path_factory.mktemp("browser")) as browser:
        yield browser


@pytest.fixture
def libraries_as_they_were():
    """For tests of commands, which make transformers quiet: it talks again when they end."""
    import transformers

    verbosity = transformers.logging.get_verbosity()
    yield
    transformers.logging.set_verbosity(verbosity)
    transformers.logging.enable_progress_bar()


@pytest.fixture(autouse=True)
def _no_unknown_requests():
    before = len(_hub.unknown)
    yield
    unknown = _hub.unknown[before:]
    assert not unknown, f"asked of the local hub, which doesn't know it: {', '.join(unknown)}"
