"""Directories that appear complete or not at all, and the numbers in them."""

import json
import re

import pytest
import torch
from safetensors.torch import load_file
from transformers import BertConfig

from hf_any3d.conversions.saving import save_weights, stored_bytes
from hf_any3d.utils.atomic_files import new_directory
from tests.errors import raises


@pytest.mark.parametrize(
    ("error", "kind", "message"),
    [(KeyboardInterrupt("stop"), KeyboardInterrupt, "stop"), (ValueError("wrong"), ValueError, "wrong")],
)
def test_nothing_is_left_after_an_error(error, kind, message, tmp_path):
    with pytest.raises(kind, match=re.escape(message)), new_directory(tmp_path / "out") as made:
        (made / "file").write_text("one")
        raise error
    assert list(tmp_path.iterdir()) == []


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


def test_numbers_beyond_half_precision_are_named(tmp_path):
    large = {"fine": torch.tensor([65504.0]), "infinite": torch.tensor([torch.inf])}
    save_weights(tmp_path, "SomeModel", BertConfig(), large, torch.float16)
    with raises(ValueError, naming="--dtype"):
        save_weights(tmp_path, "SomeModel", BertConfig(), {"large": torch.tensor([7e4, 1])}, torch.float16)
    save_weights(tmp_path, "SomeModel", BertConfig(), {"large": torch.tensor([7e4, 1])}, torch.bfloat16)
