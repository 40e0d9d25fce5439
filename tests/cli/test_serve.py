"""Tests of what `serve` refuses before it loads a model, and the export for vLLM; the service: tests/serving."""

import inspect
import logging
import socket
import sys
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace

import pytest
from transformers import AutoModelForCausalLM
from typer.testing import CliRunner

from hf_any3d.cli import app
from hf_any3d.cli.serve import serve
from hf_any3d.pipelines import default_model
from hf_any3d.serving import ServeLimits
from hf_any3d.serving.journal import Journal
from hf_any3d.serving.server import serve as serve_until_signal
from tests.cli.conftest import run


def refused(*words) -> str:
    result = run(*words)
    assert result.code == 1 and result.err.startswith("error: ") and result.err.count("\n") == 1, result.err
    return result.err


def test_defaults_are_those_of_the_limits():
    options = {name: entry.default for name, entry in inspect.signature(serve).parameters.items()}
    limits = ServeLimits()
    for name in ("batch", "queue", "points", "clouds", "seconds", "new_tokens"):
        assert options[f"max_{name}"] == getattr(limits, name), name
    assert options["max_megabytes"] * 2**20 == limits.body_bytes and options["max_wait"] / 1000 == limits.wait


def test_every_limit_reaches_the_service(models, monkeypatch):
    served = []
    monkeypatch.setattr("hf_any3d.serving.server.serve", lambda *given: served.append(given))
    given = {"batch": 3, "wait": 7, "queue": 11, "megabytes": 2, "points": 99, "clouds": 5, "seconds": 13}
    given |= {"new-tokens": 17, "connections": 19}
    words = [word for name, value in given.items() for word in (f"--max-{name}", value)]
    origin = "https://example.org"
    result = run("serve", models("classifier"), "--port", 0, *words, "--drain-seconds", 23, "--cors-origin", origin)
    assert result.code == 0, result.err
    ((service, listening, drain_seconds, origins),) = served
    listening.close()
    expected = ServeLimits(
        body_bytes=2 * 2**20, points=99, clouds=5, seconds=13, queue=11, batch=3, wait=0.007, new_tokens=17,
        connections=19,
    )  # fmt: skip
    assert service.limits == expected and drain_seconds == 23 and list(origins) == [origin]


