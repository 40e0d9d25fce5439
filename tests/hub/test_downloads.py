"""Versions of files on the hub, what is fetched of a repository, and checksums that tell damaged downloads."""

import hashlib

import pytest
from huggingface_hub import delete_repo, errors

from hf_any3d.hub.downloads import Version, download, find_version
from hf_any3d.hub.names import SILENT_HUB
from hf_any3d.modeling.records import PublishedFile
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
        with raises(OSError, naming="is not in the Hub cache"):
            find_version(NAME, size, FILE, revision, tmp_path, arguments)


def test_a_download_has_the_checksum_of_the_hub(hub, published, tmp_path):
    assert download(NAME, "in/a.pt", published, tmp_path, {}).read_bytes() == b"weights"
    # Git names small files by a digest of their own.
    small = Version(published.commit, hashlib.sha1(b"blob 2\0{}").hexdigest())
    assert download(NAME, "in/config.json", small, tmp_path, {}).read_bytes() == b"{}"
    with raises(ValueError, naming="in/b.pt"):
        download(NAME, "in/b.pt", published, tmp_path, {})
