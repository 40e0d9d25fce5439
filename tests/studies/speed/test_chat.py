"""The benchmark of chat: its sides give the same answers, and every figure has its row."""

import json
import subprocess
import sys
from contextlib import redirect_stdout
from io import StringIO

import pytest

from studies.speed import _chat_training, chat


@pytest.fixture(scope="module")
def chats():
    return chat.Chats(chat.build_pipeline("tiny"), batch=3, new_tokens=8)


def test_batch_and_loop_give_the_same_answers(chats):
    comparison = chats.batches()
    alone, together = (comparison.run(name) for name in ("one by one", "in one batch"))
    assert alone == together and len(alone) == 3


@pytest.fixture
def in_this_process(monkeypatch):
    """Run programs that the benchmark starts in this process, which has imported everything."""

    def run(words, **options):
        with monkeypatch.context() as patched, redirect_stdout(StringIO()) as printed:
            patched.setattr(sys, "argv", words[2:])
            _chat_training.main()
        return subprocess.CompletedProcess(words, 0, printed.getvalue(), "")

    monkeypatch.setattr(chat.subprocess, "run", run)


def test_every_figure_is_printed_and_written(in_this_process, tmp_path, capsys):
    output = tmp_path / "chat.json"
    chat.main(["--preset", "tiny", "--batch", "2", "--new-tokens", "4", "--rounds", "1", "--output", str(output)])
    result = json.loads(output.read_text())
    assert [row["side"] for row in result["rows"] if row["times"] == 1.0].count("bare language model") == 2
    assert all(row["cpu_s"] > 0 and row["wall_s"] > 0 for row in result["rows"])
    assert [row["checkpointing"] for row in result["training"]] == [False, True]
    printed = capsys.readouterr().out
    assert all(f"| {row['comparison']} | {row['side']} |" in printed for row in result["rows"])
    assert "| plain |" in printed and "| checkpointed |" in printed
