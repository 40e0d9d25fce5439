"""Every option of `hf-any3d evaluate` reaches the evaluation, and its figures are printed and written."""

import json
from importlib import import_module
from pathlib import Path

import pytest
from datasets import Dataset, DatasetDict

from hf_any3d.training.saved_models import EVALUATIONS
from tests.cli.conftest import run

module = import_module("hf_any3d.cli.evaluate")
pytestmark = pytest.mark.usefixtures("libraries_as_they_were")

METRICS = {"accuracy": 0.75, "loss": 1.5}


@pytest.fixture
def asked(monkeypatch, tmp_path):
    """What the evaluation of a classifier is asked for; data are five rows without a point."""
    asked, rows = [], Dataset.from_dict({"n": range(5)})

    def evaluate(model, some, split, settings):
        asked.append((model, some["n"][:], split, settings))
        return {split: METRICS, f"{split}_voting": {"accuracy": 0.5}}, {split: {"ball": 0.25, "stick": 1.0}}

    def load(name, **given):
        asked.append((name, given))
        return rows

    def load_splits(data, needs_train):
        asked.append((data.dataset_name, data.validation_fraction, data.dataset_options, needs_train))
        return DatasetDict({name: rows for name in splits}), "said"

    splits = ["train", "test"]
    monkeypatch.setattr(module, "_check_kind", lambda model: (f"found {model}", "predict"))
    monkeypatch.setitem(EVALUATIONS, "predict", evaluate)
    monkeypatch.setattr("hf_any3d.data.load_point_dataset", load)
    monkeypatch.setattr("hf_any3d.training.program.load_splits", load_splits)
    monkeypatch.setattr("hf_any3d.training.protocol.apply_protocol", lambda given, said, protocol: (given, said))
    monkeypatch.chdir(tmp_path)
    asked.append(splits)
    return asked


FACTS = {
    "metrics": {"test": METRICS, "test_voting": {"accuracy": 0.5}},
    "class_accuracy": {"test": {"ball": 0.25, "stick": 1.0}},
}
LINES = ["test         accuracy 75.00 %   loss 1.5000", "test_voting  accuracy 50.00 %"]
CSV = "split,accuracy,loss,accuracy of ball,accuracy of stick\ntest,0.75,1.5,0.25,1.0\ntest_voting,0.5,,,\n"


def test_a_dataset_of_the_catalog_is_evaluated_on_its_test_split(asked, tmp_path):
    code, out, err = run("evaluate", "m", "shapes")
    assert code == 0 and out.splitlines() == LINES, err
    _, loaded, (model, rows, split, settings) = asked
    assert loaded == ("shapes", {"data_dir": None, "split": "test"})
    assert (model, rows, split) == ("found m", [0, 1, 2, 3, 4], "test")
    assert (settings.batch_size, settings.seed, settings.use_cpu) == (None, 0, False)
    assert (settings.protocol.voting, settings.protocol.vote_augment) == (0, None)
    options = ("--options", '{"num_rows": 3}', "--split", "train", "--batch-size", 4, "--max-samples", 2, "--seed", 5)
    votes = ("--voting", 6, "--vote-augment", "scale", "--vote-augment", "jitter", "--cpu")
    code, out, _ = run("evaluate", "m", "--dataset", "shapes", *options, *votes, "--json")
    loaded, (model, rows, split, settings) = asked[3:]
    assert loaded == ("shapes", {"data_dir": None, "split": "train", "num_rows": 3})
    assert (rows, split) == ([0, 1], "train") and settings.data.dataset_options == {"num_rows": 3}
    assert (settings.batch_size, settings.seed, settings.use_cpu) == (4, 5, True)
    assert (settings.protocol.voting, settings.protocol.vote_augment) == (6, ["scale", "jitter"])
    assert json.loads(out) == json.loads(json.dumps(FACTS).replace("test", "train"))
    folder = ("evaluate", "m", "--dataset", "scanobjectnn", "--data-dir", tmp_path, "--max-samples", 9)
    assert run(*folder, "--csv").out == CSV
    assert asked[5] == ("scanobjectnn", {"data_dir": str(tmp_path), "split": "test"}) and len(asked[6][1]) == 5


