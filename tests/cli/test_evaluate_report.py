"""`hf-any3d evaluate --report`: what a trained model says of itself, what must be stated, and who reads the file."""

import json

import numpy as np
import pytest

from hf_any3d import ActModel
from hf_any3d.data.fingerprints import model_fingerprint
from hf_any3d.model_card.evaluation_reports import read_report
from tests.cli.conftest import run
from tests.tiny_act import tiny_act

pytestmark = pytest.mark.usefixtures("libraries_as_they_were")

STATED = {"dataset": "pcc13", "random": False}


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A folder with the splits `train` and `test`, and the directory of a PointGST."""
    place = tmp_path_factory.mktemp("trained")
    for split, count in (("train", 4), ("test", 3)):
        for label, scale in (("ball", 1), ("stick", (1, 9, 1))):
            (place / "scans" / split / label).mkdir(parents=True)
            for number in range(count):
                points = np.random.default_rng([number, count]).normal(size=(60, 3)) * scale
                np.save(place / "scans" / split / label / f"{number}.npy", points)
    tiny_act(ActModel).save_pretrained(place / "base")
    words = (
        "train",
        place / "scans",
        "--encoder",
        place / "base",
        "--peft",
        "pointgst",
        "--points",
        48,
        "--epochs",
        1,
    )
    config = json.dumps({"r": 4, "local_size": 4})
    code, _, err = run(*words, "--seed", 5, "--peft", "pointgst", "--peft_config", config, "--output", place / "sound")
    assert code == 0, err
    return place


def evaluate(trained, name, *words, stated=STATED):
    facts = () if stated is None else ("--report-facts", json.dumps(stated))
    return run("evaluate", trained / name, trained / "scans", "--cpu", *facts, *words)


def test_a_report_has_the_figures_and_what_a_trained_model_says_of_itself(trained, tmp_path):
    code, out, err = evaluate(trained, "sound", "--report", tmp_path / "sound.json", "--json")
    assert code == 0, err
    report, metrics = read_report(tmp_path / "sound.json"), json.loads(out)["metrics"]["test"]
    assert report["accuracy"] == metrics["accuracy"] and report["rows"] == 6 and report["dataset"] == "pcc13"
    assert report["model"] == model_fingerprint(trained / "sound") and report["versions"]["peft"]
    assert (report["encoder"], report["method"], report["seed"]) == ("act3d", "pointgst", 5)
    assert report["frozen"] is not None and report["settings"]["r"] == 4


@pytest.mark.parametrize(
    ("stated", "text"),
    [
        (None, "does not say dataset, random; expected them in --report-facts (dataset: the name of a dataset"),
        ({"random": False}, "does not say dataset; expected"),
        (STATED | {"seed": 4}, "--report-facts has seed 4; "),
        (STATED | {"method": "lora"}, "says 'pointgst'"),
        (STATED | {"random": "no"}, "--report-facts has random 'no'; expected true if the encoder had random weights"),
        (STATED | {"epoch": 3}, "--report-facts has epoch 3; expected some of dataset, encoder, method, seed"),
        (STATED | {"dataset": "modelnet40"}, "rows=6; expected 2468, the test clouds of modelnet40"),
        (STATED | {"dataset": "scanobjectnn"}, "rows=6; expected 2882, the test clouds of scanobjectnn pb_t50_rs"),
    ],
)
def test_what_is_not_known_or_cannot_be_is_an_error(trained, tmp_path, stated, text):
    code, out, err = evaluate(trained, "sound", "--report", tmp_path / "report.json", stated=stated)
    assert code == 1 and out == "" and text in err.splitlines()[-1], err
    assert not (tmp_path / "report.json").exists()


def test_a_report_is_about_a_whole_test_split(trained, tmp_path):
    report = ("--report", tmp_path / "report.json")
    for words in ((*report, "--max-samples", 2), (*report, "--split", "train")):
        code, _, err = evaluate(trained, "sound", *words)
        assert code == 1 and "expected a classifier, its split test, and no --max-samples" in err
    code, _, err = evaluate(trained, "sound")
    assert code == 1 and "--report" in err
    words = ("--report-facts", json.dumps(STATED), "--cpu")
    code, _, err = run("evaluate", trained / "sound", trained / "scans" / "train", *report, *words)
    assert code == 1 and "a report is about the split test; evaluated: all" in err
