import json
import tracemalloc

import pytest

from hf_any3d.data.catalog import pointllm_annotations
from hf_any3d.data.catalog.pointllm_annotations import read_entry, scan_entries
from tests.errors import raises


@pytest.fixture
def write(tmp_path):
    def write(content):
        path = tmp_path / "some.json"
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return path

    return write


VALUES = [{"a": "é\n", "b": [1, 2]}, 3, "☃ ] , [", [], None, {"deep": {"er": [{}]}}]


@pytest.mark.parametrize("style", [{}, {"indent": 2}, {"ensure_ascii": False}, {"separators": (",", ":")}])
@pytest.mark.parametrize("small", [False, True])
def test_entries_are_those_of_the_array_and_read_again_by_their_bytes(write, monkeypatch, style, small):
    if small:  # letters of several bytes and entries span the chunks
        monkeypatch.setattr(pointllm_annotations, "CHUNK_BYTES", 3)
        monkeypatch.setattr(pointllm_annotations, "LONGEST_ENTRY", 60)
    path = write(" \n" + json.dumps(VALUES, **style) + "\n ")
    entries = list(scan_entries(path))
    assert [entry.value for entry in entries] == VALUES
    assert [entry.number for entry in entries] == list(range(len(VALUES)))
    assert [read_entry(path, entry.start, entry.stop) for entry in entries] == VALUES


def test_an_empty_array_and_a_byte_order_mark_are_accepted(write):
    assert list(scan_entries(write(" [ ] "))) == []
    assert [entry.value for entry in scan_entries(write("\ufeff[1]"))] == [1]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "byte 0: starts with ''; expected"),
        ('{"a": 1}', "byte 0: starts with '{'; expected"),
        ("[1 2]", "byte 3: '2' after entry 0; expected a comma or ]"),
        ("[1, ]", r"byte 4: entry 1 is not valid JSON \(Expecting value\)"),
        ("[1, 2", "byte 5: '' after entry 1"),
        ('["é", {"a": tru}]', "byte 13: entry 1 is not valid JSON"),
        ('["a", "b]', "byte 6: entry 1 is not valid JSON .Unterminated string"),
        ("[1] 2", "byte 4: '2' after the array"),
        (b'["ab\xff"]', "byte 4 is not UTF-8 text"),
        ("[" + "9" * 5000 + "]", "byte 1: entry 0 is not valid JSON"),
        ("[" * 200_000, "entry 0 is not valid JSON"),
    ],
)
def test_damage_is_located(write, content, message):
    with pytest.raises(ValueError, match=f"some.json: {message}|some.json: byte 1: {message}"):
        list(scan_entries(write(content)))


def test_memory_does_not_grow_with_the_file(write, monkeypatch):
    monkeypatch.setattr(pointllm_annotations, "CHUNK_BYTES", 1 << 14)
    monkeypatch.setattr(pointllm_annotations, "LONGEST_ENTRY", 1 << 14)
    path = write("[" + ", ".join([json.dumps({"text": "x" * 1000})] * 4000) + "]")
    tracemalloc.start()
    try:
        assert sum(1 for _ in scan_entries(path)) == 4000
        assert tracemalloc.get_traced_memory()[1] < path.stat().st_size / 8
    finally:
        tracemalloc.stop()


def test_an_entry_that_has_changed_since_is_refused(write):
    path = write('[{"a": 1}]')
    (entry,) = scan_entries(path)
    write('[{"a": "long text"}]')
    with raises(ValueError, naming="some.json"):
        read_entry(path, entry.start, entry.stop)
