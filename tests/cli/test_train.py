"""`hf-any3d train`: data by folder, file, name or recipe; options of its own and of the training program."""

import json
from importlib import import_module
from types import SimpleNamespace

import numpy as np
import pytest
from datasets import Dataset

from hf_any3d.modeling.pretrained_parts.sources import EncoderUnavailableError
from hf_any3d.registry import MODEL_TYPES
from tests.cli.conftest import run
from tests.tiny_encoders import saved_encoder

train = import_module("hf_any3d.cli.train")
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
    names = list(dict.fromkeys(word.strip("`.,;") for word in shown))
    assert set(names) - {"--help", "--help-all", "--peft", "--max_steps"} == {f"--{name}" for name in OPTIONS}
    assert short.code == long.code == 0 and "--lr_scheduler_type" not in short.out
    for name in ("--lr_scheduler_type", "--peft", "--voting", "--gradient_accumulation_steps"):
        assert name in long.out
    assert "--help" not in long.out.partition("All other options")[2]
    # The options of the short help come first, in its words.
    assert set(names) <= set(long.out.partition("All other options")[0].replace("`", " ").split()) | {"--peft"}
    assert "--scene_votes" in run("train", "--task", "segmentation", "--help-all").out


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


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (("DATA/a.parquet",), ["--train_file", "DATA/a.parquet"]),
        (("DATA",), ["--dataset_name", "parquet", "--data_dir", "DATA"]),
        (("--dataset", "shapes"), ["--dataset_name", "shapes"]),
        (("DATA", "--dataset", "scanobjectnn"), ["--dataset_name", "scanobjectnn", "--data_dir", "DATA"]),
        (("me/scans",), ["--dataset_name", "me/scans"]),
        (("DATA/recipe.yaml",), ["DATA/recipe.yaml"]),
    ],
)
def test_data_become_arguments_of_the_program(words, expected, tmp_path, monkeypatch):
    (tmp_path / "DATA").mkdir()
    Dataset.from_dict({"points": [[[0.0, 0.0, 1.0]]], "label": [0]}).to_parquet(tmp_path / "DATA" / "a.parquet")
    (tmp_path / "DATA" / "recipe.yaml").write_text("num_points: 64\n")
    monkeypatch.chdir(tmp_path)
    given: list[list[str]] = []

    def stop(arguments):
        given.append(arguments)
        raise ValueError("stopped")

    monkeypatch.setattr("hf_any3d.training.tasks.train_classifier", stop)
    assert run("train", *words, "--seed", 3, "--max_steps", 5).err.splitlines()[-1] == "error: stopped"
    first = given[0].index(expected[0])
    assert given[0][first : first + len(expected)] == expected and given[0][-4:] == ["--seed", "3", "--max_steps", "5"]
    # Without a recipe of the user's, that for little data.
    assert (first == 0) == (words[0] == "DATA/recipe.yaml") and given[0][0].endswith(".yaml")


def test_a_folder_of_a_dataset_that_is_not_there_is_named(tmp_path, monkeypatch):
    (tmp_path / "scans").mkdir()
    monkeypatch.chdir(tmp_path)
    code, _, err = run("train", "scnas", "--dataset", "scanobjectnn")
    assert code == 1 and err == "error: no directory scnas; did you mean scans?\n"


def test_datasets_of_labeled_points_are_segmented(monkeypatch):
    given: list[list[str]] = []
    monkeypatch.setattr("hf_any3d.training.tasks.train_segmenter", lambda words: given.append(words) or 1 / 0)
    assert run("train", "rooms", "--augment", "scale,rotate").code == 1
    assert given[0][:2] == ["--dataset_name", "rooms"] and given[0][-3:] == ["--augment", "scale", "rotate"]
    turn = "turn:limit=1,along_axes=True"
    for words in (("rooms", "--augment", "flip", turn), ("--augment", f"flip,{turn}", "rooms")):
        given.clear()
        assert run("train", *words, "--peft", "lora").code == 1
        assert given[0][-5:] == ["--augment", "flip", turn, "--peft", "lora"]


def test_files_with_a_label_for_each_point_are_segmented(tmp_path, monkeypatch):
    given: list[list[str]] = []
    monkeypatch.setattr("hf_any3d.training.tasks.train_segmenter", lambda words: given.append(words) or 1 / 0)
    Dataset.from_dict({"points": [[[0.0, 0.0, 1.0]]], "labels": [[0]]}).to_parquet(tmp_path / "a.parquet")
    for data in (tmp_path, tmp_path / "a.parquet"):
        assert run("train", data, "--output", tmp_path / "run").code == 1
    assert len(given) == 2


