"""Files that are saved or pushed name no directory of a machine; what they name is found again."""

import json
import re

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModel

from hf_any3d import (
    ActForPointCloudClassification,
    Any2PointForPointCloudClassification,
    AutoModelForPointCloudClassification,
    GuidedAdapterConfig,
)
from tests.errors import raises
from tests.tiny_act import tiny_act
from tests.tiny_encoders import SMALL, clouds, random_encoder, tiny_config, with_large_logits

pytestmark = pytest.mark.filterwarnings("ignore:this adapter leaves out")


def around(encoder):
    torch.manual_seed(1)
    settings = {"num_labels": 3, **SMALL}
    return with_large_logits(Any2PointForPointCloudClassification.from_encoder_pretrained(encoder, **settings)).eval()


def guided(model):
    return get_peft_model(model, GuidedAdapterConfig(r=4, init_weights=False)).eval()


def headless(model):
    return get_peft_model(model, LoraConfig(target_modules=["qkv"], init_lora_weights=False)).eval()


@torch.no_grad()
def answer(model):
    return model.eval()(points=clouds(2)).logits


def make(kind, root):
    """Make a model whose base is in a directory."""
    if kind == "headless adapter":
        tiny_act(ActForPointCloudClassification).save_pretrained(root / "base")
        return headless(ActForPointCloudClassification.from_pretrained(root / "base"))
    random_encoder(tiny_config("bert")).save_pretrained(root / "base")
    model = around(root / "base")
    return guided(model) if kind == "adapter" else model


def texts(files):
    """Contents of all files that are no weights, by name."""
    return {name: content for name, content in files.items() if not name.endswith((".safetensors", ".bin"))}


KINDS = ("full model", "adapter", "headless adapter")


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_saved_near_its_base_names_it_by_a_relative_path_and_moves_with_it(kind, tmp_path):
    root = tmp_path / "home" / "anna" / "project"
    model = make(kind, root)
    model.save_pretrained(root / "saved" / "model")
    for file in (root / "saved").rglob("*"):
        if file.is_file():
            assert not re.search(rb"anna|/tmp|" + str(tmp_path).encode(), file.read_bytes()), file
    moved = tmp_path / "moved"
    root.rename(moved)
    opened = AutoModelForPointCloudClassification.from_pretrained(moved / "saved" / "model")
    assert torch.equal(answer(opened), answer(model))
    # Saved elsewhere, it names the base from there.
    opened.save_pretrained(moved / "again")
    again = AutoModelForPointCloudClassification.from_pretrained(moved / "again")
    assert torch.equal(answer(again), answer(model))
    (moved / "base").rename(moved / "gone")
    with raises(OSError if kind == "headless adapter" else ValueError, naming="base"):
        AutoModelForPointCloudClassification.from_pretrained(moved / "saved" / "model")


@pytest.mark.parametrize("kind", KINDS)
def test_a_base_in_a_home_is_not_named_from_outside_and_its_weights_are_stored(kind, tmp_path):
    model = make(kind, tmp_path / "home" / "anna")
    model.save_pretrained(tmp_path / "scratch" / "model")
    for file in (tmp_path / "scratch").rglob("*"):
        if file.is_file():
            assert b"anna" not in file.read_bytes(), file
    if kind == "headless adapter":
        with raises(OSError, naming="base_model_name_or_path"):
            AutoModelForPointCloudClassification.from_pretrained(tmp_path / "scratch" / "model")
        return
    opened = AutoModelForPointCloudClassification.from_pretrained(tmp_path / "scratch" / "model")
    assert torch.equal(answer(opened), answer(model))


@pytest.mark.parametrize("kind", ["full model", "adapter"])
def test_what_is_pushed_has_the_weights_of_a_base_in_a_directory(kind, hub, tmp_path):
    model = make(kind, tmp_path)
    name = f"me/placed-{kind.replace(' ', '-')}"
    model.push_to_hub(name)
    for file in hub.files(name):
        assert str(tmp_path).encode() not in hub.content(name, file)
    recorded = json.loads(hub.content(name, "config.json"))["parts"]["encoder"]
    assert recorded["stored"] and recorded["name_or_path"] == "./base"
    (tmp_path / "base").rename(tmp_path / "gone")
    assert torch.equal(answer(AutoModelForPointCloudClassification.from_pretrained(name)), answer(model))
    # What stays in memory is as it was.
    assert (model.get_base_model() if kind == "adapter" else model).config.part("encoder").is_elsewhere


def test_a_base_of_the_hub_stays_named(hub, tmp_path):
    AutoModel.from_config(tiny_config("bert")).push_to_hub("me/named-encoder")
    guided(around("me/named-encoder")).save_pretrained(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["parts"]["encoder"]["name_or_path"] == "me/named-encoder"
    assert not (tmp_path / "encoder").exists()
