"""What is read from checkpoints of the authors: tensors, settings, entries; and what is said where they do not fit."""

import argparse
import json
import re

import pytest
import torch
from safetensors.torch import save_file

from hf_any3d.conversions.checkpoints import (
    account,
    errors_about,
    open_tokenizer,
    read_checkpoint,
    read_entries,
    read_json,
    read_settings,
    read_tensors,
    read_weights,
    without_parallel_prefix,
)
from tests.chat.tiny_tokenizers import character_tokenizer
from tests.errors import raises

STATE = {"module.a": torch.arange(3.0), "b": torch.tensor([1, 2])}


def test_tensors_are_read_from_under_the_first_of_the_keys(tmp_path):
    file = tmp_path / "file.pth"
    other = {"c": torch.ones(1)}
    for content, keys, expected in (
        ({"model": STATE, "base_model": other}, ("model", "base_model"), {"a", "b"}),
        ({"model": STATE, "base_model": other}, ("base_model", "model"), {"c"}),
        ({"model": 3, "state": other}, ("model", "state"), {"c"}),
        (STATE, ("model",), {"a", "b"}),
    ):
        torch.save(content, file)
        assert read_checkpoint(file, keys).keys() == expected
    torch.save({"model": STATE}, file)
    assert torch.equal(read_checkpoint(str(file))["a"], STATE["module.a"])
    torch.save({"base_model": STATE}, file)
    assert read_checkpoint(file).keys() == {"a", "b"}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            {"epoch": 3, "weights": {"a": torch.ones(1)}},
            "no state dict; expected one under 'x' or 'y', found epoch, we",
        ),
        ({"x": {}}, "no state dict; expected one under 'x' or 'y', found x"),
        ({"x": {"a": 3}}, "no state dict; expected one under 'x' or 'y', found x"),
        ({}, "no state dict; expected one under 'x' or 'y', found "),
        ([1], "no state dict; expected one under 'x' or 'y', found list"),
        ({"x": {"module.a": torch.ones(1), "a": torch.ones(1)}}, "mean the same part: a and module.a"),
    ],
)
def test_files_without_tensors_say_what_they_hold(content, message, tmp_path):
    torch.save(content, tmp_path / "file.pth")
    with pytest.raises(ValueError, match=f"^{re.escape(str(tmp_path))}/file.pth: .*{re.escape(message)}"):
        read_checkpoint(tmp_path / "file.pth", ("x", "y"))


def test_entries_and_settings_are_read_beside_the_tensors(tmp_path):
    file = tmp_path / "file.pth"
    torch.save({"model": STATE, "args": argparse.Namespace(width=3, name="a"), "config": {"depth": 4}, 5: 6}, file)
    assert read_entries(file) == ["model", "args", "config"]
    assert read_settings(file, "args") == {"width": 3, "name": "a"}
    assert read_settings(str(file), "config") == {"depth": 4}
    with raises(ValueError, naming="file.pth: lacks 'epoch'"):
        read_settings(file, "epoch")
    torch.save([1, 2], file)
    assert read_entries(file) == []
    with raises(FileNotFoundError, naming="absent.pth"):
        read_settings(tmp_path / "absent.pth", "config")


def test_weights_of_a_directory_are_read_in_the_order_in_which_they_are_preferred(tmp_path):
    def write(name: str, **tensors) -> None:
        if name.endswith(".safetensors"):
            save_file(tensors, tmp_path / name)
        else:
            torch.save(tensors, tmp_path / name)

    write("pytorch_model.bin", a=torch.ones(1))
    state, files = read_weights(tmp_path)
    assert state.keys() == {"a"} and files == [tmp_path / "pytorch_model.bin"]
    write("one.bin", b=torch.ones(1))
    write("two.bin", c=torch.ones(1))
    index = {"weight_map": {"c": "two.bin", "b": "one.bin", "d": "two.bin"}}
    (tmp_path / "pytorch_model.bin.index.json").write_text(json.dumps(index))
    state, files = read_weights(tmp_path)
    assert state.keys() == {"b", "c"} and files == [tmp_path / "one.bin", tmp_path / "two.bin"]
    write("model.safetensors", e=torch.ones(1))
    assert read_weights(tmp_path)[0].keys() == {"e"}
    write("x.safetensors", f=torch.ones(1))
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"f": "x.safetensors"}}))
    state, files = read_weights(tmp_path)
    assert state.keys() == {"f"} and files == [tmp_path / "x.safetensors"]
    for wrong in ({}, {"weight_map": ["a"]}):
        (tmp_path / "model.safetensors.index.json").write_text(json.dumps(wrong))
        with raises(ValueError, naming="index.json"):
            read_weights(tmp_path)
    empty = tmp_path / "empty"
    empty.mkdir()
    with raises(FileNotFoundError, naming=f"{empty}: no weights"):
        read_weights(empty)


