"""Batches of prompts: on which side they are filled up or cut, as lists and arrays, and which clouds they get."""

import numpy as np
import pytest
import torch

from hf_any3d import PointTransformerV3Processor
from hf_any3d.processing.chat import MiniGPT3DProcessor, cut
from hf_any3d.processing.chat_templates import PLACE_MARK, Prompt
from tests.errors import raises
from tests.processing.test_chat import PLACES, answer, cloud, new_processor, question


@pytest.fixture(scope="module")
def processor():
    return new_processor()


def prompt(ids, answers=0, clouds=0):
    made = Prompt()
    made.add(ids)
    made.add([9] * answers, is_answer=True)
    made.points = [np.full((2, 3), len(ids) + number, np.float32) for number in range(clouds)]
    return made


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("padding", [True, False, "longest", "max_length"])
def test_lists_are_filled_up_on_a_side_or_not_at_all(side, padding, processor):
    given = {"max_length": 6} if padding == "max_length" else {}
    made = processor.pad(
        [prompt([1, 2], answers=1), prompt([3], clouds=1), prompt([4, 5, 6], answers=1, clouds=1)],
        padding=padding,
        padding_side=side,
        return_labels=True,
        return_assistant_tokens_mask=True,
        return_tensors=None,
        **given,
    )
    width = {True: 4, "longest": 4, "max_length": 6}.get(padding, 0)

    def filled(rows, fill):
        blanks = [[fill] * max(0, width - len(row)) for row in rows]
        return [more + row if side == "left" else row + more for row, more in zip(rows, blanks, strict=True)]

    pad = processor.tokenizer.pad_token_id
    assert made["input_ids"] == filled([[1, 2, 9], [3], [4, 5, 6, 9]], pad)
    assert made["attention_mask"] == filled([[1, 1, 1], [1], [1, 1, 1, 1]], 0)
    assert made["labels"] == filled([[-100, -100, 9], [-100], [-100, -100, -100, 9]], -100)
    assert made["assistant_masks"] == filled([[0, 0, 1], [0], [0, 0, 0, 1]], 0)
    assert [each[0, 0] for each in made["points"]] == [1, 3] and isinstance(made["points"], np.ndarray)


def test_labels_and_masks_come_on_request_alone(processor):
    plain = processor.pad([prompt([1, 2], answers=1)])
    assert set(plain) == {"input_ids", "attention_mask"} and isinstance(plain["input_ids"], torch.Tensor)
    assert set(processor.pad([prompt([1])], return_labels=True)) == {*plain, "labels"}
    marked = processor.pad([prompt([1], answers=2)], return_assistant_tokens_mask=True, return_tensors="np")
    assert set(marked) == {*plain, "assistant_masks"} and marked["assistant_masks"].tolist() == [[0, 1, 1]]
    assert marked["assistant_masks"].dtype == np.int64
    same = processor.pad([prompt([1]), prompt([2])], padding=False)
    assert same["input_ids"].tolist() == [[1], [2]], "rows of one length need no padding"


def test_prompts_are_cut_at_their_end_but_no_cloud_is(processor):
    place = processor.point_token_id
    whole = prompt([1, place, 2, 3], answers=2, clouds=1)
    for length in (6, 7):
        assert processor.pad([whole], truncation=True, max_length=length)["input_ids"].shape == (1, 6)
    short = processor.pad([whole], truncation=True, max_length=2, return_labels=True, return_tensors="np")
    assert {name: short[name].tolist() for name in ("input_ids", "attention_mask", "labels")} == {
        "input_ids": [[1, place]],
        "attention_mask": [[1, 1]],
        "labels": [[-100, -100]],
    }
    assert len(short["points"]) == 1 and len(whole.input_ids) == 6, "the prompt itself stays"
    with raises(ValueError, naming="max_length"):
        processor.pad([whole], truncation=True, max_length=1)
    both = processor.pad([prompt([1] * 9)], truncation=True, max_length=3, padding="max_length")
    assert both["input_ids"].tolist() == [[1, 1, 1]]
    assert processor.pad([prompt([1])], max_length=3, padding="max_length")["attention_mask"].tolist() == [[0, 0, 1]]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"padding": "max_length"}, "max_length=None, truncation=False, padding='max_length'; expected max_length"),
        ({"max_length": 3, "padding": "longest"}, "max_length=3, truncation=False, padding='longest'; expected"),
        ({"padding": False}, "input_ids"),
    ],
)
def test_lengths_that_contradict_each_other_are_refused(given, message, processor):
    with pytest.raises(ValueError, match=message):
        processor.pad([prompt([1, 2, 3]), prompt([1])], **given)


def test_each_prompt_gets_the_clouds_of_its_places(processor):
    clouds = [cloud(seed) for seed in range(3)]
    texts = [f"a {PLACE_MARK} b {PLACE_MARK}", "none", f"{PLACE_MARK}"]
    prepared = processor.feature_extractor(clouds)["points"]
    batch = processor(texts, clouds)
    assert torch.equal(batch["points"], prepared)
    places = (batch["input_ids"] == processor.point_token_id).sum(dim=1).tolist()
    assert places == [2 * PLACES, 0, PLACES]
    with pytest.raises(ValueError, match="text has 3 places for point clouds and points 2 clouds"):
        processor(texts, clouds[:2])
    said = [[question("a", clouds[0])], [question("b"), answer("c"), question("d", *clouds[1:])]]
    prompts = processor.prompts(said)
    assert [len(one.points) for one in prompts] == [1, 2]
    np.testing.assert_array_equal(np.stack([*prompts[0].points, *prompts[1].points]), prepared.numpy())
    assert [one.points for one in processor.prompts(said, read=False)] == [[], []]


def test_a_prompt_is_cut_at_clouds_and_answers():
    text = f"ab{PLACE_MARK}cd"
    end = 2 + len(PLACE_MARK)
    assert cut(text) == [("ab", False, False), (PLACE_MARK, True, False), ("cd", False, False)]
    assert cut(text, [(1, end + 1), (end + 1, 99)]) == [
        ("a", False, False),
        ("b", False, True),
        (PLACE_MARK, True, True),
        ("c", False, True),
        ("d", False, True),
    ]
    assert cut("abc", [(0, 1), (2, 3)]) == [("a", False, True), ("b", False, False), ("c", False, True)]
    assert cut("") == [] and cut(PLACE_MARK * 2) == [(PLACE_MARK, True, False)] * 2


def test_clouds_of_voxels_are_filled_up_with_their_first_point(processor):
    voxels = MiniGPT3DProcessor(PointTransformerV3Processor(), processor.tokenizer)
    prompts = [prompt([1]), prompt([2])]
    short, long = np.arange(6.0).reshape(2, 3), np.ones((4, 3))
    prompts[0].points, prompts[1].points = [short], [long]
    filled, same = voxels.pad(prompts, return_tensors="np")["points"]
    assert filled.tolist() == [[0, 1, 2], [3, 4, 5], [0, 1, 2], [0, 1, 2]] and same.tolist() == long.tolist()


def test_answers_are_stripped_or_kept_as_they_are(processor):
    ids = [[ord(letter) for letter in text] for text in (" a lamp ###b", "no ### end ", "open        ")]
    assert processor.decode_answers(torch.tensor([row[:11] for row in ids])) == ["a lamp", "no", "open"]
    assert processor.decode_answers([ids[0]], strip=False) == [" a lamp "]