def test_what_is_missing_or_in_use_is_refused_before_a_model_is_loaded(monkeypatch, tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = str(server.getsockname()[1])
        assert f"--host 127.0.0.1 --port {port}: " in refused("serve", "gone/model", "--port", port)
    assert f"no directory {tmp_path / 'gone'}" in refused("serve", tmp_path / "gone")
    monkeypatch.setitem(sys.modules, "prometheus_client", None)
    assert "serve needs prometheus_client: pip install 'hf-any3d[serve]'" in refused("serve", "gone/model")


def test_models_and_options_that_do_not_fit_are_refused(models, tmp_path):
    assert "task 'point-cloud-reconstruction' cannot be served" in refused("serve", models("autoencoder"), "--port", 0)
    classifier = models("classifier")
    assert "is not a chat model" in refused("serve", classifier, "--port", 0, "--template", "demo")
    journal = tmp_path / "gone" / "answers.db"
    assert str(journal) in refused("serve", classifier, "--port", 0, "--journal", journal)


def test_the_language_model_of_a_chat_model_is_exported(models, tmp_path):
    folder = tmp_path / "text"
    result = run("export", models("chat"), "--format", "language-model", "--output", folder)
    assert result.code == 0 and result.out.startswith(f"{folder}: ") and "logits differ by at most" in result.out
    assert type(AutoModelForCausalLM.from_pretrained(folder)).__name__ == "LlamaForCausalLM"
    assert (Path(folder) / "tokenizer_config.json").is_file()
    assert "this is a classifier" in refused(
        "export", models("classifier"), "--format", "language-model", "--output", tmp_path / "other"
    )


def test_other_defaults_are_those_that_the_help_names():
    options = {name: entry.default for name, entry in inspect.signature(serve).parameters.items()}
    assert (options["host"], options["port"], options["drain_seconds"]) == ("127.0.0.1", 8000, 30.0)
    assert options["max_connections"] == ServeLimits().connections
    assert options["journal_days"] == inspect.signature(Journal).parameters["days"].default == 7.0
    drain = inspect.signature(serve_until_signal).parameters["drain"].default
    assert options["drain_seconds"] == drain


@pytest.fixture
def served(monkeypatch):
    """Runs `serve` with a stand-in for the server, which says how many requests it left unanswered."""
    seen, module = [], import_module("hf_any3d.cli.serve")

    def given(*words, unanswered=0, task="point-cloud-classification"):
        listening = SimpleNamespace(getsockname=lambda: ("::1", 1234))
        monkeypatch.setattr("hf_any3d.serving.server.listen", lambda *address: seen.append(address) or listening)
        monkeypatch.setattr("hf_any3d.serving.server.serve", lambda *one: seen.append(one) or unanswered)
        monkeypatch.setattr("hf_any3d.serving.journal.Journal", lambda *one: ("journal", *one))
        monkeypatch.setattr(
            "hf_any3d.serving.service.Service",
            lambda *one: SimpleNamespace(given=one, name=one[0], paths=["/a", "/b"]),
        )
        monkeypatch.setattr("hf_any3d.integration.registration.task_of", lambda model: task)
        for name in ("find_model", "read_model_config"):
            monkeypatch.setattr(module, name, str)
        pipe = SimpleNamespace(
            model=SimpleNamespace(parameters=lambda: [SimpleNamespace(numel=lambda: 1207)], dtype="float32"),
            device="cpu",
        )
        for name in ("open_chat", "open_pipeline"):
            monkeypatch.setattr(module, name, lambda *one, name=name: seen.append((name, *one)) or pipe)
        result = run("serve", "me/model", *words)
        return result, seen, pipe

    return given


def test_the_service_has_the_name_the_journal_and_the_address_of_the_options(served):
    result, (address, opened, (service, _, drain, origins)), pipe = served()
    assert result.code == 0 and address == ("127.0.0.1", 8000) and (drain, list(origins)) == (30.0, [])
    assert opened == ("open_pipeline", "point-cloud-classification", "me/model", None)
    assert service.given == ("model", "point-cloud-classification", pipe, ServeLimits(), None, None)
    loaded, line = result.out.splitlines()
    assert loaded == "loaded 1,207 weights on cpu (float32)"
    assert line == "model: http://127.0.0.1:1234 (/a, /b); Ctrl-C stops"


def test_a_chat_model_has_its_template_and_addresses_of_ipv6_are_in_brackets(served):
    words = ("--host", "::1", "--port", 9, "--name", "own", "--template", "demo", "--device", "cpu")
    chat = "point-cloud-text-to-text"
    result, (address, opened, (service, *_)), pipe = served(
        *words, "--journal", "a.db", "--journal-days", 3, task=chat
    )
    assert address == ("::1", 9) and "own: http://[::1]:1234 " in result.out
    assert opened == ("open_chat", "me/model", "cpu", "demo")
    assert service.given == ("own", chat, pipe, ServeLimits(), ("journal", Path("a.db"), 3.0), "demo")


def test_unanswered_requests_are_a_failure(served):
    assert served(unanswered=2)[0].code == 1


def test_without_a_model_the_one_of_the_package_is_served(monkeypatch):
    asked = []
    monkeypatch.setattr(import_module("hf_any3d.cli.serve"), "find_model", lambda model: asked.append(model) or 1 / 0)
    CliRunner().invoke(app, ["serve"])
    assert asked == [default_model()]


def test_requests_are_logged_on_standard_error(served, monkeypatch):
    given, logger = [], logging.getLogger("hf_any3d.serving")
    monkeypatch.setattr(logger, "level", logging.WARNING)
    monkeypatch.setattr(logging, "basicConfig", lambda **settings: given.append(settings))
    assert served()[0].code == 0 and logger.level == logging.INFO
    ((stream, text),) = [(one["stream"], one["format"]) for one in given]
    assert stream is not None and text == "%(asctime)s %(levelname)s %(message)s" and len(given[0]) == 2


def test_all_packages_that_are_missing_are_named(monkeypatch):
    module = import_module("hf_any3d.cli.serve")
    monkeypatch.setattr(module, "find_spec", lambda name: None if name in ("fastapi", "python_multipart") else name)
    assert refused("serve", "me/model") == (
        "error: serve needs fastapi, python_multipart: pip install 'hf-any3d[serve]'\n"
    )
