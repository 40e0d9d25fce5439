"""Arguments of training programs."""

from dataclasses import dataclass, field

import pytest
import torch

from hf_any3d.data.fingerprints import path_fingerprint
from hf_any3d.training.arguments import DataArguments, PointTrainingArguments, json_mapping
from hf_any3d.training.folds import fingerprints_of_inputs
from hf_any3d.training.requests import parse_arguments
from tests.errors import raises


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


def test_command_line_overrides_a_file_and_merges_mappings(tmp_path):
    path = tmp_path / "a.yaml"
    path.write_text("name: a\nsettings: {x: 1, inner: {y: 2, z: 3}}\nrate: 0.5\nsteps: 7\naugment: [scale, jitter]\n")
    words = ["--settings", '{"inner": {"z": 4}, "w": 5}', "--rate", "0.25", "--augment", "shift"]
    model, training = parse_arguments((Model, Training), [str(path), *words])
    assert model == Model("a", settings={"x": 1, "inner": {"y": 2, "z": 4}, "w": 5})
    assert training == Training(0.25, 7, ["shift"])


def test_invalid_arguments_after_a_file_are_refused(tmp_path):
    path = tmp_path / "a.yaml"
    path.write_text("settings: {x: 1}\n")
    with raises(ValueError, naming="--nmae; did you mean --name?"):
        parse_arguments((Model, Training), [str(path), "--nmae", "a"])
    with raises(ValueError, naming="--settings"):
        parse_arguments((Model, Training), [str(path), "--settings", "3"])


@pytest.mark.parametrize(
    ("name", "content", "text"),
    [
        ("a.yaml", "nmae: a", "a.yaml: .*nmae"),
        ("a.yaml", "- a\n- b", "a.yaml: expected names and values"),
        ("a.yml", "a: [", "a.yml: .*while parsing"),
        ("a.json", "{", "a.json: .*Expecting"),
    ],
)
def test_errors_name_invalid_files(tmp_path, name, content, text):
    (tmp_path / name).write_text(content)
    with pytest.raises(ValueError, match=text):
        parse_arguments((Model, Training), [str(tmp_path / name)])


def test_error_names_a_missing_file(tmp_path):
    with raises(FileNotFoundError, naming="absent.yaml"):
        parse_arguments((Model, Training), [str(tmp_path / "absent.yaml")])


def test_mappings_may_be_json_mapping_or_none():
    assert json_mapping('{"a": 1}', "x") == json_mapping({"a": 1}, "x") == {"a": 1}
    assert json_mapping(None, "x") == {}
    for wrong in ("{a: 1}", "[1]", "3"):
        with raises(ValueError, naming="--x "):
            json_mapping(wrong, "x")


def test_memory_is_pinned_for_accelerators_alone(tmp_path):
    assert PointTrainingArguments(str(tmp_path)).dataloader_pin_memory == torch.accelerator.is_available()
    assert not PointTrainingArguments(str(tmp_path), dataloader_pin_memory=False).dataloader_pin_memory


def training(folder, **settings) -> PointTrainingArguments:
    return PointTrainingArguments(str(folder), use_cpu=True, report_to="none", **settings)


@pytest.mark.parametrize("number", ["1e3", "1.e3", "+.1E4", "10E+2", "1.0e3"])
def test_numbers_with_exponents_are_read_in_any_form(number, tmp_path):
    (tmp_path / "a.yaml").write_text(f"rate: {number}\nsettings: {{x: [{{y: {number}}}], z: e3, w: 1e}}\n")
    model, training = parse_arguments((Model, Training), [str(tmp_path / "a.yaml")])
    assert training.rate == 1000 and model.settings == {"x": [{"y": 1000}], "z": "e3", "w": "1e"}


@pytest.mark.parametrize("name", ["eval_strategy", "save_strategy"])
def test_without_evaluations_or_checkpoints_no_weights_are_selected(name, tmp_path, caplog):
    found = training(tmp_path, **{name: "no"})
    assert not found.load_best_model_at_end and f"--{name} no: no checkpoint can be selected" in caplog.text
    caplog.clear()
    assert training(tmp_path).load_best_model_at_end and not caplog.text
    training(tmp_path, **{name: "no"}, load_best_model_at_end=False)
    assert not caplog.text


