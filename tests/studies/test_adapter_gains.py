"""The study of gains: the order of its cells, its budget, and reports that others have measured."""

import json

import pytest

from hf_any3d import ActModel
from studies import adapter_gains
from studies.adapter_gains import METHODS, cells, read_reports, table
from studies.adapter_runs import build_model
from tests.studies.test_adapters import tiny_run
from tests.tiny_act import tiny_act

REPORT = {
    "dataset": "scanobjectnn",
    "encoder": "act",
    "method": "idpt",
    "seed": 0,
    "random": False,
    "accuracy": 0.885,
    "rows": 2882,
}


def test_cells_are_ordered_by_seed_and_encoder_with_pretrained_weights_first():
    found = list(cells({"packaged": "somewhere", "minilm": "name"}, [0, 1], 6))
    assert [seed for *_, run in found if (seed := run.seed)] == [1] * (len(found) // 2)
    first = [(key, is_random, run.method) for key, is_random, run in found[: 2 * len(METHODS)]]
    assert first == [("packaged", is_random, method) for is_random in (False, True) for method in METHODS]
    assert {run.base for key, _, run in found if key == "minilm"} == {None}
    assert not [run for key, _, run in found if key == "minilm" and run.method == "ppt"]
    assert all(run.random_base == is_random for key, is_random, run in found if key == "packaged")


def test_the_budget_ends_the_runs_and_a_later_call_goes_on(monkeypatch, tmp_path, capsys):
    done = []

    def work(run):
        done.append(run.method)
        return {"accuracy": 0.5 + 0.1 * len(done), "rows": 4, "trained_parameters": 3, "cpu_seconds": 40.0}

    monkeypatch.setattr(adapter_gains, "train_and_measure", work)
    words = ["--encoder", "packaged", "here", "--seeds", "0", "--output-dir", str(tmp_path)]
    adapter_gains.main([*words, "--cpu-minutes", "1"])
    assert done == ["head", "lora"]
    shown = capsys.readouterr().out
    assert "| packaged | LoRA | 1 | 70.0 | +10.0 |  |" in shown and "| packaged | IDPT |  |  |  |  |" in shown
    adapter_gains.main([*words, "--cpu-minutes", "0.5"])
    assert done == ["head", "lora", "pointgst"]
    adapter_gains.main([*words, "--table-only"])
    assert done == ["head", "lora", "pointgst"]


def test_random_weights_are_not_those_of_the_encoder(tmp_path):
    tiny_act(ActModel).save_pretrained(tmp_path)
    runs = {}
    for is_random in (False, True):
        run = tiny_run("head", "unused", base=str(tmp_path), model={}, random_base=is_random)
        model = build_model(run, ["ball", "box"])
        runs[is_random] = model.act.norm.weight.sum() + model.act.blocks.layers[0].mlp.fc1.weight.sum()
    assert runs[True] != runs[False]


def test_reports_are_checked_and_shown(tmp_path):
    (tmp_path / "one.json").write_text(json.dumps(REPORT))
    (tmp_path / "none.json").write_text(json.dumps(REPORT | {"method": "head", "accuracy": 0.8}))
    shown = table(read_reports(tmp_path), "scanobjectnn")
    assert "| act | IDPT | 1 | 88.5 | +8.5 |  |" in shown


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"accuracy": 88.5}, r"two.json: accuracy=88.5; expected the fields"),
        ({"dataset": "modelnet40"}, "dataset='modelnet40'"),
        ({"seed": None}, "seed=None"),
        ({"method": "full"}, "method='full'"),
    ],
)
def test_a_report_that_cannot_be_is_refused(tmp_path, change, match):
    (tmp_path / "two.json").write_text(json.dumps(REPORT | change))
    with pytest.raises(ValueError, match=match):
        read_reports(tmp_path)
