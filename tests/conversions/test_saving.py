"""Directories that appear complete or not at all, and the numbers in them."""

import json
import re

import pytest
import torch
from safetensors.torch import load_file
from transformers import BertConfig

from hf_any3d.conversions.saving import check_frozen, new_directory, save_weights, stored_bytes
from tests.errors import raises


@pytest.mark.parametrize(
    ("error", "kind", "message"),
    [
        (KeyboardInterrupt("stop"), KeyboardInterrupt, "stop"),
        (ValueError("wrong"), ValueError, "wrong"),
    ],
)
def test_nothing_is_left_after_an_error(error, kind, message, tmp_path):
    with pytest.raises(kind, match=re.escape(message)), new_directory(tmp_path / "out") as made:
        (made / "file").write_text("one")
        raise error
    assert list(tmp_path.iterdir()) == []


def test_what_is_there_is_not_replaced(tmp_path):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine").write_text("mine")
    (tmp_path / "file").write_text("mine")
    (tmp_path / "link").symlink_to(tmp_path / "elsewhere")
    for name in ("full", "file", "link"):
        with raises(FileExistsError, naming=str(tmp_path / name)), new_directory(tmp_path / name):
            pytest.fail("entered")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "full", "link"]


TENSORS = {
    "a.weight": torch.arange(12.0).view(3, 4).T,
    "b.count": torch.tensor(7),
    "c.bias": torch.tensor([0.1, -2.5], dtype=torch.float64),
    "d.flags": torch.tensor([True, False]),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_floats_get_the_type_and_all_else_stays(dtype, tmp_path):
    shared = TENSORS | {"e.weight": TENSORS["a.weight"]}
    save_weights(tmp_path, "SomeModel", BertConfig(), shared, dtype)
    stored = load_file(tmp_path / "model.safetensors")
    assert stored.keys() == shared.keys()
    for name, tensor in shared.items():
        assert stored[name].dtype == (dtype if tensor.is_floating_point() else tensor.dtype)
        assert torch.equal(stored[name], tensor.to(stored[name].dtype))
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["architectures"] == ["SomeModel"] and config["dtype"] == str(dtype).removeprefix("torch.")
    assert stored_bytes(tmp_path) == sum(file.stat().st_size for file in tmp_path.iterdir()) > 0
    assert not (tmp_path / "model.safetensors.index.json").exists()


def test_large_models_have_an_index_of_their_files(tmp_path):
    save_weights(tmp_path, "SomeModel", BertConfig(), TENSORS, torch.float32, max_shard_size=40)
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    assert index["metadata"]["total_size"] == 12 * 4 + 8 + 2 * 4 + 2 and index["weight_map"].keys() == TENSORS.keys()
    for name, file in index["weight_map"].items():
        assert torch.equal(load_file(tmp_path / file)[name], TENSORS[name].to(load_file(tmp_path / file)[name].dtype))
    assert len(set(index["weight_map"].values())) > 1


def test_numbers_beyond_half_precision_are_named(tmp_path):
    large = {"fine": torch.tensor([65504.0]), "infinite": torch.tensor([torch.inf])}
    save_weights(tmp_path, "SomeModel", BertConfig(), large, torch.float16)
    with raises(ValueError, naming="--dtype"):
        save_weights(tmp_path, "SomeModel", BertConfig(), {"large": torch.tensor([7e4, 1])}, torch.float16)
    save_weights(tmp_path, "SomeModel", BertConfig(), {"large": torch.tensor([7e4, 1])}, torch.bfloat16)


def test_frozen_tensors_equal_those_of_the_named_encoder_up_to_rounding():
    expected = {"a": torch.tensor([1.0, 1000.0]), "b": torch.zeros(2), "c": torch.ones(1)}
    close = {"a": torch.tensor([1.0 + 9e-7, 1000.0005]), "b": torch.full((2,), 9e-7), "c": torch.ones(1).half()}
    check_frozen("file.pth", "me/encoder", expected, close, "--encoder")
    for name, value in (("a", [1.0, 1000.01]), ("b", [0.0, 3e-6])):
        message = (
            f"file.pth: its frozen layers are not those of encoder 'me/encoder': 1 of 3 tensors differ: {name}; give "
            "the encoder that it was trained with as --encoder"
        )
        with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
            check_frozen("file.pth", "me/encoder", expected, close | {name: torch.tensor(value)}, "--encoder")
    with raises(ValueError, naming="file.pth"):
        check_frozen("file.pth", "me/encoder", expected, {name: close[name] for name in "ab"}, "--encoder")