@pytest.mark.parametrize(
    ("words", "splits", "split", "fraction", "options"),
    [
        (("scans",), ["train", "test"], "test", 0, {"on_error": "skip"}),
        (("scans",), ["only"], "only", 0, {"on_error": "skip"}),
        (("scans", "--split", "train"), ["train", "test"], "train", 0, {"on_error": "skip"}),
        (("scans", "--options", '{"on_error": "raise"}'), ["test"], "test", 0, {"on_error": "raise"}),
        (("a.parquet",), ["train"], "all", 0, {}),
        (("--dataset", "parquet", "--data-dir", "scans"), ["test"], "test", 0, {}),
        (("--recipe", "r.yaml"), ["train", "test"], "test", 0.5, {}),
        (("--recipe", "r.yaml", "--data-dir", "scans"), ["validation"], "validation", 0.5, {}),
    ],
)
def test_splits_of_own_data_are_those_of_a_training(words, splits, split, fraction, options, asked, tmp_path):
    asked[0][:] = splits
    (tmp_path / "scans").mkdir()
    Dataset.from_dict({"points": [[[0.0, 0, 0]]], "label": [0]}).to_parquet(tmp_path / "a.parquet")
    (tmp_path / "r.yaml").write_text("dataset_name: shapes\nvalidation_fraction: 0.5\nlearning_rate: 1\n")
    code, out, err = run("evaluate", "m", *words)
    assert code == 0 and out.startswith(f"{split} "), err
    _, (_, *loaded), (_, rows, found, _) = asked
    assert loaded == [fraction, options, False] and found == split and rows == [0, 1, 2, 3, 4]
    source = words[-1] if words[0] == "--dataset" else "r.yaml" if words[0] == "--recipe" else words[0]
    code, _, err = run("evaluate", "m", *words[: 2 if words[0] == "--recipe" else None], "--split", "none")
    assert (
        code == 1
        and f"{source}: its data has no split 'none'; there are {', '.join(splits)}" in err
        or ("--split" in words)
    )


def test_figures_are_written_where_the_options_say(asked, tmp_path):
    for name in ("a.json", "b.csv"):
        assert run("evaluate", "m", "shapes", "--output", tmp_path / "new" / name).out.splitlines() == LINES
    assert json.loads((tmp_path / "new" / "a.json").read_text()) == FACTS
    assert (tmp_path / "new" / "b.csv").read_text() == CSV
    refused = run("evaluate", "m", "shapes", "--output", tmp_path / "c.html")
    assert refused.code == 1 and "expected one of .json, .csv" in refused.err
    assert "expected one of them" in run("evaluate", "m", "shapes", "--json", "--csv").err
    both = run("evaluate", "m", "scans", "--data-dir", "other")
    assert both.err == "error: DATA is 'scans' and --data-dir 'other'; expected one of them\n"
    for words in ((), ("shapes", "--recipe", "r.yaml"), ("--dataset", "shapes", "--recipe", "r.yaml")):
        assert "give either DATA or --recipe, which names its data" in run("evaluate", "m", *words).err


@pytest.mark.parametrize(
    ("words", "folder", "lines"),
    [
        ((), "robustness", ["a table", "of two lines"]),
        (("--output-dir", "there"), "there", ["a table", "of two lines"]),
        (("--json",), "robustness", None),
        (("--csv",), "robustness", None),
    ],
)
@pytest.mark.parametrize("is_here", [True, False])
def test_robustness_is_judged_on_the_same_rows_and_written_beside_the_model(
    is_here, words, folder, lines, asked, tmp_path, monkeypatch
):
    judged, place = [], "found m" if is_here and words[:1] != ("--output-dir",) else folder
    if is_here:
        (tmp_path / "found m").mkdir()

    def judge(model, rows, split, settings, clean, folder):
        judged.append((model, rows["n"][:], split, settings.seed, clean, folder))
        return {"summary": 1}

    monkeypatch.setattr("hf_any3d.research.robustness.evaluate_robustness", judge)
    monkeypatch.setattr("hf_any3d.research.robustness.robustness_table", lambda report: "a table\nof two lines")
    monkeypatch.setattr(
        "hf_any3d.research.robustness.write_robustness",
        lambda report, folder: ([folder / "a.md", folder / "b.png"], [f"remark on {report['summary']}"]),
    )
    code, out, err = run("evaluate", "m", "shapes", "--robustness", "--max-samples", 3, "--seed", 2, *words)
    assert code == 0, err
    assert judged == [("found m", [0, 1, 2], "test", 2, METRICS, Path(place))]
    assert err.splitlines()[-2:] == [f"written: {place}/a.md, {place}/b.png", "remark on 1"]
    if lines is not None:
        assert out.splitlines() == [*LINES, *lines]
    elif words == ("--json",):
        assert json.loads(out) == FACTS | {"robustness": {"summary": 1}}
    else:
        assert out == CSV


