"""Batches of prompts: on which side they are filled up or cut, as lists and arrays, and which clouds they get."""

import numpy as np
import pytest

from hf_any3d import PointTransformerV3Processor
from hf_any3d.processing.chat import MiniGPT3DProcessor
from hf_any3d.processing.chat_templates import Prompt
from tests.processing.test_chat import new_processor


@pytest.fixture(scope="module")
def processor():
    return new_processor()


def prompt(ids, answers=0, clouds=0):
    made = Prompt()
    made.add(ids)
    made.add([9] * answers, is_answer=True)
    made.points = [np.full((2, 3), len(ids) + number, np.float32) for number in range(clouds)]
    return made


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


def test_clouds_of_voxels_are_filled_up_with_their_first_point(processor):
    voxels = MiniGPT3DProcessor(PointTransformerV3Processor(), processor.tokenizer)
    prompts = [prompt([1]), prompt([2])]
    short, long = np.arange(6.0).reshape(2, 3), np.ones((4, 3))
    prompts[0].points, prompts[1].points = [short], [long]
    filled, same = voxels.pad(prompts, return_tensors="np")["points"]
    assert filled.tolist() == [[0, 1, 2], [3, 4, 5], [0, 1, 2], [0, 1, 2]] and same.tolist() == long.tolist()
