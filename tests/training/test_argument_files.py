"""Files of arguments that extend others."""

import json

import pytest

from hf_any3d.training.recipes import merge, read_settings


@pytest.fixture
def write(tmp_path):
    def put(name: str, text: str):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
        return path

    return put


def test_file_overrides_its_bases_and_later_bases_earlier_ones(write):
    write("base/one.yaml", "rate: 1\nsteps: 1\nmodel: {a: 1, b: 1, deep: {x: 1}}\naugment: [scale, shift]\n")
    write("base/two.json", json.dumps({"steps": 2, "model": {"b": 2, "deep": {"y": 2}}}))
    path = write("run.yaml", "extends: [base/one.yaml, base/two.json]\nmodel: {c: 3}\naugment: [jitter]\n")
    assert read_settings(path) == {
        "rate": 1,
        "steps": 2,
        "model": {"a": 1, "b": 2, "c": 3, "deep": {"x": 1, "y": 2}},
        "augment": ["jitter"],
    }


def test_base_may_be_extended_twice(write):
    write("root.yaml", "a: 1\n")
    write("left.yaml", "extends: root.yaml\nl: 1\n")
    write("right.yaml", "extends: root.yaml\nr: 1\n")
    assert read_settings(write("run.yaml", "extends: [left.yaml, right.yaml]\n")) == {"a": 1, "l": 1, "r": 1}


def test_mapping_can_be_replaced_by_null():
    assert merge({"a": {"x": 1}, "b": 1}, {"a": None, "b": {"y": 1}}) == {"a": None, "b": {"y": 1}}


@pytest.mark.parametrize(
    ("text", "error", "message"),
    [
        ("extends: absent.yaml\n", FileNotFoundError, "absent.yaml"),
        ("extends: other.yaml\n", ValueError, "extends itself"),
        ("extends: [1]\n", ValueError, "extends is"),
        ("extends: list.yaml\n", ValueError, "list.yaml: expected names and values"),
    ],
)
def test_errors_name_invalid_bases(write, text, error, message):
    write("list.yaml", "- a\n")
    write("other.yaml", "extends: run.yaml\n")
    with pytest.raises(error, match=message):
        read_settings(write("run.yaml", text))
