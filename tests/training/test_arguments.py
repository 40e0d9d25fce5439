"""Arguments of training programs."""

import json
from dataclasses import dataclass, field

import pytest
import torch

from hf_any3d.training.arguments import PointTrainingArguments, json_mapping, parse_arguments


@dataclass
class Model:
    name: str = "none"
    revision: str | None = None
    settings: dict | str | None = None


@dataclass
class Training:
    rate: float = 0.1
    steps: int = 1
    augment: list[str] = field(default_factory=list)


def test_command_line_arguments_are_parsed():
    words = ["--name", "a", "--rate", "1e-3", "--augment", "scale", "jitter", "--settings", '{"x": 1}']
    model, training = parse_arguments((Model, Training), words)
    assert model == Model("a", settings='{"x": 1}') and training == Training(0.001, augment=["scale", "jitter"])


def test_yaml_numbers_with_exponents_are_parsed_but_text_is_kept(tmp_path):
    path = tmp_path / "a.yaml"
    path.write_text("name: 1e5\nrevision: 12e4567\nrate: 1e-3\nsettings:\n  eps: 1E-6\n  inner: [2e2, up]\n")
    model, training = parse_arguments((Model, Training), [str(path)])
    assert training.rate == 0.001
    assert model == Model("1e5", "12e4567", {"eps": 1e-6, "inner": [200.0, "up"]})


def test_json_file_is_read(tmp_path):
    path = tmp_path / "a.json"
    path.write_text(json.dumps({"name": "a", "steps": 3, "augment": ["scale"]}))
    assert parse_arguments((Model, Training), [str(path)]) == (Model("a"), Training(steps=3, augment=["scale"]))


def test_command_line_overrides_a_file_and_merges_mappings(tmp_path):
    path = tmp_path / "a.yaml"
    path.write_text("name: a\nsettings: {x: 1, inner: {y: 2, z: 3}}\nrate: 0.5\nsteps: 7\naugment: [scale, jitter]\n")
    words = ["--settings", '{"inner": {"z": 4}, "w": 5}', "--rate", "0.25", "--augment", "shift"]
    model, training = parse_arguments((Model, Training), [str(path), *words])
    assert model == Model("a", settings={"x": 1, "inner": {"y": 2, "z": 4}, "w": 5})
    assert training == Training(0.25, 7, ["shift"])


def test_invalid_arguments_after_a_file_are_refused(tmp_path, capsys):
    path = tmp_path / "a.yaml"
    path.write_text("settings: {x: 1}\n")
    with pytest.raises(SystemExit):
        parse_arguments((Model, Training), [str(path), "--nmae", "a"])
    assert "--nmae" in capsys.readouterr().err
    with pytest.raises(ValueError, match="--settings 3; expected a JSON object"):
        parse_arguments((Model, Training), [str(path), "--settings", "3"])


@pytest.mark.parametrize(
    ("name", "content", "text"),
    [
        ("a.yaml", "nmae: a", "a.yaml: .*nmae"),
        ("a.yaml", "- a\n- b", "a.yaml: holds a list; expected names and values"),
        ("a.yml", "a: [", "a.yml: while parsing"),
        ("a.json", "{", "a.json: Expecting"),
    ],
)
def test_errors_name_invalid_files(tmp_path, name, content, text):
    (tmp_path / name).write_text(content)
    with pytest.raises(ValueError, match=text):
        parse_arguments((Model, Training), [str(tmp_path / name)])


def test_error_names_a_missing_file(tmp_path):
    with pytest.raises(FileNotFoundError, match="absent.yaml"):
        parse_arguments((Model, Training), [str(tmp_path / "absent.yaml")])


def test_mappings_may_be_json_mapping_or_none():
    assert json_mapping('{"a": 1}', "x") == json_mapping({"a": 1}, "x") == {"a": 1}
    assert json_mapping(None, "x") == {}
    for wrong in ("{a: 1}", "[1]", "3"):
        with pytest.raises(ValueError, match="--x "):
            json_mapping(wrong, "x")


def test_memory_is_pinned_for_accelerators_alone(tmp_path):
    assert PointTrainingArguments(str(tmp_path)).dataloader_pin_memory == torch.accelerator.is_available()
    assert not PointTrainingArguments(str(tmp_path), dataloader_pin_memory=False).dataloader_pin_memory
