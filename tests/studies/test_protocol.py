"""The protocol of all methods: its cells train, its folds are fair, and its page says what the rows say."""

import json

import numpy as np
import pytest
import torch

from studies import protocol
from studies.protocol import METHODS, Cell, Shapes


@pytest.fixture(scope="module")
def shapes():
    generator = torch.Generator().manual_seed(0)
    return Shapes(torch.rand(20, 64, 3, generator=generator) - 0.5, np.arange(20) % 2)


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
def test_each_method_trains_a_cell_from_a_start(method, shapes):
    row = protocol.run(
        Cell("some", "packaged encoder", method, 0, 1), shapes, protocol.encoder_of("packaged encoder", None), 1
    )
    assert len(row["correct"]) == len(row["tested"]) == 4 and row["steps"] == 1
    assert (row["trained"] > 300_000) == (method == "full")
    assert (row["saved_bytes"] < 100_000) == (method == "linear")


def test_each_shape_is_tested_once_a_seed_with_as_many_of_each_class():
    labels = np.repeat(np.arange(3), 10)
    folds = [protocol.fold_of(labels, seed) for seed in (0, 1)]
    for fold in folds:
        assert all((np.bincount(fold[labels == label]) == 2).all() for label in range(3))
    assert (folds[0] != folds[1]).any()


def rows(*answers: tuple[str, str]) -> list[dict]:
    """Return a row of ten shapes for each method and its answers."""
    about = {
        "shapes": "some",
        "start": "random",
        "seed": 0,
        "fold": 0,
        "tested": list(range(10)),
        "labels": [0, 1] * 5,
    }
    costs = {"trained": 1, "cpu_seconds": 1.0, "saved_bytes": 1}
    return [about | costs | {"method": method, "correct": correct} for method, correct in answers]


def test_the_page_tells_what_differs_from_what_does_not(tmp_path):
    settings = {"epochs": 1, "points": 64, "most": 5, "machine": "a machine"}
    file = tmp_path / "rows.jsonl"
    found = rows(("linear", "0000000000"), ("LoRA", "1111111111"), ("full", "1111111110"))
    # An interrupted run may leave half of a line.
    file.write_text("\n".join([json.dumps(settings), *map(json.dumps, found), '{"shapes": "so']))
    text = protocol.page(*protocol.read_rows(file))
    assert "| LoRA | 100.0 (100.0 to 100.0) | 100.0 | +100.0 (+100.0 to +100.0) |" in text
    assert "LoRA has the highest mean. The difference to full is not significant (" in text
    assert "1 of 15 divisions" in text