def test_a_report_has_the_facts_of_the_model_and_of_its_data(asked, tmp_path, monkeypatch):
    reports = "hf_any3d.research.evaluation_reports"
    monkeypatch.setattr(f"{reports}.known_facts", lambda *given: asked.append(given) or "known")
    monkeypatch.setattr(f"{reports}.evaluation_report", lambda *given: {"given": list(given)})
    Dataset.from_dict({"points": [[[0.0, 0, 0]]], "label": [0]}).to_parquet(tmp_path / "a.parquet")
    asked[0][:] = ["test"]
    for words, source, options in (
        (("shapes", "--options", '{"num_rows": 3}'), "shapes", {"num_rows": 3}),
        (("a.parquet", "--split", "test"), "parquet", {}),
    ):
        output = tmp_path / "report.json"
        code, _, err = run("evaluate", "m", *words, "--report", output, "--report-facts", '{"seed": 4}')
        assert code == 0, err
        assert ("found m", source, {"seed": 4}) in asked
        given = ["found m", "known", options, FACTS["metrics"], 5]
        assert json.loads(output.read_text()) == {"given": given}
    code, _, err = run("evaluate", "m", "shapes", "--report", tmp_path / "other.json")
    assert code == 0 and ("found m", "shapes", {}) in asked, err


@pytest.mark.parametrize(
    ("command", "words", "text"),
    [
        ("segment", ("--voting", 2), "--voting: found m is not a classifier; --voting is only for classifiers"),
        ("segment", ("--robustness",), "--robustness: found m is not a classifier"),
        ("reconstruct", ("--report", "r.json"), "--report r.json: expected a classifier, its split test, and no "),
        ("predict", ("--report", "r.json", "--max-samples", 2), "--report r.json: expected a classifier, its split"),
        ("predict", ("--report", "r.json", "--split", "train"), "--report r.json: expected a classifier, its split"),
        ("predict", ("--report-facts", "{}"), "--report-facts is '{}'; expected --report too, which has them"),
    ],
)
def test_options_of_classifiers_alone_are_refused(command, words, text, asked, monkeypatch):
    monkeypatch.setattr(module, "_check_kind", lambda model: (f"found {model}", command))
    code, out, err = run("evaluate", "m", "shapes", *words)
    assert code == 1 and out == "" and text in err and len(asked) == 1
    monkeypatch.setitem(EVALUATIONS, "segment", EVALUATIONS["predict"])
    assert run("evaluate", "m", "shapes", "--voting", 0).code == (command == "reconstruct")


@pytest.mark.parametrize(
    ("config", "kind", "text"),
    [
        (
            {"model_type": "act3d"},
            ("an encoder", "features"),
            "; train one from it: hf-any3d train DATA --encoder at m",
        ),
        ({"model_type": "pointnet"}, ("an encoder", "features"), "whose answers have figures$"),
        ({}, ("a chat model", "chat"), "this is a chat model: hf-any3d evaluate minigpt3d at m$"),
        ({}, None, "predict"),
        ({}, ("a segmentation model", "segment"), "segment"),
    ],
)
def test_models_without_figures_are_refused_with_what_to_do_instead(config, kind, text, monkeypatch):
    asked = []
    monkeypatch.setattr(module, "check_model", lambda *given: asked.append(given) or f"at {given[0]}")
    monkeypatch.setattr(module, "read_model_config", lambda model: config)
    monkeypatch.setattr(module, "kind_of_model", lambda given: kind if given is config else None)
    if " " not in text:
        assert module._check_kind("m") == ("at m", text)
        assert asked == [("m", "predict", "segment", "zero-shot", "reconstruct", "chat", "features")]
        return
    with pytest.raises(ValueError, match=text):
        module._check_kind("m")


