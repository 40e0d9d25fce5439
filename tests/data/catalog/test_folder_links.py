"""Untrusted folders: links that lead outside, and names that are not text."""

import os

import numpy as np
import pytest

from hf_any3d.data.catalog import folder
from tests.data.clouds import points


@pytest.fixture
def outside(tmp_path):
    """A folder next to `scans` with a cloud, and metadata that names the cloud of `scans`."""
    (tmp_path / "scans" / "cup").mkdir(parents=True)
    np.save(tmp_path / "scans" / "cup" / "a.npy", points())
    (tmp_path / "outside" / "mug").mkdir(parents=True)
    np.save(tmp_path / "outside" / "mug" / "secret.npy", points())
    (tmp_path / "outside" / "metadata.csv").write_text("file_name,label\ncup/a.npy,secret\n")
    return tmp_path / "outside"


LINKS = {"cup/b.npy": "mug/secret.npy", "mug": "mug", "metadata.csv": "metadata.csv"}


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("place", LINKS)
def test_a_link_that_leads_outside_of_the_folder_is_refused_by_default(place, streaming, outside):
    root = outside.parent / "scans"
    (root / place).symlink_to(outside / LINKS[place])
    with pytest.raises(ValueError):
        folder.load(root, streaming=streaming)
    rows = list(folder.load(root, streaming=streaming, follow_links=True)["train"])
    assert len(rows) == (1 if place == "metadata.csv" else 2)


def test_links_within_the_folder_and_a_link_to_the_folder_itself_are_followed(outside):
    root = outside.parent / "scans"
    (root / "mug").symlink_to("cup")
    (root / "cup" / "b.npy").symlink_to("a.npy")
    (outside.parent / "link").symlink_to(root)
    for place in (root, outside.parent / "link"):
        assert len(folder.load(place)["train"]) == 4


def test_a_link_to_a_folder_above_it_is_refused(outside):
    root = outside.parent / "scans"
    (root / "cup" / "again").symlink_to("..")
    for follow in (False, True):
        with pytest.raises(ValueError, match="scans: cup/again is a link to a folder above it"):
            folder.load(root, follow_links=follow)


@pytest.mark.parametrize("name", ["cup/b.npy", "metadata.csv"])
def test_a_link_that_leads_back_to_itself_is_refused(name, outside):
    root = outside.parent / "scans"
    (root / name).symlink_to((root / name).name)
    with pytest.raises(ValueError):
        folder.load(root)


def test_metadata_in_a_folder_with_an_undecodable_name_is_refused_in_printable_text(outside):
    root = os.fsencode(outside.parent / "scans")
    os.mkdir(root + b"/\xff")
    with open(root + b"/\xff/metadata.csv", "w") as file:
        file.write("1,2,3\n")
    with pytest.raises(ValueError) as refusal:
        folder.load(outside.parent / "scans")
    str(refusal.value).encode()


@pytest.mark.parametrize("name", [b"\xff\xe9.npy", b"t\xfcr/a.npy"])
def test_a_name_that_is_not_utf8_is_escaped(name, outside):
    root = os.fsencode(outside.parent / "scans")
    path = os.path.join(root, name) if b"/" in name else os.path.join(root, b"cup", name)
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with open(path, "wb") as file:
        np.save(file, points())
    for options in ({}, {"as_files": True}, {"drop_labels": True}):
        rows = folder.load(outside.parent / "scans", **options)["train"]
        assert any("\\udc" in name for name in rows["file"][:])
