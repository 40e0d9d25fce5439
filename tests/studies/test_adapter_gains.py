"""The study of gains: the order of its cells, and reports that others have measured."""

import json

import pytest

from hf_any3d.data import load_point_dataset
from studies.adapter_gains import METHODS, cells, read_reports, table
from studies.adapter_runs import NEW_CLASSES
from studies.generated_shapes import CLASSES

REPORT = {
    "dataset": "scanobjectnn",
    "encoder": "act3d",
    "method": "idpt",
    "seed": 0,
    "random": False,
    "selected_on_test": False,
    "settings": {},
    "accuracy": 0.885,
    "rows": 2882,
    "variant": "pb_t50_rs",
    "model": "sha256:0",
    "versions": {"hf-any3d": "1.0"},
}
NONE = REPORT | {"method": "head", "accuracy": 0.8}


def test_cells_are_ordered_by_seed_and_encoder_with_pretrained_weights_first():
    found = list(cells({"packaged": "somewhere", "minilm": "name"}, [0, 1], ["shapes"]))
    assert [seed for *_, run in found if (seed := run.seed)] == [1] * (len(found) // 2)
    first = [(key, is_random, run.method) for key, is_random, run in found[: 2 * len(METHODS)]]
    assert first == [("packaged", is_random, method) for is_random in (False, True) for method in METHODS]
    assert {run.base for key, _, run in found if key == "minilm"} == {None}
    assert not [run for key, _, run in found if key == "minilm" and run.method == "ppt"]
    assert all(run.random_base == is_random for key, is_random, run in found if key == "packaged")


def test_generated_shapes_are_of_classes_that_the_embedded_ones_have_not():
    embedded = load_point_dataset("shapes")["train"].features["label"].names
    assert set(NEW_CLASSES) <= set(CLASSES) - set(embedded)


def test_reports_are_checked_and_shown(tmp_path):
    (tmp_path / "one.json").write_text(json.dumps(REPORT))
    (tmp_path / "none.json").write_text(json.dumps(NONE))
    # Another variant is another data set.
    other = {"variant": "obj_bg", "rows": 581, "accuracy": 0.9}
    (tmp_path / "other.json").write_text(json.dumps(NONE | other))
    found = read_reports(tmp_path)
    assert "| act3d | IDPT | 1 | 88.5 | 87.3 to 89.6 | +8.5 (from 80.0) |  |" in table(found, "scanobjectnn pb_t50_rs")
    assert "| act3d | head only | 1 | 90.0 |" in table(found, "scanobjectnn obj_bg")


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"accuracy": 88.5}, r"two.json: accuracy=88.5; expected a share"),
        ({"dataset": "modelnet40", "rows": 2468, "variant": None}, "dataset='modelnet40'; expected one of scanob"),
        ({"rows": 2881}, "two.json: rows=2881; expected 2882, the test clouds of scanobjectnn pb_t50_rs"),
        ({"variant": "pb"}, "two.json: cannot be used .KeyError: 'pb'"),
        ({"dataset": "pcc13", "variant": None, "rows": 11}, "two.json: rows=11; the other reports on pcc13 have 10"),
        ({"seed": None}, "seed=None"),
        ({"method": "full"}, "two.json: method='full'; expected one of head, lora, "),
        ({"selected_on_test": True}, "two.json: selected_on_test=true; expected a model"),
        ({}, "two.json: repeats scanobjectnn pb_t50_rs, act3d, idpt, 0, False of .*one.json"),
    ],
)
def test_a_report_that_cannot_be_is_refused(tmp_path, change, match):
    (tmp_path / "one.json").write_text(json.dumps(REPORT))
    pcc13 = {"dataset": "pcc13", "variant": None, "rows": 10}
    (tmp_path / "three.json").write_text(json.dumps(REPORT | pcc13 | {"seed": 7}))
    (tmp_path / "two.json").write_text(json.dumps(REPORT | change))
    with pytest.raises(ValueError, match=match):
        read_reports(tmp_path)