def test_a_damaged_table_is_named(tmp_path):
    (tmp_path / "a.parquet").write_bytes(b"PAR1")
    assert run("train", tmp_path / "a.parquet").err.startswith(f"error: {tmp_path / 'a.parquet'}: not Parquet (")


@pytest.mark.parametrize("model_type", [name for name, kind in MODEL_TYPES.items() if kind.is_point_encoder])
def test_any_point_encoder_can_be_trained_further(model_type, tmp_path, monkeypatch):
    given: list[list[str]] = []
    monkeypatch.setattr("hf_any3d.training.tasks.train_classifier", lambda words: given.append(words) or 1 / 0)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": model_type}))
    run("train", "shapes", "--encoder", tmp_path)
    assert given[0][-4:] == ["--model_type", model_type, "--model_name_or_path", str(tmp_path)]


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (("--max-stesp", 3), "no option --max-stesp; did you mean --max_steps? (hf-any3d train --help-all)"),
        (("--max_steps", "three"), "--max_steps/--max-steps: invalid int value: 'three'"),
        (("--validation_fraction", 2), "--validation_fraction 2.0; expected at least 0 and less than 1"),
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


def test_one_scan_a_class_is_learned_without_validation(tmp_path):
    write_clouds(tmp_path / "scans", 3, 1)
    output = ("--output", tmp_path / "out", "--peft", "none", "--dataloader_drop_last", "true")
    with pytest.warns(UserWarning, match="one cloud a class: none is left for validation"):
        code, _, err = run("train", tmp_path / "scans", "--encoder", saved_encoder("bert"), *SMALL, *output)
    assert code == 0, err
    assert json.loads((tmp_path / "out" / "metrics.json").read_text())["data"]["rows"] == {"train": 3}


def test_the_report_says_on_how_many_clouds_an_accuracy_rests(tmp_path):
    write_clouds(tmp_path / "scans", 3, 2)
    # What is no cloud is left out before the training.
    np.save(tmp_path / "scans" / "class 1" / "point.npy", np.ones((1, 3), np.float32))
    (tmp_path / "scans" / "class 1" / "notes.txt").write_text("Scanned on a cloudy day.")
    (tmp_path / "scans" / "nothing").mkdir()
    output = ("--output", tmp_path / "out", "--peft", "none")
    with pytest.warns(UserWarning, match="rests on 1 cloud: it changes in steps of 100 points"):
        code, _, err = run("train", tmp_path / "scans", "--encoder", saved_encoder("bert"), *SMALL, *output)
    assert code == 2 and "1 of 7 files could not be used" in err and "point.npy" in err, err
    assert "notes.txt: text without points" in err and "no point cloud in the folders nothing" in err
    metrics = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert metrics["data"]["validation"].startswith("1 of 6 clouds of the training split")


def test_a_recipe_for_points_is_run_by_the_program_for_points(monkeypatch):
    given = []
    monkeypatch.setattr("hf_any3d.training.tasks.train_segmenter", lambda words: given.append(words) or 1 / 0)
    monkeypatch.setattr("hf_any3d.training.tasks.train_classifier", lambda words: pytest.fail("classifies"))
    run("train", "examples/recipes/rooms.yaml", "--max_steps", 1)
    assert given[0][0] == "examples/recipes/rooms.yaml"


def test_every_short_option_reaches_the_program(tmp_path, monkeypatch):
    given = []

    def stop(arguments):
        given.extend(arguments)
        raise ValueError("stopped")

    monkeypatch.setattr("hf_any3d.training.tasks.train_classifier", stop)
    values = {"learning-rate": 0.5, "epochs": 7, "batch-size": 3, "points": 99, "seed": 5, "output": tmp_path / "o"}
    run("train", "shapes", *(word for name, value in values.items() for word in (f"--{name}", value)))
    named = dict(zip(given, given[1:], strict=False))
    expected = {"learning_rate": "0.5", "num_train_epochs": "7.0", "per_device_train_batch_size": "3"}
    expected |= {"num_points": "99", "seed": "5", "output_dir": str(tmp_path / "o")}
    assert {name: named[f"--{name}"] for name in expected} == expected


