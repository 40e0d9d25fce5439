"""Checksums by which downloads are told from damaged ones."""

import hashlib

import pytest

from hf_any3d.hub.downloads import _checksum


@pytest.mark.parametrize(
    ("content", "blob"),
    [
        (b"", "e69de29bb2d1d6434b8b29ae775ad8c2e48c5391"),
        (b"hello\n", "ce013625030ba8dba906f756967f9e9ca394464a"),
    ],
)
def test_small_files_are_named_as_git_does_and_large_ones_by_their_content(content, blob, tmp_path):
    file = tmp_path / "file"
    file.write_bytes(content)
    assert _checksum(file, blob) == blob
    assert _checksum(file, "0" * 64) == hashlib.sha256(content).hexdigest()


def test_files_of_several_pieces_have_one_checksum(tmp_path):
    content = bytes(range(256)) * 8200  # two megabytes and a bit
    file = tmp_path / "file"
    file.write_bytes(content)
    expected = hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
    assert _checksum(file, "0" * 40) == expected
