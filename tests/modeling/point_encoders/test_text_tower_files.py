"""What text towers read of a checkpoint's files, and how they cut and pool words."""

import json
import re
import shutil
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.nn.functional import normalize

from hf_any3d.modeling.encoders import UnsupportedEncoder
from hf_any3d.modeling.point_encoders.text_towers import (
    TextTower,
    open_text_tower,
    own_projection,
    text_tower_families,
    text_tower_settings,
)
from tests.modeling.test_text_towers import config_of
from tests.tiny_text_towers import saved_text_tower

FAMILIES = text_tower_families()


class Model(torch.nn.Module):
    """Returns words and pooled words that depend on the tokens alone."""

    def __init__(self, **config):
        super().__init__()
        self.config = SimpleNamespace(**config)
        self.weight = torch.nn.Parameter(torch.ones(1))

    def forward(self, input_ids, attention_mask=None):
        self.given = {"input_ids": input_ids} | ({} if attention_mask is None else {"attention_mask": attention_mask})
        words = torch.stack([input_ids + 0.5, -input_ids.float(), input_ids.square().float()], dim=-1)
        pooled = words.sum(dim=1)
        return SimpleNamespace(last_hidden_state=words, pooler_output=pooled + 1, text_embeds=pooled - 1)


IDS = torch.tensor([[5, 3, 1], [2, 9, 4]])
MASK = torch.tensor([[1, 1, 0], [1, 1, 1]])


class Tokenizer:
    """Makes a token of each letter."""

    model_max_length = 4

    def __init__(self, has_mask=True):
        self.has_mask = has_mask

    def __call__(self, texts, **settings):
        self.settings, longest = settings, max(map(len, texts))
        ids = torch.tensor([[ord(letter) for letter in text.ljust(longest)] for text in texts])
        return {"input_ids": ids} | ({"attention_mask": (ids != 32).long()} if self.has_mask else {})


@pytest.mark.parametrize(("model_type", "padding"), [("bert", "longest"), ("siglip", "max_length")])
def test_texts_are_tokenized_as_their_tower_was_trained(model_type, padding):
    tokenizer = Tokenizer()
    tower = TextTower(Model(max_position_embeddings=77), tokenizer, FAMILIES[model_type])
    inputs = tower.tokenize(("ab", "c"))
    assert tokenizer.settings == {"padding": padding, "truncation": True, "max_length": 4, "return_tensors": "pt"}
    assert inputs["attention_mask"].tolist() == [[1, 1], [1, 0]] and list(inputs) == ["input_ids", "attention_mask"]
    tokenizer.has_mask = False
    assert tower.tokenize(["ab", "c"])["attention_mask"].tolist() == [[1, 1], [1, 1]]
    for texts, message in (
        ("chair", "texts is 'chair'; expected a list with at least one text"),
        ([], "texts is []; expected a list with at least one text"),
        (["a", " "], "texts has ' '; expected words"),
        ([None], "texts has None; expected words"),
        (["a\ud800b"], "expected words of whole characters"),
        (["\udfff"], "expected words of whole characters"),
    ):
        with pytest.raises(ValueError, match=re.escape(message)):
            tower.tokenize(texts)
    assert tower.tokenize(["\ud7ff\ue000"])["input_ids"].shape == (1, 2)


def test_features_are_full_unit_vectors_with_or_without_a_mask():
    tower = TextTower(Model(max_position_embeddings=77).bfloat16(), Tokenizer(), FAMILIES["bert"], "mean")
    words = torch.stack([IDS + 0.5, -IDS.float(), IDS.square().float()], dim=-1)
    found = tower.features(IDS)
    torch.testing.assert_close(found, normalize(words.mean(dim=1), dim=-1))
    assert tower.features(IDS, MASK).dtype == torch.float32 and not torch.equal(tower.features(IDS, MASK), found)


@pytest.fixture
def files(tmp_path):
    """A copy of a sentence encoder whose files may be changed."""
    return shutil.copytree(saved_text_tower("bert"), tmp_path / "encoder")


def test_the_pooling_is_that_of_the_files_and_modules(files):
    modules = json.loads((files / "modules.json").read_text())
    modules[1]["path"] = "3_Words"
    (files / "modules.json").write_text(json.dumps(modules))
    (files / "3_Words").mkdir()
    for settings, expected in (
        ({"pooling_mode_max_tokens": True, "pooling_mode_mean_tokens": False}, "max"),
        ({"pooling_mode_cls_token": True}, "cls"),
        ({"pooling_mode": "mean", "pooling_mode_cls_token": True}, "mean"),
    ):
        (files / "3_Words" / "config.json").write_text(json.dumps(settings))
        assert text_tower_settings(files) == {"text_width": 48, "text_pooling": expected}
    assert text_tower_settings(files, text_pooling="max")["text_pooling"] == "max"
    for settings, shown in (
        ({}, "[]"),
        ({"pooling_mode": "last"}, "['last']"),
        ({"pooling_mode_mean_tokens": True, "pooling_mode_weighted": True}, "['mean', 'pooling_mode_weighted']"),
    ):
        (files / "3_Words" / "config.json").write_text(json.dumps(settings))
        message = f"pools words by {shown}; expected one of 'mean', 'cls', 'max'"
        with pytest.raises(UnsupportedEncoder, match=re.escape(message)):
            text_tower_settings(files)
    # Without a list of modules the usual folder counts.
    (files / "modules.json").unlink()
    assert text_tower_settings(files)["text_pooling"] == "mean"


def test_a_checkpoint_without_weights_of_the_tower_is_refused(tmp_path):
    folder = shutil.copytree(saved_text_tower("clip"), tmp_path / "clip")
    weights = load_file(folder / "model.safetensors")
    kept = {name: tensor for name, tensor in weights.items() if name != "text_projection.weight"}
    save_file(kept, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(UnsupportedEncoder, match=re.escape(f"{folder}: the text tower lacks text_projection.weight")):
        open_text_tower(config_of(folder, "text"))


def test_a_projection_into_another_space_is_none():
    config = config_of(saved_text_tower("clip"), "vision")
    assert own_projection(config).shape == (16, 48) and not own_projection(config).requires_grad
    config.text_width = 17
    assert own_projection(config) is None
