"""Weight files of a saved model and their checksum."""

import hashlib
import json
import os

import pytest

from hf_any3d.modeling.pretrained_parts.sources import weight_files, weights_checksum
from tests.errors import raises


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


@pytest.fixture
def sharded(tmp_path):
    (tmp_path / "b.safetensors").write_bytes(b"second")
    (tmp_path / "a.safetensors").write_bytes(b"first")
    index = {"weight_map": {"x": "b.safetensors", "y": "a.safetensors", "z": "b.safetensors"}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    return tmp_path


def test_checksum_of_one_file_is_its_sha256(tmp_path):
    (tmp_path / "model.safetensors").write_bytes(b"weights")
    assert weights_checksum(tmp_path) == f"sha256:{sha256(b'weights')}"


def test_safetensors_are_preferred_to_pickles(tmp_path):
    (tmp_path / "pytorch_model.bin").write_bytes(b"pickle")
    assert weight_files(tmp_path) == [tmp_path / "pytorch_model.bin"]
    (tmp_path / "model.safetensors").write_bytes(b"weights")
    assert weight_files(tmp_path) == [tmp_path / "model.safetensors"]


def test_a_single_shard_with_an_index_counts_as_shards(tmp_path):
    (tmp_path / "only.safetensors").write_bytes(b"weights")
    (tmp_path / "model.safetensors.index.json").write_text('{"weight_map": {"x": "only.safetensors"}}')
    line = f"only.safetensors {sha256(b'weights')}\n"
    assert weights_checksum(tmp_path) == f"sha256:{sha256(line.encode())}"


def test_checksum_of_shards_covers_their_sorted_names_and_digests(sharded):
    lines = f"a.safetensors {sha256(b'first')}\nb.safetensors {sha256(b'second')}\n"
    assert weights_checksum(sharded) == f"sha256:{sha256(lines.encode())}"


def test_a_changed_file_of_equal_size_and_time_is_read_again(tmp_path):
    weights, checksums = tmp_path / "model.safetensors", set()
    for content in (b"before", b"after!"):
        weights.write_bytes(content)
        os.utime(weights, ns=(1, 1))
        checksums.add(weights_checksum(tmp_path))
    assert len(checksums) == 2


def test_error_for_missing_weights_names_the_directory(tmp_path):
    (tmp_path / "model.onnx").write_bytes(b"")
    with pytest.raises(FileNotFoundError, match=f"{tmp_path.name}: no weights; expected one of model.safetensors"):
        weights_checksum(tmp_path)


def test_error_for_weights_of_gguf_names_the_way_out(tmp_path):
    (tmp_path / "model.gguf").write_bytes(b"")
    with raises(FileNotFoundError, naming="GgufConfig(dequantize=True)"):
        weights_checksum(tmp_path)


def test_missing_shard_is_named(sharded):
    (sharded / "a.safetensors").unlink()
    with raises(FileNotFoundError, naming="a.safetensors"):
        weights_checksum(sharded)
