"""Versions of files on the hub, what is fetched of a repository, and checksums that tell damaged downloads."""

import hashlib
import json

import pytest
import torch
from huggingface_hub import delete_repo, errors
from safetensors.torch import load_file, save

from hf_any3d.hub.downloads import Version, borrowed_part, download, fetch_part, find_version
from hf_any3d.hub.names import SILENT_HUB
from hf_any3d.hub.published_table import BorrowedPart, PublishedFile
from tests.errors import raises

FILE = PublishedFile("in/a.pt")
NAME = "me/published"


@pytest.fixture
def published(hub):
    """A repository with a file in Git LFS, and a commit of it."""
    hub.commit(NAME, {"in/a.pt": b"weights", "in/b.pt": b"other"}, in_lfs=True)
    commit = hub.commit(NAME, {"in/config.json": b"{}", "z.md": b"# Model"})
    yield Version(commit, hashlib.sha256(b"weights").hexdigest())
    delete_repo(NAME)


def test_a_version_is_asked_for_and_kept_under_its_branch_and_its_commit(hub, published, tmp_path):
    assert find_version(NAME, "base", FILE, None, tmp_path, {}) == published
    places = [tmp_path / "revisions" / name / "base.json" for name in ("main", published.commit)]
    assert sorted(tmp_path.rglob("*.json")) == sorted(places)
    # A commit is known for good, a branch is asked for again.
    before = len(hub.requests)
    assert find_version(NAME, "base", FILE, published.commit, tmp_path, {}) == published
    assert len(hub.requests) == before
    later = hub.commit(NAME, {"in/a.pt": b"newer"}, in_lfs=True)
    assert find_version(NAME, "base", FILE, None, tmp_path, {}).commit == later
    for revision, file in (("v9", FILE), (None, PublishedFile("in/none.pt"))):
        with pytest.raises((errors.RevisionNotFoundError, errors.EntryNotFoundError)):
            find_version(NAME, "base", file, revision, tmp_path, {})


@pytest.mark.parametrize("reason", ["silent", "local"])
def test_without_the_hub_the_last_known_version_is_taken(reason, published, tmp_path, monkeypatch):
    find_version(NAME, "base", FILE, None, tmp_path, {})
    arguments = {"local_files_only": True} if reason == "local" else {}
    if reason == "silent":
        monkeypatch.setenv(SILENT_HUB, "1")
    assert find_version(NAME, "base", FILE, None, tmp_path, arguments) == published
    for size, revision in (("tiny", None), ("base", "v1")):
        with raises(OSError, naming="was never opened on this machine"):
            find_version(NAME, size, FILE, revision, tmp_path, arguments)


def test_a_download_has_the_checksum_of_the_hub(hub, published, tmp_path):
    assert download(NAME, "in/a.pt", published, tmp_path, {}).read_bytes() == b"weights"
    # Git names small files by a digest of their own.
    small = Version(published.commit, hashlib.sha1(b"blob 2\0{}").hexdigest())
    assert download(NAME, "in/config.json", small, tmp_path, {}).read_bytes() == b"{}"
    with raises(ValueError, naming="in/b.pt"):
        download(NAME, "in/b.pt", published, tmp_path, {})


@pytest.mark.parametrize(
    ("names", "fetched"),
    [
        (
            "a.safetensors a.bin c.json t.txt x.jinja b.safetensors z.md",
            "a.safetensors b.safetensors c.json t.txt x.jinja",
        ),
        ("a.bin c.json", "a.bin c.json"),
    ],
)
def test_of_a_folder_settings_and_one_form_of_weights_are_fetched(names, fetched, hub, published, tmp_path):
    commit = hub.commit(NAME, {f"part/{name}": name.encode() for name in names.split()})
    folder = fetch_part(NAME, "part/", commit, tmp_path, {})
    assert sorted(path.name for path in folder.iterdir()) == sorted(fetched.split())
    assert fetch_part(NAME, "in/b.pt", commit, tmp_path, {}).read_bytes() == b"other"


@pytest.mark.parametrize("is_sharded", [True, False])
def test_a_borrowed_part_is_a_model_of_some_tensors_for_a_while(is_sharded, hub, published, tmp_path):
    numbers = {name: torch.full((2,), float(place)) for place, name in enumerate(("q.a", "q.b", "tokens", "other"))}
    files = {"config.json": b'{"a": 1}'}
    if is_sharded:
        places = {"q.a": "2", "q.b": "1", "tokens": "1", "other": "3"}
        files["model.safetensors.index.json"] = json.dumps({"weight_map": places}).encode()
        files |= {
            file: save({name: numbers[name] for name, place in places.items() if place == file}) for file in "123"
        }
    else:
        files["model.safetensors"] = save(numbers)
    hub.commit(NAME, files)
    before = len(hub.requests)
    part = BorrowedPart(NAME, ("q.", "tokens"))
    with borrowed_part(part, tmp_path / "cache", tmp_path / "hub", {}) as folder:
        assert folder.parent == tmp_path / "cache" and json.loads((folder / "config.json").read_text()) == {"a": 1}
        tensors = load_file(folder / "model.safetensors")
        assert {name: tensor[0].item() for name, tensor in tensors.items()} == {"q.a": 0, "q.b": 1, "tokens": 2}
    assert not list((tmp_path / "cache").iterdir())
    assert not [path for _, path in hub.requests[before:] if path.endswith("/3")]
