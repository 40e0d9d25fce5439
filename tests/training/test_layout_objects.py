"""The second loss of SpatialLM's fine-tuning: what each token of a cloud is to tell, and a run that learns it."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from tokenizers import Regex, Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Split
from torch import nn
from transformers import PreTrainedTokenizerFast

from hf_any3d import load_point_dataset
from hf_any3d.modeling.spatiallm import Box, Layout
from hf_any3d.training.layout_objects import (
    FIELDS,
    WORDS,
    ObjectHead,
    attention_error,
    field_words,
    object_targets,
)
from hf_any3d.training.layouts import LayoutCollator, LayoutRows, train_layouts
from tests.tiny_spatiallm import fitting_spatiallm, tiny_processor

ROOMS = {"train_rooms": 4, "validation_rooms": 1, "test_rooms": 1, "num_points": 700, "num_objects": 2}


@pytest.fixture(scope="module")
def processor():
    names = load_point_dataset("rooms_with_layouts", **ROOMS)["train"].features["box_labels"].feature.names
    return tiny_processor(num_bins=64, stride=2, clean=False, classes=names)


@pytest.fixture(scope="module")
def rows(processor):
    return LayoutRows(load_point_dataset("rooms_with_layouts", **ROOMS)["train"], processor)


def block(low, high, count=200):
    return np.random.default_rng(0).uniform(low, high, (count, 3))


def test_a_token_tells_the_object_that_most_of_its_points_are_on():
    processor = tiny_processor(num_bins=64, stride=2, clean=False, classes=["bed", "chair"])
    floor = np.stack(np.meshgrid(np.arange(0, 8, 0.25), np.arange(0, 8, 0.25), [0.0]), axis=-1).reshape(-1, 3)
    chair = Box(0, "chair", 1.5, 5.5, 0.5, 0, 0.8, 0.6, 1.0)
    bed = Box(1, "bed", 6.5, 2.5, 0.25, -math.pi / 2, 1, 0.5, 0.5)
    points = np.concatenate([floor, block((1.1, 5.2, 0.1), (1.9, 5.8, 1)), block((6.25, 2, 0.1), (6.75, 3, 0.5))])
    (room,) = processor.read([{"points": points.astype(np.float32)}])
    words, boxes, places = object_targets(room, Layout(boxes=(chair, bed)), processor)
    cells = np.unique(room.grid_coord // 2, axis=0)
    assert len(words) == room.count_tokens(2) == len(cells)
    texts = [processor.tokenizer.decode([word for word in row if word != -100]) for row in words]
    lines = processor.answer(Layout(boxes=(chair, bed)), room).splitlines()
    # The bed has the lower y, and is written first; of labels the first four letters are told.
    for start, label, center, sizes in (
        ("0", "bed", (6.5, 2.5, 0.25), (0.5, 1, 0.5)),
        ("1", "chai", (1.5, 5.5, 0.5), (0.8, 0.6, 1)),
    ):
        own = np.array([text.startswith(start + label) for text in texts])
        assert own.any() and (np.abs(cells[own] + 0.5 - center).max(axis=1) < 1.1).all()
        assert (places[own] == int(start)).all()
        assert np.allclose(boxes[own, :3] + cells[own] + 0.5, center, atol=1e-5)
        assert np.allclose(boxes[own, 3:], sizes)
        numbers = lines[int(start)].rstrip(")").split(",")[1:]
        assert {texts[place] for place in np.flatnonzero(own)} == {start + label + "".join(numbers)}
    empty = np.array([not text for text in texts])
    assert empty.sum() > len(cells) / 2 and (places[empty] == -1).all()


def test_words_are_those_of_the_field_that_they_end_in():
    known = ["bbox_", "=Bbox(", "chair", ")", *map(str, range(320)), *(f",{number}" for number in range(320))]
    tokenizer = Tokenizer(WordLevel({text: number for number, text in enumerate(known)}))
    tokenizer.pre_tokenizer = Split(Regex(r",?\d+|=[A-Z][a-z]+\(|,?[a-z]+_?|[\s\S]"), "isolated")
    layout = Layout(boxes=(Box(0, "chair", 3.0, 4.0, 0.5, 0.0, 1.0, 0.8, 0.9),))
    line = layout.quantized(320).write()
    found = field_words(line, PreTrainedTokenizerFast(tokenizer_object=tokenizer)).reshape(FIELDS, WORDS)
    assert (found[:, 0] != -100).all() and (found[:, 1:] == -100).all()
    told = [tokenizer.id_to_token(number).strip(",") for number in found[:, 0].tolist()]
    assert told == ["0", "chair", "30", "40", "5", "160", "16", "12", "14"]


@pytest.mark.slow
def test_words_are_in_the_order_of_the_tokens(rows, processor):
    batch = LayoutCollator(processor, has_objects=True)([rows[0], rows[1]])
    model = fitting_spatiallm(processor)
    features = model.get_point_features(batch["points"], batch["grid_coord"], batch["point_mask"])
    assert sum(map(len, features)) == len(batch["object_words"]) == len(batch["object_boxes"])
    encoded = model.point_encoder(batch["points"], point_mask=batch["point_mask"], grid_coord=batch["grid_coord"])
    cells = np.concatenate([np.unique(rows[number]["room"].grid_coord // 2, axis=0) for number in (0, 1)])
    assert np.array_equal(encoded.grid_coord.numpy(), cells)
    assert "object_words" not in LayoutCollator(processor)([rows[0]])


def test_lines_of_objects_are_found_in_answers(rows, processor):
    batch = LayoutCollator(processor, has_objects=True)([rows[0], rows[1]])
    for row, (ids, lines) in enumerate(zip(batch["input_ids"], batch["object_lines"], strict=True)):
        text = processor.answer(rows[row]["layout"], rows[row]["room"])
        for number, line in enumerate(one for one in text.splitlines() if one.startswith("bbox")):
            told = (lines == number).nonzero()[:, 0] + 1  # each token tells the next one
            assert processor.tokenizer.decode(ids[told]) == line.partition("(")[2]
        first = len(ids) - batch["logits_to_keep"] + int((batch["labels"][row] != -100).int().argmax())
        assert lines.max() == number and (lines[: first - 1] == -1).all()


def test_attention_is_drawn_to_the_tokens_of_the_object_that_is_written():
    places = torch.tensor([[-1, 0, 0, 1, -1, -1]])
    lines = torch.tensor([[-1, -1, -1, -1, 0, 1]])
    weights = torch.zeros(3, 1, 2, 6, 6)
    weights[:, :, 0, 4, 1:3] = 0.5
    weights[:, :, 0, 5, 3] = 1
    assert attention_error((*weights,), places, lines) < 1e-3
    weights[0] = 0  # the first layer and the second head do as they like
    weights[:, :, 1] = 0.25
    assert attention_error((*weights,), places, lines) < 1e-3
    weights[2, :, 0, 5] = torch.tensor([0, 0, 0, 0.25, 0.75, 0])
    assert attention_error((*weights,), places, lines).item() == pytest.approx(-math.log(0.25) / 4, abs=1e-3)
    assert attention_error((*weights,), torch.full_like(places, -1), lines) is None


@pytest.mark.slow
def test_the_loss_of_tokens_reaches_the_embeddings_of_words():
    torch.manual_seed(0)
    head, embeddings, tokens = ObjectHead(8), nn.Linear(8, 30, bias=False), torch.randn(5, 8)
    words, boxes = torch.full((5, FIELDS * WORDS), -100), torch.randn(5, 6)
    head(tokens, words, boxes, embeddings).backward()
    # Without an object there are no words and no box.
    assert head.has_object.weight.grad.abs().sum() > 0
    assert embeddings.weight.grad is None and head.box.weight.grad is None
    words[2, 0], words[2, WORDS] = 7, 9
    optimizer = torch.optim.Adam([*head.parameters(), *embeddings.parameters()], 0.02)
    losses = []
    for _ in range(100):
        losses.append(head(tokens, words, boxes, embeddings))
        optimizer.zero_grad()
        losses[-1].backward()
        optimizer.step()
    assert losses[-1] < 0.1 * losses[0]
    other = words.clone()
    other[2, 0] = 8
    assert head(tokens, other, boxes, embeddings) > 5 * losses[-1]
    assert head(tokens, words, boxes + 0.3, embeddings) > 5 * losses[-1]


@pytest.fixture
def start(processor, tmp_path):
    model = fitting_spatiallm(processor)
    model.generation_config.pad_token_id = processor.tokenizer.pad_token_id
    model.save_pretrained(tmp_path / "start")
    processor.save_pretrained(tmp_path / "start")
    return str(tmp_path / "start")


@pytest.mark.slow
def test_a_run_learns_objects_first_and_resumes(start, tmp_path):
    out = tmp_path / "out"
    words = ["--model_name_or_path", start, "--output_dir", out, "--dataset_options", json.dumps(ROOMS)]
    words += "--peft full --adapt language encoder --object_loss 1 --object_steps 2 --attention_loss 0.5".split()
    words += "--save_strategy steps --save_steps 1 --eval_strategy no --load_best_model_at_end False".split()
    words += "--max_new_tokens 4 --learning_rate 1e-2 --lr_scheduler_type constant --save_total_limit 4".split()
    train_layouts([*map(str, words), "--fold_quarter_turns", "True", "--max_steps", "3"])
    # While objects are learned alone, the layers of the language model are not run.
    layer = "spatiallm.language_model.model.layers.0.mlp.up_proj.weight"
    folders = (Path(start), *(out / f"checkpoint-{step}" for step in (2, 3)))
    plain, second, third = (load_file(folder / "model.safetensors")[layer] for folder in folders)
    assert torch.equal(plain, second) and not torch.equal(second, third)
    first, last = (load_file(out / f"checkpoint-{step}" / "object_head.safetensors") for step in (2, 3))
    assert not torch.equal(first["down.weight"], last["down.weight"])
    assert not (out / "object_head.safetensors").exists() and (out / "metrics.json").is_file()
    train_layouts([*map(str, words), "--fold_quarter_turns", "True", "--max_steps", "4"])
    after = load_file(out / "checkpoint-4" / "object_head.safetensors")
    moved = (after["down.weight"] - last["down.weight"]).abs().max()
    assert 0 < moved < 0.1  # a step from the head that was saved, not from a new one


@pytest.mark.parametrize(
    ("words", "match"),
    [
        (["--attention_loss", "0.5"], "--attention_loss with --object_loss 0; expected a weight"),
        (["--object_steps", "5"], "--object_steps with --object_loss 0; expected a weight"),
    ],
)
def test_wrong_arguments_are_named(words, match, tmp_path):
    with pytest.raises(ValueError, match=match):
        train_layouts(["--model_name_or_path", "any", "--output_dir", str(tmp_path), *words])


def test_objects_are_numbered_as_in_the_answer_by_bins():
    processor = tiny_processor(num_bins=64, stride=2, clean=False, classes=["bed", "chair"])
    floor = np.stack(np.meshgrid(np.arange(0, 8, 0.25), np.arange(0, 8, 0.25), [0.0]), axis=-1).reshape(-1, 3)
    # Their y differ by a bin of half a meter, and their x the other way round.
    chair = Box(0, "chair", 1.5, 3.6, 0.5, 0, 0.8, 0.6, 1.0)
    bed = Box(1, "bed", 6.5, 3.0, 0.25, 0, 1, 0.5, 0.5)
    points = np.concatenate([floor, block((1.1, 3.3, 0.1), (1.9, 3.9, 1)), block((6.1, 2.8, 0.1), (6.9, 3.2, 0.5))])
    (room,) = processor.read([{"points": points.astype(np.float32)}])
    _, _, places = object_targets(room, Layout(boxes=(chair, bed)), processor)
    cells = np.unique(room.grid_coord // 2, axis=0)
    assert {*places[cells[:, 0] >= 6]} - {-1} == {0} and {*places[cells[:, 0] < 2]} - {-1} == {1}
    lines = processor.answer(Layout(boxes=(chair, bed)), room).splitlines()
    assert "bed" in lines[0] and "chair" in lines[1]


def test_the_loss_of_tokens_is_that_of_its_three_parts():
    torch.manual_seed(1)
    head, embeddings = ObjectHead(8), nn.Linear(8, 30, bias=False)
    tokens, boxes = torch.randn(4, 8) * 3 + 1, torch.randn(4, 6)
    words = torch.full((4, FIELDS * WORDS), -100)
    words[1, [0, 3, 9]], words[3, 5] = torch.tensor([7, 2, 29]), 11
    with torch.no_grad():
        found = head(tokens, words, boxes, embeddings)
        normed = (tokens - tokens.mean(1, keepdim=True)) / (tokens.var(1, unbiased=False, keepdim=True) + 1e-5).sqrt()
        chances = head.has_object(normed).softmax(dim=1)
        expected = -chances[[0, 1, 2, 3], [0, 1, 0, 1]].log().mean()
        errors = (head.box(normed[[1, 3]]) - boxes[[1, 3]]).abs()
        expected += 3 * torch.where(errors < 0.2, errors**2 / 0.4, errors - 0.1).mean()
        losses = []
        for token, place in ((1, 0), (1, 3), (1, 9), (3, 5)):
            told = head.up(head.down(normed[token]).reshape(FIELDS * WORDS, -1)[place])
            told = told / (told.square().mean() + torch.finfo(torch.float32).eps).sqrt()
            losses.append(-embeddings(told).log_softmax(dim=0)[words[token, place]])
        torch.testing.assert_close(found, expected + torch.stack(losses).mean())
        nothing = head(tokens, torch.full_like(words, -100), boxes, embeddings)
        torch.testing.assert_close(nothing, -chances[:, 0].log().mean())


def test_attention_counts_for_each_word_of_objects_that_have_tokens():
    generator = torch.Generator().manual_seed(0)
    attentions = tuple(torch.rand(2, 3, 7, 7, generator=generator) for _ in range(3))
    places = torch.tensor([[-1, 0, 0, 1, -1, -1, -1], [-1, 2, -1, 0, -1, -1, -1]])
    lines = torch.tensor([[-1, -1, -1, -1, 0, 1, 2], [-1, -1, -1, -1, 2, 2, 1]])
    expected = [
        -math.log(sum(weights[row, 0, query, own] for own in tokens) + 1e-4)
        for weights in attentions[1:]
        for row, query, tokens in ((0, 4, (1, 2)), (0, 5, (3,)), (1, 4, (1,)), (1, 5, (1,)))
    ]
    assert attention_error(attentions, places, lines).item() == pytest.approx(np.mean(expected), rel=1e-5)
