"""The benchmark of conversations: what its sides do is the same, and every figure has its row."""

import json

import pytest

from tests.examples.conftest import EXAMPLES, imported_beside_others


@pytest.fixture(scope="module")
def bench():
    with imported_beside_others("chat", EXAMPLES / "benchmarks") as module:
        yield module


@pytest.fixture(scope="module")
def chats(bench):
    return bench.Chats(bench.build_pipeline("tiny"), batch=3, new_tokens=8)


def test_a_batch_says_what_a_loop_says(chats):
    comparison = chats.batches()
    alone, together = (comparison.run(name)[0] for name in ("one by one", "in one batch"))
    assert alone == together and len(alone) == 3


def test_both_language_models_say_as_much(chats):
    for batch in (1, 3):
        comparison = chats.tokens(batch)
        sizes = {comparison.run(name)[0].shape for name in comparison.sides}
        assert len(sizes) == 1 and sizes.pop()[0] == batch


@pytest.mark.parametrize("last", [1, 8])
def test_whatever_is_kept_the_answer_is_the_same(chats, last):
    comparison = chats.turns(last)
    assert len({comparison.run(name)[0] for name in comparison.sides}) == 1 and len(comparison.sides) == 3


def test_checkpointing_saves_memory():
    with imported_beside_others("_chat_training", EXAMPLES / "benchmarks") as training:
        saved = {checkpointing: saved_by_a_step(training, checkpointing) for checkpointing in (False, True)}
    assert saved[True] < 0.5 * saved[False]


def saved_by_a_step(training, checkpointing):
    model = training.prepared("tiny", checkpointing)
    inputs = training.batch_for(model, 2, 64)
    return training.saved_bytes(lambda: model(**inputs).loss, training.storages(model))


def test_some_comparisons_may_be_chosen(bench, capsys):
    bench.main(["--preset", "tiny", "--only", "parts", "--batch", "1", "--new-tokens", "2", "--rounds", "1"])
    printed = capsys.readouterr().out
    assert printed.count("| parts of one caption |") == 4 and "bare language model" not in printed


@pytest.mark.slow
def test_every_figure_is_printed_and_written(bench, tmp_path, capsys):
    output = tmp_path / "chat.json"
    bench.main(["--preset", "tiny", "--batch", "2", "--new-tokens", "4", "--rounds", "1", "--output", str(output)])
    told = json.loads(output.read_text())
    assert [row["side"] for row in told["rows"] if row["times"] == 1.0].count("bare language model") == 2
    assert all(row["cpu_s"] > 0 and row["wall_s"] > 0 for row in told["rows"])
    assert [row["checkpointing"] for row in told["training"]] == [False, True]
    printed = capsys.readouterr().out
    assert all(f"| {row['comparison']} | {row['side']} |" in printed for row in told["rows"])
    assert "| plain |" in printed and "| checkpointed |" in printed