def test_files_of_either_format_are_read(tmp_path):
    save_file({"module.a": torch.ones(2)}, tmp_path / "a.safetensors")
    assert read_tensors(tmp_path / "a.safetensors").keys() == {"module.a"}
    torch.save({"module.a": torch.ones(2)}, tmp_path / "a.bin")
    assert read_tensors(tmp_path / "a.bin").keys() == {"a"}
    (tmp_path / "b.safetensors").write_bytes(b"nothing")
    with raises(ValueError, naming="b.safetensors"):
        read_tensors(tmp_path / "b.safetensors")
    with raises(FileNotFoundError, naming="c.safetensors"):
        read_tensors(tmp_path / "c.safetensors")


def test_json_files_hold_objects(tmp_path):
    file = tmp_path / "config.json"
    file.write_text('{"a": 1}')
    assert read_json(file) == {"a": 1}
    for content, message in (("[1]", "holds a list"), ("{", "Expecting")):
        file.write_text(content)
        with raises(ValueError, naming=f"{file}: {message}"):
            read_json(file)
    with raises(FileNotFoundError, naming="none.json"):
        read_json(tmp_path / "none.json")


def test_every_tensor_is_accounted_for():
    expected = {"a": torch.ones(2), "b": torch.ones(3), "c": torch.tensor(1), "d": torch.ones(1), "e": torch.ones(1)}
    account("file", dict(expected, a=torch.ones(2).half(), c=torch.tensor(1, dtype=torch.int32)), expected)
    found = {
        "b": torch.ones(3, 1),
        "c": torch.tensor(1.0),
        "d": torch.tensor([1]),
        "x": torch.ones(1),
        "e": torch.ones(1),
    }
    message = (
        "file: does not fit, tensors are missing: a; left over: x; of another shape: b is (3, 1), expected (3,); of "
        "another type: c is torch.float32, expected torch.int64, d is torch.int64, expected torch.float32"
    )
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        account("file", found, expected)
    with raises(ValueError, naming="file: does not fit, tensors"):
        account("file", expected | {"f": torch.ones(1)}, expected)


def test_names_of_data_parallel_training_are_those_without_it():
    assert without_parallel_prefix({"module.a": 1, "b": 2, "c.module.d": 3}) == {"a": 1, "b": 2, "c.module.d": 3}
    with pytest.raises(ValueError, match="mean the same part: a and module.a, b and module.b$"):
        without_parallel_prefix({"module.b": 1, "b": 2, "a": 3, "module.a": 4, "c": 5})


def test_errors_name_the_file_once():
    with raises(ValueError, naming="here: wrong"), errors_about("here"):
        raise ValueError("wrong")
    with raises(ValueError, naming="here: wrong"), errors_about("here"):
        raise ValueError("here: wrong")
    with raises(ValueError, naming="here: lacks 'other'"), errors_about("here"):
        raise KeyError("other")


def test_a_tokenizer_needs_its_files_and_an_end(tmp_path):
    tokenizer = character_tokenizer()
    tokenizer.save_pretrained(tmp_path / "good")
    opened = open_tokenizer(tmp_path / "good")
    assert len(opened) == len(tokenizer) and opened.eos_token_id == tokenizer.eos_token_id
    tokenizer.eos_token = None
    tokenizer.save_pretrained(tmp_path / "endless")
    with raises(ValueError, naming="endless: the tokenizer has no"):
        open_tokenizer(tmp_path / "endless")
    with raises(ValueError, naming="tokenizer.json"):
        open_tokenizer(tmp_path)
