"""Shared by all tests: few threads, limited memory, and a local hub instead of the network."""

import ctypes
import functools
import gc
import os
import resource
import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.hub import LocalHub

# huggingface_hub reads these on import; subprocesses of tests inherit them.
if "huggingface_hub" in sys.modules:
    raise RuntimeError("huggingface_hub was imported before tests/conftest.py could point it to the local hub")
_hub = LocalHub()
_home = tempfile.mkdtemp(prefix="hf-any3d-tests-")
for _name in [name for name in os.environ if name.startswith(("HF_", "HUGGING", "TRANSFORMERS_"))]:
    if not _name.startswith("HF_ANY3D_"):  # those choose what the tests do
        del os.environ[_name]
os.environ.update(
    HF_ENDPOINT=_hub.url,
    HF_HOME=_home,
    HF_TOKEN="hf_tests",
    HF_HUB_DISABLE_XET="1",
    HF_HUB_DISABLE_TELEMETRY="1",
    HF_HUB_DISABLE_PROGRESS_BARS="1",
    OMP_NUM_THREADS="1",  # torch too; it is not imported here, so that tests without it start at once
    TOKENIZERS_PARALLELISM="false",
)
_DRAWN = "HF_ANY3D_DRAWN"  # a folder that all processes of a run share, see tests/reference/fill.py
_is_first = _DRAWN not in os.environ
if _is_first:
    os.environ[_DRAWN] = tempfile.mkdtemp(prefix="hf-any3d-drawn-")
    Path(os.environ[_DRAWN], "owner").write_text(str(os.getpid()))  # processes that serve the run end with this one


# Next to nothing of what is imported and collected is garbage, and to search it takes a fifth of the time of both.
gc.disable()

# Memory limit of a test process, in bytes. What a process has reached is told at the end of each run; usual is below
# 3 GB, and the rest is for what a change of the order of files leaves in memory.
MOST_MEMORY = 4e9
# Parity tests build full-size models. The C library keeps freed memory in fragments; it is trimmed once this much has
# accumulated.
_WORTH_TRIMMING = 1e8
_real: dict[str, Any] = {}  # what tests get a stand-in of
_held = {"teardown": 5e8, "fixture": 5e8}  # bytes used by the libraries, or after the last trim
_peaks: list[tuple[float, str]] = []  # of this process and its workers, with the test that reached it
_peak = (0.0, "collection")


def pytest_collection_finish() -> None:
    if "hf_any3d" in sys.modules:
        from hf_any3d.visualization import run_results

        # The picture of a tiny training takes longer than the training.
        _real["picture"], run_results._picture = run_results._picture, _empty_picture
    # Imported modules are a million objects; to search them for garbage, as each training does, takes half a second.
    gc.collect()
    gc.freeze()
    gc.enable()
    # Models are many small objects; searching for garbage every 700 of them, the default, takes a 25th of the time.
    gc.set_threshold(50_000, 20, 20)
    # Each call of a command would build all commands again.
    if testing := sys.modules.get("typer.testing"):
        testing._get_command = functools.cache(testing._get_command)


@pytest.hookimpl(trylast=True)
def pytest_runtest_teardown(item: pytest.Item, nextitem: pytest.Item | None) -> None:
    global _peak
    _peak = max(_peak, (_peak_memory(), item.nodeid), key=lambda peak: peak[0])
    # What a file has compiled keeps its models alive.
    if (nextitem is None or nextitem.path != item.path) and (dynamo := sys.modules.get("torch._dynamo")):
        dynamo.reset()
    _trim_memory("teardown")


@pytest.hookimpl(tryfirst=True)
def pytest_fixture_setup(fixturedef: pytest.FixtureDef, request: pytest.FixtureRequest) -> None:
    # The previous model is unused by now, but kept alive by reference cycles.
    if fixturedef.scope == "module":
        _trim_memory("fixture")


def _trim_memory(when: str) -> None:
    if sys.platform == "linux" and _memory_held() - _held[when] > _WORTH_TRIMMING:
        gc.collect()
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
        if trim is not None:
            trim(0)
        _held[when] = _memory_held()


def _memory_held() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


