"""The benchmark of chat: its sides give the same answers."""

import pytest

from studies.speed import chat


@pytest.fixture(scope="module")
def chats():
    return chat.Chats(chat.build_pipeline("tiny"), batch=3, new_tokens=8)


def test_batch_and_loop_give_the_same_answers(chats):
    comparison = chats.batches()
    alone, together = (comparison.run(name) for name in ("one by one", "in one batch"))
    assert alone == together and len(alone) == 3
