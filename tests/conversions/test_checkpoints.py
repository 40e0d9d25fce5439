"""What is read from checkpoints of the authors: tensors, settings, entries; and what is said where they do not fit."""

import re

import pytest
import torch

from hf_any3d.conversions.checkpoints import open_tokenizer, read_checkpoint, without_parallel_prefix
from hf_any3d.conversions.tensor_checks import account
from tests.chat.tiny_tokenizers import character_tokenizer
from tests.errors import raises


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
        "file: tensors do not fit; missing: a; left over: x; of another shape: b is (3, 1), expected (3,); of "
        "another type: c is torch.float32, expected torch.int64, d is torch.int64, expected torch.float32"
    )
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        account("file", found, expected)
    with raises(ValueError, naming="file: tensors do not fit"):
        account("file", expected | {"f": torch.ones(1)}, expected)


def test_names_of_data_parallel_training_are_those_without_it():
    assert without_parallel_prefix({"module.a": 1, "b": 2, "c.module.d": 3}) == {"a": 1, "b": 2, "c.module.d": 3}
    with pytest.raises(ValueError, match="mean the same part: a and module.a, b and module.b$"):
        without_parallel_prefix({"module.b": 1, "b": 2, "a": 3, "module.a": 4, "c": 5})


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