def _peak_memory() -> float:
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def pytest_sessionfinish(session: pytest.Session) -> None:
    if hasattr(session.config, "workeroutput"):
        session.config.workeroutput["peak_memory"] = _peak
        return
    _peaks.append(_peak)
    if max(_peaks)[0] > MOST_MEMORY and session.exitstatus == 0:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node, error) -> None:
    _peaks.append(getattr(node, "workeroutput", {}).get("peak_memory", (0, "")))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if _peaks:
        size, test = max(_peaks)
        allowed = f"allowed are {MOST_MEMORY / 1e9:.0f}"
        terminalreporter.write_line(f"largest process of the tests: {size / 1e9:.2f} GB in {test}; {allowed}")


def pytest_unconfigure(config: pytest.Config) -> None:
    _hub.close()
    for folder in (_home, *([os.environ[_DRAWN]] if _is_first else [])):
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def directories_are_names(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let directories stand for public names: weights that are there are not stored with a model again."""
    let_directories_be_names(monkeypatch)


def let_directories_be_names(monkeypatch: pytest.MonkeyPatch) -> None:
    """Do what the fixture `directories_are_names` does, in a fixture of larger scope."""
    for module in ("record", "mixin", "adapter_loading"):
        monkeypatch.setattr(f"hf_any3d.modeling.pretrained_parts.{module}.is_directory", lambda name: False)


@pytest.fixture(scope="session")
def hub() -> LocalHub:
    """The local hub of huggingface_hub, transformers, peft and datasets in this process and its subprocesses.

    It exists for the session, so each test uses names of its own.
    """
    return _hub


@pytest.fixture(scope="session")
def tiny_encoder(hub) -> str:
    """Name of a random two-layer BERT on the local hub."""
    from tests.tiny_encoders import random_encoder, tiny_config

    random_encoder(tiny_config("bert")).push_to_hub("me/tiny-bert")
    return "me/tiny-bert"


@pytest.fixture(scope="session")
def sentence_encoder(hub, tmp_path_factory) -> str:
    """Name of a random sentence encoder on the local hub."""
    from huggingface_hub import HfApi
    from transformers import AutoModel

    from tests.tiny_encoders import saved_encoder
    from tests.tiny_text_towers import write_text_files

    directory = write_text_files(tmp_path_factory.mktemp("sentences"), is_sentence_encoder=True)
    AutoModel.from_pretrained(saved_encoder("bert")).save_pretrained(directory)
    HfApi().create_repo("me/tiny-sentence-bert")
    HfApi().upload_folder(repo_id="me/tiny-sentence-bert", folder_path=directory)
    return "me/tiny-sentence-bert"


@pytest.fixture(scope="session")
def started_browser(tmp_path_factory):
    """A headless browser for all tests of this process."""
    from tests.visualization.browser import headless_browser

    with headless_browser(tmp_path_factory.mktemp("browser")) as browser:
        yield browser


@pytest.fixture(scope="module")
def browser(started_browser):
    """A headless browser; tests that need it are skipped if there is none."""
    yield started_browser
    started_browser.open("about:blank")  # the last page would keep a processor busy until all tests have ended


@pytest.fixture
def libraries_as_they_were():
    """Restore the log level of transformers after tests of commands, which lower it."""
    import transformers

    verbosity = transformers.logging.get_verbosity()
    yield
    transformers.logging.set_verbosity(verbosity)
    transformers.logging.enable_progress_bar()


@contextmanager
def real_pictures() -> Iterator[None]:
    """Draw the pictures of trainings' results; elsewhere they are empty."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("hf_any3d.visualization.run_results._picture", _real["picture"])
        yield


@pytest.fixture
def drawn_results():
    """Tests that use it get the real picture of a training's results."""
    with real_pictures():
        yield


def _empty_picture(*args):
    from matplotlib.figure import Figure

    return Figure(figsize=(1, 1))


@pytest.fixture(autouse=True)
def _no_unknown_requests():
    before = len(_hub.unknown)
    yield
    unknown = _hub.unknown[before:]
    assert not unknown, f"unknown requests to the local hub: {', '.join(unknown)}"