TYPE, NAME, PARTS = "--model_type", "--model_name_or_path", ["--num_layers", "1"]


@pytest.mark.parametrize(
    ("given", "is_here", "expected"),
    [
        ([], True, [*PARTS]),
        (["--seed", "1"], True, [*PARTS, "--seed", "1"]),
        (["--num_layers", "3"], True, ["--num_layers", "3"]),
        (["--encoder_name_or_path", "e"], True, ["--encoder_name_or_path", "e"]),
        ([TYPE, "act3d"], True, [TYPE, "act3d"]),
        ([NAME, "m"], True, ["--learning_rate", "1e-3", NAME, "m"]),
        ([NAME, "m", "--learning_rate", "2"], True, [NAME, "m", "--learning_rate", "2"]),
        ([], False, [NAME, "DEFAULT", "--head_epochs", "3", "--learning_rate", "1e-3"]),
        (["--learning_rate", "2"], False, [NAME, "DEFAULT", "--head_epochs", "3", "--learning_rate", "2"]),
        (["--peft", "lora"], False, [*PARTS, "--peft", "lora"]),
    ],
)
def test_settings_for_little_data_come_first_and_those_that_are_given_last(given, is_here, expected, monkeypatch):
    def resolve(name):
        if not is_here:
            raise EncoderUnavailableError(name)

    monkeypatch.setattr("hf_any3d.modeling.pretrained_parts.sources.resolve_encoder", resolve)
    monkeypatch.setattr("hf_any3d.pipelines.default_model", lambda: "DEFAULT")
    recipe, *found = train._with_recipe(given)
    assert recipe.endswith("recipes/base/small_data.yaml") and found == expected


@pytest.mark.parametrize(
    ("encoder", "config", "arguments"),
    [
        (None, {}, []),
        ("bert-base-uncased", {}, ["--encoder_name_or_path", "bert-base-uncased"]),
        ("me/text", {"model_type": "bert"}, ["--encoder_name_or_path", "me/text"]),
        ("me/points", {"model_type": "act3d"}, [TYPE, "act3d", NAME, "me/points"]),
        ("me/away", OSError(), ["--encoder_name_or_path", "me/away"]),
    ],
)
def test_an_encoder_is_frozen_or_a_point_encoder_that_is_trained_further(encoder, config, arguments, monkeypatch):
    def read(name):
        if isinstance(config, OSError):
            raise config
        return config

    monkeypatch.setattr(train, "read_model_config", read)
    assert train._encoder_arguments(encoder) == arguments


@pytest.mark.parametrize("task", list(train.Task))
def test_figures_of_a_training_are_a_line_for_each_split(task, monkeypatch):
    report = SimpleNamespace(
        metrics={"validation": {"accuracy": 0.51239, "epochs": 3, "loss": 1.0}, "test": {}}, data={"rows": {"test": 7}}
    )
    given = []
    for name in (
        "tasks.train_classifier",
        "tasks.train_segmenter",
        "detection.train_detector",
        "layouts.train_layouts",
    ):
        monkeypatch.setattr(
            f"hf_any3d.training.{name}", lambda words, name=name: given.append((name, words)) or report
        )
    assert train._run_program(["--a"], task) == [
        "validation   accuracy 0.5124   loss 1.0000",
        "test            on 7 clouds",
    ]
    program = {"classification": "tasks.train_classifier", "segmentation": "tasks.train_segmenter"}
    program |= {"detection": "detection.train_detector", "layouts": "layouts.train_layouts"}
    assert given == [(program[task.value], ["--a"])]


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (("shapes", "--way", "features", "--task", "segmentation"), "--way features with labels of points"),
        (("shapes", "--way", "both", "--task", "detection"), "--way both with boxes"),
        (("shapes", "--way", "features", "--task", "layouts"), "--way features with boxes"),
        (("r.yaml", "--way", "features"), "--way features with a recipe"),
        (("shapes", "--way", "trained", "--from", "MODEL"), "--from with --way trained"),
        (("shapes", "--way", "both", "--from", "MODEL"), "--from with --way both"),
    ],
)
def test_frozen_features_classify_scans_alone(words, text, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "r.yaml").write_text("num_points: 64\n")
    (tmp_path / "MODEL").mkdir()
    (tmp_path / "MODEL" / "config.json").write_text("{}")
    code, out, err = run("train", *words)
    assert code == 1 and out == "" and err == f"error: {text}; expected scans to classify by frozen features\n"
