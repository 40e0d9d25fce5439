"""Messages: their texts and clouds, those of the released programs, and what is no conversation."""

import pytest

from hf_any3d.processing.chat_messages import (
    clean_question,
    released_answer,
    released_evaluation_answer,
    take_clouds,
    training_messages,
)

CLOUD = {"type": "point_cloud"}


def text(words):
    return {"type": "text", "text": words}


def said(role, *parts):
    return {"role": role, "content": list(parts)}


def test_questions_are_cleaned_as_captions_are():
    assert clean_question('What IS "this"? A (red) chair!; no: *#~ .') == "what is this ? a red chair no"
    assert clean_question(" ".join(map(str, range(60)))).split() == [str(number) for number in range(50)]


@pytest.mark.parametrize(("turns", "first"), [(2, "what is it? "), (4, "What IS it?")])
def test_stored_conversations_begin_with_their_cloud(turns, first):
    values = ["<point>\nWhat IS it?", "A Chair.", "Why?", "So."][:turns]
    stored = [{"from": ("human", "gpt")[number % 2], "value": value} for number, value in enumerate(values)]
    question, answer, *rest = training_messages(stored)
    assert question == said("user", CLOUD, text(first.strip())) and answer == said("assistant", text("A Chair."))
    assert rest == [said("user", text("Why?")), said("assistant", text("So."))][: turns - 2]


@pytest.mark.parametrize(
    ("decoded", "answer"),
    [
        ("<s>[INST] What? [/INST] A chair. </s> more", "A chair."),
        (" A <s>lamp ", "A lamp"),
        ("a[/INST]b[/INST] c", "c"),
    ],
)
def test_released_answers_are_what_follows_the_question(decoded, answer):
    assert released_answer(decoded) == answer


def test_released_answers_are_judged_in_small_letters_up_to_the_end_mark():
    assert released_evaluation_answer("<unk> A Chair. ### B") == "a chair."


@pytest.mark.parametrize(
    ("part", "cloud"),
    [
        ({**CLOUD, "point_cloud": "a"}, "a"),
        ({**CLOUD, "path": "a.ply"}, {"path": "a.ply"}),
        ({**CLOUD, "points": [1], "colors": [2]}, {"points": [1], "colors": [2]}),
        ({**CLOUD, "bytes": b"ply", "path": None}, {"bytes": b"ply", "path": None}),
        ({**CLOUD, "point_cloud": None}, None),
        (CLOUD, None),
    ],
)
def test_a_part_may_hold_its_cloud_in_several_ways(part, cloud):
    assert take_clouds([said("user", part)])[1] == [cloud]


def test_clouds_are_taken_in_their_order():
    messages = [said("user", {**CLOUD, "point_cloud": "a"}, text("x"), CLOUD), {"role": "assistant", "content": "y"}]
    plain, clouds = take_clouds(messages, ["b"])
    assert clouds == ["a", "b"] and plain == [said("user", CLOUD, text("x"), CLOUD), said("assistant", text("y"))]
    assert take_clouds(messages)[1] == ["a", None]
    for further, complete, message in (
        (["b", "c"], False, "1 places for point clouds and 2 clouds"),
        ((), True, "1 places for point clouds and 0"),
    ):
        with pytest.raises(ValueError, match=message):
            take_clouds(messages, further, complete)
