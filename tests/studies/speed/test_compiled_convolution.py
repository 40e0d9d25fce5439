"""The benchmark of convolution compares equal outputs of both sides."""

import json
import sys

import pytest
import torch

from studies.speed import compiled_convolution
from tests.errors import raises


def test_both_sides_agree_and_are_printed_as_they_are_written(monkeypatch, capsys, tmp_path):
    pytest.importorskip("spconv")
    output = tmp_path / "rows.json"
    monkeypatch.setattr(sys, "argv", ["x", "--voxels", "400", "--rounds", "1", "--output", str(output)])
    threads = torch.get_num_threads()
    try:
        compiled_convolution.main()
    finally:
        torch.set_num_threads(threads)
    rows, printed = json.loads(output.read_text()), capsys.readouterr().out
    assert [row["layer"] for row in rows] == list(compiled_convolution.LAYERS)
    for row in rows:
        assert row["difference"] < 1e-4 and 100 < row["voxels"] < 1200
        assert f"{row['layer']}  {row['voxels']}  difference" in printed


def test_without_spconv_nothing_is_measured(monkeypatch):
    monkeypatch.setitem(sys.modules, "spconv", None)
    with raises(ImportError, naming="spconv"):
        compiled_convolution.measure(400, 1)
