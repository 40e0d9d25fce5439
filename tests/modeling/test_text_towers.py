"""Text towers embed texts as their checkpoints do, independently of the batch."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from torch import nn
from transformers import AutoModel, AutoTokenizer

from hf_any3d.modeling.any2point import Any2PointConfig
from hf_any3d.modeling.encoders import UnsupportedEncoder, encoder_settings
from hf_any3d.modeling.point_encoders.text_templates import fill_templates
from hf_any3d.modeling.point_encoders.text_towers import (
    embed_prompts,
    find_text_tower,
    open_text_tower,
    own_projection,
    text_tower_families,
    text_tower_settings,
)
from hf_any3d.modeling.pretrained_parts.sources import EncoderMismatchError
from tests.errors import raises
from tests.tiny_encoders import random_encoder, saved_encoder, tiny_config
from tests.tiny_text_towers import saved_text_tower, write_text_files

TEXTS = ["a chair", "a lamp that is a good deal longer", "b"]


def config_of(name, tower=None, text_pooling=None, revision=None):
    settings = encoder_settings(name, tower, revision) | text_tower_settings(name, revision, text_pooling)
    return Any2PointConfig(**settings)


def tower_of(model_type, tower=None, **kwargs):
    return open_text_tower(config_of(saved_text_tower(model_type), tower, **kwargs))


@torch.no_grad()
def own_features(model_type, texts):
    """Embed each text alone with the full checkpoint."""
    directory = saved_text_tower(model_type)
    model, tokenizer = AutoModel.from_pretrained(directory).eval(), AutoTokenizer.from_pretrained(directory)
    rows = []
    for text in texts:
        fixed = {"padding": "max_length", "max_length": 40} if model_type.startswith("siglip") else {}
        inputs = tokenizer(text, return_tensors="pt", **fixed)
        if hasattr(model, "get_text_features"):
            mask = {} if fixed else {"attention_mask": inputs["attention_mask"]}
            found = model.get_text_features(input_ids=inputs["input_ids"], **mask)
            rows.append(getattr(found, "pooler_output", found))
        else:
            words = model(input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"]).last_hidden_state
            rows.append(words.mean(dim=1))
    return nn.functional.normalize(torch.cat(rows), dim=-1)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("model_type", "tower"),
    [
        ("clip", "text"),
        ("clip", "vision"),
        ("siglip", "text"),
        ("siglip2", "vision"),
        ("clap", "text"),
        ("bert", None),
        ("mpnet", None),
        ("roberta", None),
        ("distilbert", None),
        ("modernbert", None),
    ],
)
def test_embeddings_equal_those_of_the_checkpoint(model_type, tower):
    config = config_of(saved_text_tower(model_type), tower)
    opened = open_text_tower(config)
    vectors = opened.embed(TEXTS)
    assert vectors.shape == (3, config.text_width)
    torch.testing.assert_close(vectors, own_features(model_type, TEXTS), rtol=0, atol=1e-5)
    assert not any(parameter.requires_grad for parameter in opened.model.parameters())
    assert not opened.model.training


@pytest.mark.parametrize("pooling", ["cls", "max"])
def test_cls_and_max_pooling_ignore_padding(pooling):
    tower = tower_of("bert", text_pooling=pooling)
    alone = torch.cat([tower.embed([text]) for text in TEXTS])
    torch.testing.assert_close(tower.embed(TEXTS), alone, rtol=0, atol=1e-5)
    assert not torch.allclose(alone, tower_of("bert").embed(TEXTS))


def test_texts_are_batched_and_truncated():
    tower = tower_of("bert")
    texts = [f"{'a' * (number % 7 + 1)}b" for number in range(130)]
    torch.testing.assert_close(tower.embed(texts)[[3, 100]], tower.embed([texts[3], texts[100]]), rtol=0, atol=1e-5)
    assert tower.tokenize(["word" * 50])["input_ids"].shape == (1, 40)


@pytest.mark.parametrize("texts", [[], "chair", ["chair", ""], ["  "], [3]])
def test_invalid_texts_are_refused(texts):
    with pytest.raises(ValueError, match="texts (is|has)"):
        tower_of("bert").tokenize(texts)


def test_error_for_an_encoder_without_text_tower_lists_those_with_one():
    with raises(UnsupportedEncoder, naming="'vit' has no text tower"):
        text_tower_settings(saved_encoder("vit"))
    with raises(UnsupportedEncoder, naming="'llama' has no text tower"):
        find_text_tower(tiny_config("llama"))


def test_encoder_without_pooling_files_requires_text_pooling():
    with raises(UnsupportedEncoder, naming="1_Pooling/config.json"):
        text_tower_settings(saved_encoder("bert"))
    assert text_tower_settings(saved_encoder("bert"), text_pooling="cls") == {"text_width": 48, "text_pooling": "cls"}
    with raises(ValueError, naming="text_pooling"):
        text_tower_settings(saved_encoder("bert"), text_pooling="last")
    with raises(ValueError, naming="text_pooling"):
        text_tower_settings(saved_encoder("clip"), text_pooling="mean")


@pytest.mark.parametrize(
    ("file", "content", "text"),
    [
        ("modules.json", [{"path": "2_Dense", "type": "sentence_transformers.models.Dense"}], "a module 'dense'"),
        ("1_Pooling/config.json", {"pooling_mode_mean_sqrt_len_tokens": True}, "mean_sqrt_len"),
        ("1_Pooling/config.json", {"pooling_mode_mean_tokens": True, "pooling_mode_cls_token": True}, "mean', 'cls"),
    ],
)
def test_unsupported_modules_and_poolings_are_refused(tmp_path, file, content, text):
    directory = tmp_path / "encoder"
    shutil.copytree(saved_text_tower("bert"), directory)
    (directory / file).write_text(content if isinstance(content, str) else json.dumps(content))
    with pytest.raises(UnsupportedEncoder, match=text):
        text_tower_settings(directory)


def test_tower_without_tokenizer_or_with_other_weights_is_refused(tmp_path):
    config = config_of(saved_encoder("bert"), text_pooling="mean")
    with pytest.raises(ValueError, match="have no tokenizer, or one that takes chair for lamp"):
        open_text_tower(config)
    config = config_of(saved_text_tower("bert"))
    config.encoder_checksum = "sha256:" + "0" * 64
    with raises(EncoderMismatchError, naming="expected sha256:000"):
        open_text_tower(config)
    config.encoder_name_or_path = None
    with pytest.raises(ValueError, match="names no encoder, whose text tower"):
        open_text_tower(config)


def test_text_tower_is_loaded_from_the_pinned_commit(hub, tmp_path):
    name = "me/tiny-sentences"
    directory = write_text_files(tmp_path / "files", is_sentence_encoder=True)
    AutoModel.from_pretrained(saved_encoder("bert")).push_to_hub(name)
    AutoTokenizer.from_pretrained(directory).push_to_hub(name)
    from huggingface_hub import HfApi

    HfApi().upload_folder(repo_id=name, folder_path=directory, allow_patterns=["modules.json", "1_Pooling/*"])
    config = config_of(name)
    random_encoder(tiny_config("bert"), seed=9).push_to_hub(name)
    assert config.encoder_revision != hub.commits(name)[-1]
    torch.testing.assert_close(open_text_tower(config).embed(TEXTS), tower_of("bert").embed(TEXTS))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("model_type", "tower", "shape"),
    [
        ("clip", "text", (16, 48)),
        ("clip", "vision", (16, 48)),
        ("siglip", "text", (48, 48)),
        ("siglip", "vision", None),
        ("clap", "text", None),
        ("bert", None, (48, 48)),
    ],
)
def test_own_projection_is_the_linear_layer_of_the_checkpoint(model_type, tower, shape):
    weight = own_projection(config_of(saved_text_tower(model_type), tower))
    assert (None if weight is None else tuple(weight.shape)) == shape
    if model_type == "clip":
        whole = AutoModel.from_pretrained(saved_text_tower("clip"))
        own = whole.text_projection if tower == "text" else whole.visual_projection
        assert torch.equal(weight, own.weight)
    if model_type == "bert":
        assert torch.equal(weight, torch.eye(48))


def test_templates_of_a_label_are_averaged():
    tower = tower_of("bert")
    vectors = embed_prompts(tower, fill_templates(["chair", "lamp"], ["a {}", "{} of brass"]))
    expected = tower.embed(["a lamp", "lamp of brass"]).mean(dim=0)
    torch.testing.assert_close(vectors[1], nn.functional.normalize(expected, dim=-1))
    assert fill_templates(["{x}"], ["a {} {y}"]) == [["a {x} {y}"]]
    for wrong in ([], "a {}", ["a chair"], ["{} or {}"]):
        with raises(ValueError, naming="hypothesis_template"):
            fill_templates(["chair"], wrong)


def test_zero_shot_page_lists_every_model_type():
    page = (Path(__file__).resolve().parents[2] / "docs" / "zero_shot.md").read_text(encoding="utf-8")
    assert [model_type for model_type in text_tower_families() if f"`{model_type}`" not in page] == []
