"""Errors: one line, before anything heavy is imported, with a suggestion where there is one."""

import os
import re
from itertools import chain
from pathlib import Path

import pytest

import hf_any3d
from hf_any3d.data.files import supported_file_types
from hf_any3d.integration.registration import MODELS
from tests.cli.conftest import FILES, run

pytestmark = pytest.mark.usefixtures("libraries_as_they_were")


MODEL = str(Path(hf_any3d.__file__).parent / "default_model")


def error_of(*words) -> str:
    code, out, err = run(*words)
    assert code in (1, 2) and out == "" and err.startswith("error: ") and err.count("\n") == 1, (code, out, err)
    return err.removeprefix("error: ").rstrip("\n")


@pytest.fixture
def outputs(tmp_path, monkeypatch, models):
    """A working directory with a model in outputs/typ."""
    (tmp_path / "outputs").mkdir()
    os.symlink(models("chat"), tmp_path / "outputs" / "typ")
    monkeypatch.chdir(tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize(
    "words",
    [
        ("info",),
        ("export", "--output", "a.onnx"),
        ("evaluate", "--dataset", "shapes"),
        ("predict", FILES / "chair.ply", "--model"),
        ("segment", FILES / "chair.ply", "--model"),
        ("zero-shot", FILES / "chair.ply", "--labels", "a,b", "--model"),
        ("features", FILES / "chair.ply", "--model"),
        ("reconstruct", FILES / "chair.ply", "--model"),
        ("features", FILES / "chair.ply", "--output", "a.csv", "--resume", "--model"),
        ("space", "--output", "here"),
        ("train", "shapes", "--encoder"),
    ],
)
def test_a_name_that_looks_like_a_path_never_reaches_the_hub(outputs, words, hub):
    # The local hub would answer the name, so an error without it shows that it was not asked.
    hub.commit("outputs/typo", {"config.json": b"{}"})
    words = (
        (words[0], "outputs/typo", *words[1:])
        if words[-1] not in ("--model", "--encoder")
        else (*words, "outputs/typo")
    )
    assert error_of(*words) == "outputs/typo: no such directory; did you mean outputs/typ?"


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", ["typo", "./me/model", "me/model/part", "/nowhere/model", "outputs/zzz", "~nobody/model", "runs/a"]
)
def test_names_that_cannot_be_on_the_hub_are_not_looked_up(outputs, name):
    reason = ", and not looked up on the Hub, where names are owner/name; pass a directory or owner/name"
    assert error_of("info", name) == f"{name}: no such directory{reason if name == 'typo' else ''}"


@pytest.mark.slow
@pytest.mark.parametrize("file_type", supported_file_types())
def test_a_missing_file_of_any_type_is_named(outputs, file_type):
    name = f"nothere.{file_type}"
    assert error_of("predict", name, "x") == f"{name}: no such file or folder"
    assert error_of("predict", FILES / "chair.ply", "--model", name).startswith(f"{name}: no such file")


def test_the_command_line_knows_every_registered_type():
    from hf_any3d.cli.opening import FoundModel

    for base, heads in MODELS.values():
        for model in (base, *chain(*heads.values())):
            config = {"model_type": model.config_class.model_type, "architectures": [model.__name__]}
            found = FoundModel(model.__name__)
            found.__dict__["config"] = config  # as if it were read
            assert found.task is not None, model


def test_a_folder_around_a_model_suggests_the_model(outputs):
    assert (
        error_of("info", "outputs")
        == "outputs: no model in this directory; it has no config.json; did you mean outputs/typ?"
    )


def test_a_model_on_the_hub_that_does_not_exist_is_named():
    assert error_of("info", "me/absent-model").startswith(
        "me/absent-model: no such directory, and no such model on the Hub"
    )


