"""Published files in git repositories: fetched once at their commit, by their checksum, and found in a folder."""

import dataclasses

import pytest
import torch

from hf_any3d import AutoModelForPointCloudClassification
from hf_any3d.hub.published_table import PUBLISHED
from hf_any3d.modeling.file_stamps import file_digest
from hf_any3d.published import _OPENED, open_published
from tests.conversions.test_dgcnn_pointnet import released
from tests.errors import raises
from tests.published.test_published import forget

REPOSITORY = "vinits5/learning3d"
NAME = f"{REPOSITORY}:modelnet40"


@pytest.fixture
def in_git(tmp_path, monkeypatch):
    """A released file in a stand-in of GitHub, on a machine that has opened none."""
    published = PUBLISHED[REPOSITORY]
    file = published.files["modelnet40"]
    path = tmp_path / "git" / REPOSITORY / file.commit / file.path
    path.parent.mkdir(parents=True)
    torch.save(released("real_pointnet_modelnet40"), path)
    known = dataclasses.replace(file, sha256=file_digest(path))
    address = published.address.replace("https://raw.githubusercontent.com", (tmp_path / "git").as_uri())
    entry = dataclasses.replace(published, files={"modelnet40": known}, address=address)
    monkeypatch.setitem(PUBLISHED, REPOSITORY, entry)
    yield path
    forget(REPOSITORY)


def test_a_file_is_fetched_once_at_its_commit(in_git):
    model = open_published(NAME)
    record = model.config.published
    assert model.config.id2label[8] == "chair" and record["weights_license"] == "MIT"
    assert record["revision"] == PUBLISHED[REPOSITORY].files["modelnet40"].commit
    in_git.unlink()  # as without a network
    _OPENED.clear()
    again = AutoModelForPointCloudClassification.from_pretrained(NAME)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), again.parameters(), strict=True))
    with raises(ValueError, naming="revision='other'"):
        open_published(NAME, revision="other")


def test_without_a_network_it_says_what_to_do(in_git):
    with raises(OSError, naming="best_model.t7 is not on this machine, and local_files_only=True; download it"):
        open_published(NAME, local_files_only=True)


def test_another_file_under_the_same_address_is_refused(in_git):
    torch.save({"conv1.weight": torch.ones(1)}, in_git)
    with raises(OSError, naming="invalid hash value"):
        open_published(NAME)
    in_git.unlink()
    with raises(OSError, naming="URLError"):
        open_published(NAME)
