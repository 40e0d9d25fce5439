"""Every option of `convert` reaches the conversion of its file, and those of other programs are refused."""

import dataclasses
import inspect
from importlib import import_module

import pytest

from hf_any3d import conversions
from hf_any3d.conversions.act.convert import Choices
from tests.cli.conftest import FILES, run

convert = import_module("hf_any3d.cli.convert")
pytestmark = pytest.mark.usefixtures("libraries_as_they_were")

# All different from each other and from what stands for an option that is not given.
GIVEN = {
    "variant": "clip-scan",
    "kind": "cls",
    "base": "me/base",
    "encoder": "me/encoder",
    "teacher": "me/teacher",
    "revision": "v1",
    "store_encoder": True,
    "dataset": "scannet",
    "tokenizer": "me/tokenizer",
    "stage": 2,
    "store_parts": True,
    "dtype": "bfloat16",
    "code_template": "code.txt",
    "preset": "sonata",
    "trained_with": "pointcept-1.6",
    "arguments": "sizes.json",
    "num_groups": 3,
    "group_size": 4,
    "group_radius": 0.0,
    "num_attention_heads": 5,
    "num_points": 6,
    "pooling": "cls,max",
    "prompt_layer": 0,
    "prompt_groups": 7,
    "size": "base",
}


def words_of(given):
    """The words of a command line for options."""
    words = []
    for name, value in given.items():
        words += [f"--{name.replace('_', '-')}", *([] if value is True else [value])]
    return words


@pytest.fixture
def converted(monkeypatch):
    """What conversions are asked for; they take every option. Files are those of an ACT."""
    asked = []

    def made(name):
        return lambda **given: asked.append((name, given)) or {"output": given["output"], "parameters": 5}

    def plan(files):
        return "convert_uni3d", {"checkpoint": f"planned {len(files)}", "r": 9}

    for name in ("convert_act", "convert_any2point", "convert_uni3d"):
        monkeypatch.setattr(conversions, name, made(name))
    monkeypatch.setattr("hf_any3d.conversions.programs.plan", plan)
    monkeypatch.setattr(convert, "_arguments_of", lambda function: {*GIVEN, "checkpoint", "output", "r"})
    return asked


def test_all_options_are_in_the_test():
    assert list(GIVEN) == [name for name in inspect.signature(convert.convert).parameters if name in convert._OPTIONS]


def test_every_option_reaches_the_conversion_even_a_zero(converted, tmp_path):
    file = FILES / "chair.ply"
    others = {name: value for name, value in GIVEN.items() if name not in ("variant", "kind")}
    found = run("convert", file, "--output", tmp_path / "out", *words_of(others))
    assert found.code == 0 and found.out == f"{tmp_path / 'out'}: 5 parameters\n", found.err
    ((name, given),) = converted
    paths = ("output", "code_template", "arguments")
    assert name == "convert_uni3d" and all(str(given[key]) == str(others.get(key, tmp_path / "out")) for key in paths)
    assert {key: value for key, value in given.items() if key not in paths} == {
        "checkpoint": "planned 1", "r": 9, **{key: value for key, value in others.items() if key not in paths},
    }  # fmt: skip
    converted.clear()
    assert run("convert", file, "--output", tmp_path / "out").code == 0
    assert converted == [("convert_uni3d", {"output": tmp_path / "out", "checkpoint": "planned 1", "r": 9})]


@pytest.mark.parametrize(
    ("option", "count", "program"),
    [
        ({"variant": "clip-scan"}, 1, "convert_any2point"),
        ({"kind": "cls"}, 1, "convert_act"),
        ({"kind": "cls"}, 2, "convert_uni3d"),
        ({"dataset": "none"}, 1, "convert_uni3d"),
    ],
)
def test_an_option_that_one_program_alone_has_names_it_for_a_single_file(option, count, program, converted, tmp_path):
    files = [str(FILES / name) for name in ("chair.ply", "lamp.stl")][:count]
    assert run("convert", *files, "--output", tmp_path / "out", *words_of(option)).code == 0
    checkpoint = {"checkpoint": files[0]}
    if program == "convert_uni3d":
        checkpoint = {"checkpoint": f"planned {count}", "r": 9}
    assert converted == [(program, {"output": tmp_path / "out", **checkpoint, **option})]


def test_options_of_other_programs_are_refused_with_those_that_there_are(converted, tmp_path, monkeypatch):
    file, output = str(FILES / "chair.ply"), ("--output", tmp_path / "out")
    assert run("convert", file).err == f"error: {file}: --output is missing; give the directory to create\n"
    monkeypatch.setattr(convert, "_arguments_of", lambda function: {"checkpoint", "output", "stage", "num_groups"})
    refused = "error: --base, --store-encoder: not for a file of Uni3D; expected --num-groups, --stage\n"
    assert run("convert", file, *output, "--store-encoder", "--base", "b", "--stage", 2).err == refused
    monkeypatch.setattr(convert, "_arguments_of", lambda function: {"checkpoint", "output"})
    refused = "error: --base: not for a file of Uni3D; expected none\n"
    assert run("convert", file, *output, "--base", "b").err == refused and converted == []


def test_what_is_no_file_is_a_published_checkpoint(converted, monkeypatch, tmp_path):
    asked = []
    monkeypatch.setattr(convert, "_convert_published", lambda *given: asked.append(given))
    words = ("--size", "base", "--revision", "v1")
    assert run("convert", "me/x", "--output", tmp_path / "out", *words).code == 0
    assert asked == [("me/x", tmp_path / "out", {"size": "base", "revision": "v1"})]
    assert run("convert", "me/x", "me/y", "--output", tmp_path / "out").code == 0 and len(asked) == 1
    assert converted[0][1]["checkpoint"] == "planned 2"


def test_a_conversion_takes_its_arguments_and_those_of_the_choices_that_it_passes_on():
    def plain(checkpoint, output, *, stage=None):
        pass

    def chooses(checkpoint, output, **choices):
        pass

    assert convert._arguments_of(plain) == {"checkpoint", "output", "stage"}
    choices = {field.name for field in dataclasses.fields(Choices)}
    assert choices and convert._arguments_of(chooses) == {"checkpoint", "output", *choices}
