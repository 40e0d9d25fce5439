import json

import pytest

from hf_any3d.data.catalog.pointllm_annotations import scan_entries
from hf_any3d.data.files import PointCloudFileError
from tests.errors import raises

VALUES = [{"a": "é\n", "b": [1, 2]}, 3, "☃ ] , [", [], None, {"deep": {"er": [{}]}}]


@pytest.mark.parametrize("style", [{}, {"indent": 2}, {"ensure_ascii": False}, {"separators": (",", ":")}])
@pytest.mark.parametrize("begin", [" \n", "\ufeff"])
def test_entries_are_those_of_the_array_with_their_texts(tmp_path, style, begin):
    path = tmp_path / "some.json"
    path.write_text(begin + json.dumps(VALUES, **style) + "\n ")
    entries = list(scan_entries(path))
    assert [value for value, _ in entries] == [json.loads(text) for _, text in entries] == VALUES


@pytest.mark.parametrize(
    "content",
    [b"", b'{"a": 1}', b"[1 2]", b"[1, ]", b"[1, 2", b'["a", "b]', b"[1] 2", b'["ab\xff"]', b"[" * 200_000],
    ids=range(9),
)
def test_a_damaged_file_is_named(tmp_path, content):
    (tmp_path / "some.json").write_bytes(content)
    with raises(PointCloudFileError, naming="some.json"):
        list(scan_entries(tmp_path / "some.json"))
