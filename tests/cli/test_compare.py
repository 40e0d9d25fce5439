"""`hf-any3d compare`: runs side by side, from trainings, from evaluations, and evaluated on the same scans."""

import csv
import json

import numpy as np
import pytest

from tests.cli.conftest import run
from tests.cli.test_train_few_scans import FASTEST, write_scans

pytestmark = pytest.mark.usefixtures("libraries_as_they_were")


def write_evaluation(path, answers, training=None):
    """Write the JSON of an evaluation on scans of balls, with these answers."""
    scans = []
    for number, answer in enumerate(answers):
        scans.append({"scan": f"{number}.ply", "digest": str(number), "true": "ball", "answer": answer, "score": 0.9})
    accuracy = float(np.mean([answer == "ball" for answer in answers]))
    facts = {
        "model": f"models/{path.stem}",
        "metrics": {"test": {"accuracy": accuracy}},
        "scans": {"test": {"metric": "accuracy", "scans": scans}},
        "training": training or {},
    }
    path.write_text(json.dumps(facts))
    return path


def test_evaluations_are_compared_as_text_json_csv_and_page(tmp_path):
    cost = {"trained_parameters": 1234, "seconds": {"total": 700.0}, "peak_memory": {"process": 5_000_000}}
    first = write_evaluation(tmp_path / "wide.json", ["ball"] * 19 + ["cone"], cost)
    worse = write_evaluation(tmp_path / "<b>.json", ["cone"] * 9 + ["ball"] * 11)
    alike = write_evaluation(tmp_path / "lora.json", ["ball"] * 18 + ["cone"] * 2)
    page = tmp_path / "page.html"
    code, out, err = run("compare", first, worse, alike, "--output", page)
    assert code == 0, err
    heading, head, *rows, one, other, holm = out.splitlines()
    assert heading == "accuracy on 20 scans (test):" and head.split()[-3:] == ["trainable", "time", "memory"]
    assert rows[0].split()[-4:] == ["1,234", "12", "min", "5", "MB"][-4:]
    # Nothing is known of the other trainings.
    assert rows[1].split()[-3:] == ["–"] * 3
    # 9 against 1 of 10: the exact p value is 0.0215, twice as large for two comparisons.
    assert one.startswith("<b> is worse than wide: -40.0 percentage points (95 % interval") and "p = 0.043" in one
    assert "lora and wide do not differ significantly: -5.0 percentage points" in other
    assert "At least 6 scans that only one run gets right are needed to show a difference" in other
    assert "Holm-adjusted for 2 comparisons" in holm
    text = page.read_text()
    assert "<title>wide, &lt;b&gt; and lora compared</title>" in text and "https:" not in text
    code, out, _ = run("compare", first, worse, alike, "--json", "--output", tmp_path / "table.csv")
    facts = json.loads(out)
    assert facts["conclusions"] == [one, other, holm] and facts["runs"][1]["trained_parameters"] is None
    assert len(facts["disagreements"]) == 11
    table = list(csv.DictReader((tmp_path / "table.csv").read_text().splitlines()))
    assert [row["run"] for row in table] == ["wide", "<b>", "lora"] and table[0]["p_value"] == ""


@pytest.mark.slow
def test_trainings_are_compared_on_the_scans_that_they_held_out_and_on_others(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_scans(tmp_path / "scans", 4)
    assert run("train", "scans", *FASTEST).code == 0
    assert run("train", "scans", *FASTEST, "--folds", 2, "--output", "outputs/other").code == 0
    code, out, err = run("compare", "outputs/scans", "outputs/other")
    assert code == 0 and out.startswith("accuracy on 8 scans (cross-validation):"), err
    assert "other and scans do not differ significantly: +0.0 percentage points" in out
    metrics = json.loads((tmp_path / "outputs/scans/metrics.json").read_text())
    trained = f"{metrics['trained_parameters']:,}"
    assert all(trained in row for row in out.splitlines()[2:4])
    new = write_scans(tmp_path / "new", 3, start=50)
    (new / "ball" / "torn.ply").write_text("ply")
    code, out, err = run("compare", "outputs/scans", "outputs/other", "--on", new, "--cpu", "--json")
    facts = json.loads(out)
    assert code == 2 and facts["scans"] == 6 and facts["runs"][0]["seconds"] > 0 and "torn.ply" in err
    (tmp_path / "outputs/other/_scan_scores.json").unlink()
    out = run("compare", "outputs/scans", "outputs/other").out
    assert "No intervals or test: other has no scores of single scans; evaluate all runs on the same" in out


def test_what_cannot_be_compared_is_one_line(tmp_path):
    one = write_evaluation(tmp_path / "one.json", ["ball", "cone"])
    tiles = tmp_path / "tiles.json"
    tiles.write_text(json.dumps({"metrics": {"all": {"mean_iou": 0.5}}}))
    (tmp_path / "empty").mkdir()
    for words, text in (
        ((one,), f"compare needs at least two runs; only {one} was given"),
        ((one, one), "is named twice"),
        ((one, tiles), "expected models of one task"),
        ((one, tmp_path / "empty"), "has no metrics.json"),
        ((one, "me/model"), "me/model: no such file or directory; to compare models on the Hub, add --on DATA"),
        ((one, tiles, "--split", "train"), "has no split 'train'; there are test"),
    ):
        code, out, err = run("compare", *words)
        assert code == 1 and out == "" and text in err, err