@pytest.mark.slow
def test_a_repository_or_revision_without_a_model_is_named(hub):
    hub.commit("me/no-model", {"README.md": b"notes"})
    assert error_of("info", "me/no-model") == "me/no-model: this repository has no config.json, so it is not a model"
    hub.commit("me/one-revision", {"config.json": b"{}"})
    message = "me/one-revision: no revision v2 on the Hub"
    assert error_of("info", "me/one-revision", "--revision", "v2") == message


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "words", "text"),
    [
        ("chat", ("predict", FILES / "chair.ply", "--model"), "is a chat model; use hf-any3d chat"),
        ("classifier", ("chat",), "is a classifier; use hf-any3d predict"),
        ("parts", ("reconstruct", FILES / "chair.ply", "--model"), "is a segmentation model; use hf-any3d segment"),
        ("zero-shot", ("predict", FILES / "chair.ply", "--model"), "a zero-shot classifier; use hf-any3d zero-shot"),
        ("autoencoder", ("features", FILES / "chair.ply", "--model"), "is an autoencoder; use hf-any3d reconstruct"),
    ],
)
def test_a_model_of_another_kind_is_named_with_its_command(models, kind, words, text):
    words = (*words, models(kind)) if words[-1] == "--model" else (*words, models(kind), FILES / "chair.ply")
    assert text in error_of(*words)


@pytest.mark.parametrize(
    ("words", "name"),
    [
        (("segment",), "facebook/sonata:scannet indoor rooms CC-BY-NC-4.0 *"),
        (("detect",), "manycore-research/SpatialLM1.1-Qwen-0.5B indoor rooms"),
        (("zero-shot", "--labels", "a"), "BAAI/Uni3D:tiny"),
        (("reconstruct",), "torch-pointcloud/point-bert-base.dvae.xumin-yu MIT"),
    ],
)
def test_without_a_model_published_ones_are_offered(words, name):
    code, out, err = run(*words, FILES / "chair.ply")
    first, *others = err.splitlines()
    assert (code, out) == (1, "") and first.endswith("choose a model with --model (a directory or a Hub name)")
    assert ("--labels needs a zero-shot model" in first) == (words[0] == "zero-shot")
    assert any(" ".join(line.split()).startswith(name) for line in others), err
    if words[0] != "reconstruct":
        # Name, what it is for, and license
        rows = [line.strip() for line in others[1:] if "variants:" not in line]
        assert all(len(re.split(r" {2,}", row)) == 3 for row in rows), err


@pytest.mark.parametrize(
    "words",
    [
        ("detect", FILES / "chair.ply", "--task", "all", "--model", "manycore-research/SpatialLM1.1-Qwen-0.5B"),
        ("predict", FILES / "chair.ply", "--model", "facebook/sonata:scannet"),
        ("chat", "YuanTang96/MiniGPT-3D", FILES / "chair.ply"),
        ("info", "Pointcept/Utonia:base"),
        ("evaluate", "facebook/sonata:scannet", FILES),
        ("train", "shapes", "--encoder", "Pointcept/Concerto:small", "--epochs", 1),
        ("convert", "facebook/sonata:base"),
    ],
)
def test_a_license_is_asked_for_in_words_of_the_command_line(words):
    code, _, err = run(*words)
    assert code == 1 and "accept it once with --accept-license, or set" in err, err


