"""Tests of what `serve` refuses before it loads a model, and the export for vLLM; the service: tests/serving."""

import inspect
import socket
from pathlib import Path

import pytest
from transformers import AutoModelForCausalLM

from hf_any3d.cli.serve import serve
from hf_any3d.serving import ServeLimits
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


@pytest.mark.slow
def test_what_is_missing_or_in_use_is_refused_before_a_model_is_loaded(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = str(server.getsockname()[1])
        assert f"--host 127.0.0.1 --port {port}: " in refused("serve", "gone/model", "--port", port)
    assert f"{tmp_path / 'gone'}: no such directory" in refused("serve", tmp_path / "gone")


@pytest.mark.slow
def test_models_and_options_that_do_not_fit_are_refused(models):
    assert "point-cloud-reconstruction cannot be served" in refused("serve", models("autoencoder"), "--port", 0)
    classifier = models("classifier")
    assert "is not a chat model" in refused("serve", classifier, "--port", 0, "--template", "demo")


@pytest.mark.slow
def test_the_language_model_of_a_chat_model_is_exported(models, tmp_path):
    folder = tmp_path / "text"
    result = run("export", models("chat"), "--format", "language-model", "--output", folder)
    assert result.code == 0 and result.out.startswith(f"{folder}: ") and "logits differ by at most" in result.out
    assert type(AutoModelForCausalLM.from_pretrained(folder)).__name__ == "LlamaForCausalLM"
    assert (Path(folder) / "tokenizer_config.json").is_file()
    assert "is a classifier" in refused(
        "export", models("classifier"), "--format", "language-model", "--output", tmp_path / "other"
    )
