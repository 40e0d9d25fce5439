"""Checksums of published files, and which shards of a conversion are complete and as they were written."""

import hashlib
import json
import os

import pytest

from hf_any3d.data.parquet import journal
from hf_any3d.data.parquet.journal import ShardChecks, ShardRecord, finished_shards, record_path, verify_checksums


def checksum(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def test_files_are_compared_with_the_list_of_their_checksums(tmp_path):
    files = {"a.npy": b"first", "more/b.npy": b"second", "c.npy": b"third"}
    (tmp_path / "more").mkdir()
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
    paths = [tmp_path / name for name in files]
    verify_checksums(tmp_path, paths)  # without a list
    lines = [f"{checksum(b'first').upper()}  a.npy", f"{checksum(b'second')} *more/b.npy"]
    (tmp_path / "SHA256SUMS").write_text("\n".join([*lines, f"{'0' * 64}  gone.npy", f"{'0' * 64}  c.npy"]) + "\n")
    verify_checksums(tmp_path, paths[:2])  # others of the list are not read
    with pytest.raises(ValueError, match=f"c.npy: SHA-256 {checksum(b'third')}; SHA256SUMS has 0{{64}}, so download"):
        verify_checksums(tmp_path, paths)
    (tmp_path / "SHA256SUMS").write_text(lines[0] + "\nsome text\n")
    with pytest.raises(ValueError, match="SHA256SUMS: a line is 'some text'; expected a SHA-256, two spaces and a fi"):
        verify_checksums(tmp_path, paths[:1])


@pytest.fixture
def shard(tmp_path):
    """Write a shard of some content, and its record."""
    (tmp_path / "data").mkdir()
    (tmp_path / "journal").mkdir()

    def write(number: int, start: int, stop: int, content: bytes = b"rows", **changes) -> ShardRecord:
        name = f"train-{number:05d}.parquet"
        (tmp_path / "data" / name).write_bytes(content)
        about = {"size": len(content), "skipped": [], "statistics": {"num_rows": 1}, "sha256": checksum(content)}
        record = ShardRecord(name, start, stop, **about | changes)
        record_path(tmp_path, "train", number).write_text(json.dumps(vars(record)))
        return record

    return write


def test_records_have_the_number_of_their_shard(tmp_path):
    assert record_path(tmp_path, "test", 12) == tmp_path / "journal" / "test-00012.json"


def test_shards_count_up_to_the_first_that_does_not_follow(shard, tmp_path):
    checks = ShardChecks(tmp_path, trust_times=True)
    assert finished_shards(tmp_path, "train", 9, checks) == []
    records = [shard(0, 0, 3), shard(1, 3, 7, b"more rows"), shard(2, 7, 9, b"")]
    assert finished_shards(tmp_path, "train", 9, checks) == records
    assert finished_shards(tmp_path, "train", 8, checks) == records[:2]
    assert finished_shards(tmp_path, "test", 9, checks) == []
    for start, stop in ((4, 7), (2, 7), (3, 3), (3, 2)):
        shard(1, start, stop)
        assert finished_shards(tmp_path, "train", 9, checks) == records[:1]
    shard(0, 1, 3)
    assert finished_shards(tmp_path, "train", 9, checks) == []
    for text in ("[1]", "{", json.dumps({**vars(records[0]), "more": 1})):
        record_path(tmp_path, "train", 0).write_text(text)
        assert finished_shards(tmp_path, "train", 9, checks) == []


@pytest.mark.parametrize("trust_times", [True, False])
def test_files_unchanged_since_they_were_checked_are_read_only_if_times_are_not_trusted(
    trust_times, shard, tmp_path, monkeypatch, caplog
):
    read = []
    plain = journal.sha256_of
    monkeypatch.setattr(journal, "sha256_of", lambda file: read.append(file.name) or plain(file))
    record = shard(0, 0, 1)
    checks = ShardChecks(tmp_path, trust_times)
    assert checks.is_intact(record) and read == [record.file]
    assert checks.is_intact(record) and len(read) == (1 if trust_times else 2)
    assert not (tmp_path / "meta" / "checked.json").exists()
    (tmp_path / "meta").mkdir()
    checks.save()
    again = ShardChecks(tmp_path, trust_times)
    read.clear()
    assert again.is_intact(record) and len(read) == (0 if trust_times else 1)
    # Nothing has changed, so nothing is written.
    (tmp_path / "meta" / "checked.json").unlink()
    again.save()
    assert not (tmp_path / "meta" / "checked.json").exists()
    file = tmp_path / "data" / record.file
    times = file.stat()
    file.write_bytes(b"rowz")
    os.utime(file, ns=(times.st_atime_ns, times.st_mtime_ns + 10**9))
    caplog.clear()
    assert not again.is_intact(record)
    assert f"SHA-256 {checksum(b'rowz')}; expected {checksum(b'rows')}, so it is converted again" in caplog.text
    file.write_bytes(b"rows and more")
    caplog.clear()
    assert not again.is_intact(record) and "13 bytes; expected 4, so it is converted again" in caplog.text
    file.unlink()
    assert not again.is_intact(record)


def test_shards_of_earlier_versions_are_checked_by_their_size_alone(shard, tmp_path):
    record = shard(0, 0, 1, b"rows", sha256=None)
    (tmp_path / "data" / record.file).write_bytes(b"rowz")
    checks = ShardChecks(tmp_path, trust_times=False)
    assert checks.is_intact(record)
    (tmp_path / "data" / record.file).write_bytes(b"row")
    assert not checks.is_intact(record)


def test_a_damaged_list_of_checked_files_is_as_none(shard, tmp_path):
    (tmp_path / "meta").mkdir()
    for text in ("{", "[1]"):
        (tmp_path / "meta" / "checked.json").write_text(text)
        checks = ShardChecks(tmp_path, trust_times=True)
        assert checks.is_intact(shard(0, 0, 1))
        checks.save()
        assert list(json.loads((tmp_path / "meta" / "checked.json").read_text())) == ["train-00000.parquet"]
