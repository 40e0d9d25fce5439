import pytest

from hf_any3d.chat.generation import AnswerStreamer
from tests.chat.tiny_tokenizers import byte_tokenizer


@pytest.mark.parametrize(
    ("pieces", "told"),
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
def test_what_may_belong_to_the_end_mark_is_held_back(pieces, told):
    streamer = AnswerStreamer(byte_tokenizer(), "###")
    for piece in pieces:
        streamer.on_finalized_text(piece)
    streamer.on_finalized_text("", stream_end=True)
    assert list(streamer) == told
    assert "".join(told) == "".join(pieces).split("###")[0].strip()
