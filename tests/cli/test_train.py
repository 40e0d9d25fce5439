"""`hf-any3d train`: data by folder, file, name or recipe; options of its own and of the training program."""

import json
from pathlib import Path

import numpy as np
import pytest
from datasets import Dataset

from hf_any3d.modeling.act import ActForPointCloudClassification
from tests.cli.conftest import run
from tests.tiny_act import tiny_act
from tests.tiny_encoders import saved_encoder

pytestmark = pytest.mark.usefixtures("libraries_as_they_were")

OPTIONS = (
    "dataset",
    "encoder",
    "task",
    "way",
    "from",
    "output",
    "epochs",
    "batch-size",
    "learning-rate",
    "points",
    "augment",
    "accept-license",
    "seed",
)
SMALL = ("--points", 32, "--epochs", 1, "--batch-size", 4, "--num_tokens", 4, "--tokenizer_neighbors", 4, "--use_cpu")


@pytest.fixture
def folder(tmp_path):
    """A folder of two classes, with a damaged file."""
    for label, scale in (("ball", 1), ("stick", (1, 9, 1))):
        (tmp_path / "scans" / label).mkdir(parents=True)
        for number in range(5):
            points = np.random.default_rng(number).normal(size=(60, 3)) * scale
            np.save(tmp_path / "scans" / label / f"{number}.npy", points.astype(np.float32))
    (tmp_path / "scans" / "ball" / "bad.ply").write_text("ply\nnothing")
    return tmp_path / "scans"


def test_help_shows_few_options_and_help_all_the_others():
    short, long = run("train", "--help"), run("train", "--help-all")
    shown = [word for line in short.out.splitlines() for word in line.split() if word.startswith("--")]
    names = list(dict.fromkeys(word.strip("`.,;()") for word in shown))
    assert set(names) - {"--help", "--help-all", "--peft", "--max_steps"} == {
        f"--{name}" for name in (*OPTIONS, "up-axis", "overwrite")
    }
    assert short.code == long.code == 0 and "--lr_scheduler_type" not in short.out
    for name in ("--lr_scheduler_type", "--peft", "--voting", "--gradient_accumulation_steps"):
        assert name in long.out
    assert "--help" not in long.out.partition("All other options")[2]
    # The options of the short help come first, in its words.
    assert set(names) <= set(long.out.partition("All other options")[0].replace("`", " ").split()) | {"--peft"}
    assert "--scene_votes" in run("train", "--task", "segmentation", "--help-all").out