@pytest.mark.slow
@pytest.mark.parametrize(
    ("words", "text"),
    [
        (("predcit",), "no such command predcit; did you mean predict? (hf-any3d --help)"),
        (("predict", "--modle", "x"), "no such option --modle; did you mean --model? (hf-any3d predict --help)"),
        (("predict",), "missing argument FILE (hf-any3d predict --help)"),
        (("train", "shapess"), "shapess: no such folder, .parquet file or dataset; did you mean shapes?"),
        (("train",), "DATA is missing; expected a folder"),
        (("predict", FILES / "chair.ply", "--model", FILES), "no model in this directory"),
        (
            ("predict", FILES / "chair.ply", "--model", FILES / "chair.ply"),
            "a file; expected the directory or Hub name",
        ),
        (("predict", FILES / "chair.ply", "--model", "me/x", "--output", "a.gif"), "a.gif has type '.gif'; expected"),
        (("predict", FILES / "chair.ply", "--model", "me/x", "--output", "folder"), "folder has type ''; expected"),
        (("predict", MODEL), "default_model is a model; name the files too"),
        (("predict", FILES / "chair.ply", FILES / "lamp.stl", "--output", "a.ply"), "a.ply has type '.ply'; expected"),
        (("reconstruct", FILES, "--model", "me/x", "--output", "a.ply"), "csv, a folder for several files"),
        (("features", FILES, "--model", "me/x", "--output", "a.csv", "--feature", "odd"), "'odd' is not one of"),
        (("data", "convert", FILES, "--output", FILES / "chair.ply"), "chair.ply"),
        (("export", MODEL, "--output", "a", "--format", "tflite"), "'tflite' is not one of onnx, pt2"),
        (("data", "describe", "shapes", "--options", "[1]"), "--options is '[1]'; expected a JSON object"),
        (("convert", FILES / "chair.ply"), "is a scan, but convert takes model checkpoints"),
        (("convert", "gone.pth", "--output", "out"), "gone.pth: no such file"),
        (
            ("predict", FILES / "chair.ply", "--model", "me/x", "--json", "--csv"),
            "--json and --csv exclude each",
        ),
    ],
)
def test_wrong_arguments_are_one_line(words, text):
    assert text in error_of(*words)


_DOORS = [
    ("predict", "{}"),
    ("show", "{}"),
    ("data", "check", "{}"),
    ("data", "describe", "{}"),
    ("train", "{}"),
    ("compare", "{}", "b"),
    ("evaluate", "labels", "{}", "b"),
    ("convert", "{}", "--output", "out"),
]


@pytest.mark.parametrize("words", _DOORS)
@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("https://example.org/IMG 1.ply", "https://example.org/IMG 1.ply: a URL; download the file and pass its path"),
        ("scans/mug/IMG", 'put a name with blanks in quotes, such as "scans/mug/IMG 0042.ply"'),
        ("scans/gone/a.ply", "scans/gone/a.ply: no such "),
    ],
)
def test_a_path_that_is_not_there_is_understood_at_every_door(words, name, text, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "scans" / "mug").mkdir(parents=True)
    (tmp_path / "scans" / "mug" / "IMG 0042.ply").write_text("")
    assert text in error_of(*(word.format(name) for word in words))


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (("info", "--version"), "for the version of all commands, use hf-any3d --version"),
        (("convert", FILES / "chair.ply", "--to", "txt"), "chair.ply is a scan, but convert takes model checkpoints"),
        (("train", MODEL), "default_model: the directory of a model, not of data"),
        (("push", MODEL, "./folder"), "./folder: a path; expected the name of a repository on the Hub"),
        (("evaluate", FILES / "chair.ply"), "is data, not a model; expected MODEL"),
        (("predict", FILES / "chair.ply", "--device", "gpu"), "device gpu: there is none here; expected one of cpu"),
    ],
)
def test_a_first_guess_is_told_the_way(words, text):
    # The note about the bundled model may stand before the error.
    code, out, err = run(*words)
    assert code in (1, 2) and out == "" and text in err.splitlines()[-1], err


@pytest.mark.parametrize("name", ["photo.png", "model"])
def test_what_cannot_be_converted_is_named_before_a_missing_output(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("photo.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    Path("model").mkdir()
    Path("model", "config.json").write_text('{"model_type": "bert"}')
    error = error_of("convert", name)
    assert error.startswith(f"{name}: ") and "--output" not in error


def test_debug_prints_the_traceback_wherever_it_stands():
    for words in (("--debug", "info", "typo"), ("info", "typo", "--debug"), ("info", "--debug", "typo")):
        code, _, err = run(*words)
        assert code == 1 and "Traceback" in err and err.splitlines()[-1].startswith("error: typo: no such directory")
    assert "Traceback" not in run("info", "typo").err
