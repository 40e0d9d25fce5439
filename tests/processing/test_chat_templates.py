"""Prompts as arrays, and the published templates."""

import numpy as np
import pytest

from hf_any3d.processing.chat_templates import PUBLISHED, Prompt, pad_prompts, published_templates


@pytest.mark.parametrize("side", ["left", "right"])
def test_prompts_are_padded_on_a_side_to_the_longest_or_further(side):
    short, long = Prompt(), Prompt()
    short.add([5])
    long.add([6, 7])
    long.add([8], is_answer=True)
    assert (long.labels, long.attention_mask) == ([-100, -100, 8], [1, 1, 1])
    batch = pad_prompts([short, long], 9, side, least=4)
    rows = [[9, 9, 9, 5], [9, 6, 7, 8]] if side == "left" else [[5, 9, 9, 9], [6, 7, 8, 9]]
    assert batch["input_ids"].tolist() == rows and batch["input_ids"].dtype == np.int64
    mask = [[number != 9 for number in row] for row in rows]
    assert batch["attention_mask"].tolist() == mask and sorted(batch["labels"][1].tolist()) == [-100, -100, -100, 8]
    assert pad_prompts([short, long], 9, side)["input_ids"].shape == (2, 3)
    long.shorten(2)
    assert (long.input_ids, long.labels, long.attention_mask) == ([6, 7], [-100, -100], [1, 1])


def test_one_of_the_published_templates_is_the_default():
    assert published_templates() == {"default": PUBLISHED["training"], **PUBLISHED}
    assert published_templates("demo")["default"] == PUBLISHED["demo"]