@pytest.mark.slow
def test_a_folder_is_learned_and_the_model_predicts(folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, out, err = run("train", "scans", "--encoder", saved_encoder("bert"), *SMALL, "--peft", "none")
    assert out.splitlines()[-1].endswith("try: hf-any3d predict FILE --model outputs/scans"), err
    assert code == 2 and err.splitlines()[-1] == "error: 1 of 11 files could not be used: scans/ball/bad.ply"
    assert "validation" in out and "accuracy" in out
    metrics = json.loads((tmp_path / "outputs" / "scans" / "metrics.json").read_text())
    assert metrics["training"]["epochs"] == 1
    code, out, _ = run("predict", "scans/ball/0.npy", "--model", "outputs/scans", "--json")
    assert code == 0 and {entry["label"] for entry in json.loads(out)[0]["predictions"]} == {"ball", "stick"}


POINTNET = ("--model_type", "pointnet", "--max_steps", 1, "--points", 32, "--use_cpu")


def report(folder="outputs/run") -> dict:
    return json.loads((Path(folder) / "metrics.json").read_text())


def write_tables(folder, **columns):
    """A Parquet file of two classes of clouds, in a folder."""
    folder.mkdir()
    points = np.random.default_rng(0).normal(size=(6, 40, 3)).astype(np.float32)
    rows = {"points": points.tolist(), **(columns or {"label": ["ball", "stick"] * 3})}
    Dataset.from_dict(rows).to_parquet(folder / "a.parquet")


@pytest.mark.parametrize(
    ("words", "named"), [(("DATA", "--dataset", "scanobjectnn"), "DATA"), (("me/scans",), "me/scans")]
)
def test_data_that_are_not_there_are_named(words, named, tmp_path, monkeypatch):
    write_tables(tmp_path / "DATA")
    monkeypatch.chdir(tmp_path)
    code, out, err = run("train", *words, *POINTNET)
    assert code == 1 and out == "" and named in err


def test_a_folder_of_a_dataset_that_is_not_there_is_named(tmp_path, monkeypatch):
    (tmp_path / "scans").mkdir()
    monkeypatch.chdir(tmp_path)
    code, _, err = run("train", "scnas", "--dataset", "scanobjectnn")
    assert code == 1 and err.startswith("error: data_dir is scnas; expected the folder")


@pytest.mark.parametrize(
    "words",
    [("--augment", "scale,rotate:limit=1,axis=z", "rooms"), ("rooms", "--augment", "scale", "rotate:limit=1,axis=z")],
)
def test_datasets_of_labeled_points_are_segmented_with_any_form_of_augmentation(words, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    few = ("--max_train_samples", 2, "--max_eval_samples", 1, "--max_steps", 1, "--peft", "none")
    code, out, err = run("train", *words, "--output", "outputs/run", *few, *SMALL, "--encoder", saved_encoder("bert"))
    assert code == 0 and "try: hf-any3d segment FILE --model outputs/run" in out, err
    assert report()["data"]["augmentation"] == ["scale", "rotate:limit=1,axis=z"]


@pytest.mark.parametrize("data", ["DATA", "DATA/a.parquet"])
def test_files_with_a_label_for_each_point_are_segmented(data, tmp_path, monkeypatch):
    write_tables(tmp_path / "DATA", labels=[[0, 1] * 20] * 6)
    monkeypatch.chdir(tmp_path)
    words = (*SMALL, "--encoder", saved_encoder("bert"), "--max_steps", 1, "--output", "outputs/run")
    code, out, err = run("train", data, *words)
    assert code == 0 and "try: hf-any3d segment FILE" in out, err


def test_a_damaged_table_is_named(tmp_path):
    (tmp_path / "a.parquet").write_bytes(b"PAR1")
    assert run("train", tmp_path / "a.parquet").err.startswith(f"error: {tmp_path / 'a.parquet'}: not Parquet (")


def test_a_point_encoder_is_trained_further(tmp_path, monkeypatch):
    write_tables(tmp_path / "DATA")
    tiny_act(ActForPointCloudClassification).save_pretrained(tmp_path / "encoder")
    monkeypatch.chdir(tmp_path)
    words = ("--output", "outputs/run", "--max_steps", 1, "--points", 64, "--use_cpu")
    code, _, err = run("train", "DATA", "--encoder", "encoder", *words)
    assert code == 0 and report()["start"] == {"model": "encoder", "tuning": "full"}, err
    assert report()["training"]["learning_rate"] == 1e-3  # not that of new weights


@pytest.mark.slow
@pytest.mark.parametrize(
    ("words", "text"),
    [
        (
            ("--max-stesp", 3),
            "no option --max-stesp; did you mean --max_steps? (hf-any3d train --task classification --help-all)",
        ),
        (("--max_steps", "three"), "--max_steps/--max-steps: invalid int value: 'three'"),
        (("--validation_fraction", 2), "--validation_fraction 2.0; expected at least 0 and less than 1"),
        (("--epochs", 5, "--num_train_epochs", 3), "--epochs and --num_train_epochs are the same option"),
    ],
)
def test_wrong_options_are_one_line_before_the_data_are_loaded(words, text):
    code, out, err = run("train", "shapes", *words)
    assert code == 1 and out == "" and text in err and err.count("\n") == 1


def write_clouds(folder, classes, each):
    for label in range(classes):
        (folder / f"class {label}").mkdir(parents=True)
        for number in range(each):
            points = np.random.default_rng(number).normal(size=(60, 3)) * [1, 1 + label, 1]
            np.save(folder / f"class {label}" / f"{number}.npy", points.astype(np.float32))


def test_the_report_says_on_how_many_clouds_an_accuracy_rests(tmp_path):
    write_clouds(tmp_path / "scans", 3, 2)
    # What is no cloud is left out before the training.
    np.save(tmp_path / "scans" / "class 1" / "point.npy", np.ones((1, 3), np.float32))
    (tmp_path / "scans" / "class 1" / "notes.txt").write_text("Scanned on a cloudy day.")
    (tmp_path / "scans" / "nothing").mkdir()
    output = ("--output", tmp_path / "out", "--peft", "none")
    with pytest.warns(UserWarning, match="only 1 validation scan, so validation accuracy can only be 0 % or 100 %"):
        code, _, err = run("train", tmp_path / "scans", "--encoder", saved_encoder("bert"), *SMALL, *output)
    assert code == 2 and "1 of 7 files could not be used" in err and "point.npy" in err, err
    assert "notes.txt: text without points" in err and "without point clouds: nothing" in err
    metrics = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert metrics["data"]["validation"].startswith("1 of 6 clouds of the training split")


def test_every_short_option_reaches_the_training(tmp_path):
    write_tables(tmp_path / "DATA")
    values = {"learning-rate": 0.5, "epochs": 2, "batch-size": 3, "points": 24, "seed": 0, "output": tmp_path / "o"}
    options = [word for name, value in values.items() for word in (f"--{name}", value)]
    code, _, err = run("train", tmp_path / "DATA", *options, "--model_type", "pointnet", "--use_cpu")
    assert code == 0, err
    written = report(tmp_path / "o")
    expected = {"learning_rate": 0.5, "epochs": 2, "batch_size": 3, "seed": 0}
    assert {name: written["training"][name] for name in expected} == expected and written["data"]["points"] == 24


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (
            ("shapes", "--way", "features", "--task", "segmentation"),
            "--way features cannot be combined with labels of points",
        ),
        (("shapes", "--way", "both", "--task", "detection"), "--way both cannot be combined with boxes"),
        (("shapes", "--way", "features", "--task", "layouts"), "--way features cannot be combined with boxes"),
        (("r.yaml", "--way", "features"), "--way features cannot be combined with a recipe"),
        (("shapes", "--way", "trained", "--from", "MODEL"), "--from cannot be combined with --way trained"),
        (("shapes", "--way", "both", "--from", "MODEL"), "--from cannot be combined with --way both"),
    ],
)
def test_frozen_features_classify_scans_alone(words, text, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "r.yaml").write_text("num_points: 64\n")
    (tmp_path / "MODEL").mkdir()
    (tmp_path / "MODEL" / "config.json").write_text("{}")
    code, out, err = run("train", *words)
    assert code == 1 and out == "" and err == f"error: {text}; it classifies scans by frozen features\n"