def test_rows_of_a_step_are_accumulated(tmp_path):
    assert training(tmp_path, per_device_train_batch_size=4, rows_per_step=24).gradient_accumulation_steps == 6
    for wrong in (0, 5):
        with raises(ValueError, naming=f"--rows_per_step {wrong}; expected a multiple of 4, 4 in"):
            training(tmp_path, per_device_train_batch_size=4, rows_per_step=wrong)


def test_a_schedule_by_epochs_lasts_as_long_as_the_run_unless_told_otherwise(tmp_path):
    assert training(tmp_path).epoch_schedule is None
    found = training(tmp_path, num_train_epochs=7, epoch_cosine='{"warmup_epochs": 2}')
    assert (found.epoch_schedule.epochs, found.epoch_schedule.warmup_epochs) == (7, 2)
    assert found.epoch_cosine["min_lr"] == 1e-6
    assert training(tmp_path, epoch_cosine={"epochs": 3}).epoch_schedule.epochs == 3


def test_two_steps_with_each_gradient_need_gradients_that_are_not_scaled(tmp_path):
    arguments = training(tmp_path, two_steps_per_batch=True)
    arguments.fp16 = True
    with raises(ValueError, naming="--two_steps_per_batch"):
        arguments.__post_init__()


@pytest.mark.parametrize(
    ("given", "text"),
    [
        ({"validation_file": "x"}, "--validation_file and --test_file need --train_file"),
        ({"test_file": "x"}, "--validation_file and --test_file need --train_file"),
        ({"train_file": "x", "data_dir": "y"}, "--data_dir y and --train_file exclude each other"),
        ({"train_splits": ["a", "b"]}, "--train_splits a b; expected 'train' among them"),
        ({"validation_fraction": 1.0}, "--validation_fraction 1.0; expected at least 0 and less than 1"),
    ],
)
def test_data_that_cannot_be_are_refused(given, text):
    with pytest.raises(ValueError, match=text):
        DataArguments(**given)
    assert DataArguments(train_file="x", test_file="y", validation_fraction=0).dataset_options == {}


def test_inputs_are_identified_by_what_is_in_them(tmp_path):
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "a.txt").write_text("1")
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text("{}")
    recipe = tmp_path / "a.yaml"
    recipe.write_text(f"data_dir: {tmp_path / 'data'}\nname: x\n")
    words = [str(recipe), "--model_name_or_path", str(tmp_path / "model"), "--train_file", str(tmp_path / "absent")]
    found = fingerprints_of_inputs(words)
    assert found.keys() == {str(recipe), str(tmp_path / "data"), str(tmp_path / "model")}
    assert found[str(tmp_path / "data")] == path_fingerprint(str(tmp_path / "data"))
    recipe.write_text(f"name: x\ndata_dir: {tmp_path / 'data'}\n")
    assert fingerprints_of_inputs(words) == found  # the same settings
    recipe.write_text(f"name: y\ndata_dir: {tmp_path / 'data'}\n")
    assert fingerprints_of_inputs(words)[str(recipe)] != found[str(recipe)]
    # The last word wins, over the recipe too; a directory that is no model is none that training starts from.
    given = [str(recipe), "--data_dir=x", "--data_dir", str(tmp_path / "model"), "--encoder_name_or_path"]
    assert fingerprints_of_inputs([*given, str(tmp_path / "data")]).keys() == {str(recipe), str(tmp_path / "model")}
    assert fingerprints_of_inputs(["--data_dir=" + str(tmp_path / "data")]).keys() == {str(tmp_path / "data")}
    part = tmp_path / "fold=1.parquet"
    part.write_text("1")
    for given in ([f"--train_file={part}"], ["--train_file", str(part)]):
        assert fingerprints_of_inputs(given).keys() == {str(part)}