@pytest.mark.parametrize("is_json", [True, False])
def test_options_of_a_chat_evaluation_reach_its_answers_and_its_judge(is_json, tmp_path, monkeypatch):
    asked = {}

    def keep(name, answer=None):
        def kept(*given):
            asked[name] = given
            return answer

        return kept

    monkeypatch.setattr("hf_any3d.evaluation.find_protocol", lambda name: f"protocol {name}")
    monkeypatch.setattr("hf_any3d.evaluation.PROTOCOLS", ("one", "two"))
    monkeypatch.setattr("hf_any3d.evaluation.answer_protocols", keep("answered"))
    monkeypatch.setattr("hf_any3d.evaluation.judge_protocols", keep("judged", {"a": {"b": 1}}))
    monkeypatch.setattr("hf_any3d.evaluation.chat_evaluation.open_model", keep("opened", ("generate", "about")))
    monkeypatch.setattr(module, "_open_judge", keep("judge", "chosen"))
    monkeypatch.setattr(module, "_read_prompts", lambda given: f"prompts {given}")
    monkeypatch.setattr(module, "_loader", lambda *given: given)
    monkeypatch.setattr(module, "_table", lambda summary: [f"table of {summary}"])
    from hf_any3d.data.catalog.modelnet40_generative import DATASET

    classes, encoders = (
        DATASET.class_names,
        ("sentence-transformers/all-mpnet-base-v2", "princeton-nlp/sup-simcse-roberta-large"),
    )
    shown = ("--json",) if is_json else ()
    code, out, err = run("evaluate", "minigpt3d", *shown)
    assert code == 0 and (json.loads(out) == {"a": {"b": 1}} if is_json else out == "table of {'a': {'b': 1}}\n"), err
    assert asked.keys() == {"judge", "judged"}
    assert asked["judge"] == (None, None, None, "https://api.openai.com/v1", "OPENAI_API_KEY", {}, None, classes)
    usual = dict(zip(("sentence_encoder", "simcse"), encoders, strict=True))
    protocols = ["protocol one", "protocol two"]
    assert asked["judged"] == (protocols, Path("minigpt3d-evaluation"), "chosen", classes, "prompts []", usual, 0)
    words = ("--output-dir", tmp_path, "--protocol", "x", "--protocol", "x", "--protocol", "y", "--data-dir", "d")
    words += ("--options", '{"a": 1}', "--revision", "v1", "--generation", '{"b": 2}', "--batch-size", 3)
    words += ("--max-samples", 4, "--judge", "local", "--judge-model", "j", "--judge-revision", "v2")
    words += ("--judge-url", "u", "--judge-key-variable", "KEY", "--judge-settings", '{"c": 3}')
    words += ("--judge-prompt", "class=a.txt", "--device", "cpu", "--seed", 5)
    assert run("evaluate", "minigpt3d", "m", *words, "--sentence-encoder", "s", "--simcse", "t").code == 0
    assert asked["opened"] == ("m", "v1", "cpu")
    protocols = ["protocol x", "protocol y"]
    loaded = ("d", {"a": 1}, 4)
    assert asked["answered"] == (protocols, loaded, "generate", tmp_path, "about", {"b": 2}, 3, 5)
    assert asked["judge"] == ("local", "j", "v2", "u", "KEY", {"c": 3}, "cpu", classes)
    named = {"sentence_encoder": "s", "simcse": "t"}
    assert asked["judged"] == (protocols, tmp_path, "chosen", classes, "prompts ['class=a.txt']", named, 5)
    assert run("evaluate", "minigpt3d", "--no-metrics").code == 0 and asked["judged"][5] is None
