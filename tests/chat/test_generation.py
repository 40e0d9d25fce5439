from threading import Event

import pytest
import torch

from hf_any3d.tasks.chat.generation import PUBLISHED_GENERATION, AnswerStreamer, Canceled, EndMarkReached, streamed
from tests.chat.tiny_chat_model import cloud, tiny_chat_pipeline
from tests.chat.tiny_tokenizers import byte_tokenizer


@pytest.mark.slow
@pytest.mark.parametrize("beams", [1, 3])
def test_point_tokens_are_never_generated(beams):
    pipe = tiny_chat_pipeline(text="normed_phi")
    place = pipe.processor.tokenizer.convert_tokens_to_ids("~")
    pipe.model.language_model.lm_head.bias.data[place] = 1e4
    settings = {"max_new_tokens": 8, "min_new_tokens": 8, "num_beams": beams}
    assert pipe(cloud(), **settings)[0]["generated_text"] == "~" * 8
    pipe.model.config.point_token_id = pipe.processor.point_token_id = place
    (tokens,) = pipe.answerer.generate(
        pipe.processor.prompts([[{"role": "user", "content": "What is this?"}]]), pipe.generate_settings(settings)
    )
    assert place not in tokens


@pytest.mark.parametrize(
    ("pieces", "expected"),
    [
        (["A ", "chair."], ["A", " chair."]),
        ([" ", " A", " \n", "b "], ["A", " \nb"]),
        (["a#", "#", "#b"], ["a"]),
        (["a ##", " b"], ["a", " ## b"]),
        (["a #", "# ###", "c"], ["a", " ##"]),
        (["###"], []),
        (["a####"], ["a"]),
        ([], []),
    ],
)
def test_possible_parts_of_the_end_mark_are_held_back(pieces, expected):
    streamer = AnswerStreamer(byte_tokenizer(), "###")
    for piece in pieces:
        streamer.on_finalized_text(piece)
    streamer.on_finalized_text("", stream_end=True)
    assert list(streamer) == expected
    assert "".join(expected) == "".join(pieces).split("###")[0].strip()


def test_settings_are_those_of_the_released_programs():
    sampled = {"do_sample": True, "temperature": 0.2, "top_k": 50}
    beams = {"num_beams": 2, "min_new_tokens": 9, "top_p": 0.7, "repetition_penalty": 1.0, "length_penalty": 1.0}
    assert PUBLISHED_GENERATION == {
        "objaverse": {**sampled, **beams, "max_new_tokens": 150},
        "modelnet40": {**sampled, **beams, "max_new_tokens": 100},
        "demo": {**sampled, "top_p": 0.9, "repetition_penalty": 1.05, "max_new_tokens": 60},
    }


def test_the_end_mark_is_found_in_the_answer_alone_however_it_is_spelled():
    tokenizer = byte_tokenizer()
    ids = torch.tensor(
        [tokenizer(text, add_special_tokens=False)["input_ids"] for text in ("###ab###", "###ab##x", "###abc##")]
    )
    assert EndMarkReached(tokenizer, "###", 3)(ids, None).tolist() == [True, False, False]
    assert EndMarkReached(tokenizer, "###", 0)(ids[:, :3], None).tolist() == [True] * 3
    assert EndMarkReached(tokenizer, "###", 0)(ids, None).tolist() == [True, False, False], "marks that are over"


def test_what_a_thread_generates_is_streamed_and_its_errors_are_raised():
    def generate(streamer, stopping_criteria):
        seen.extend(stopping_criteria)
        streamer.on_finalized_text("a b", stream_end=True)
        return "answer"

    seen, own = [], Canceled(Event())
    pieces = streamed(generate, AnswerStreamer(byte_tokenizer(), "###"), [own])
    assert next(pieces) == "a b"
    with pytest.raises(StopIteration) as end:
        next(pieces)
    assert end.value.value == "answer" and seen[0] is own and len(seen) == 2
    with pytest.raises(ZeroDivisionError):
        list(streamed(lambda **_: 1 / 0, AnswerStreamer(byte_tokenizer(), "###")))
