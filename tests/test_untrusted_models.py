"""Untrusted model directories at the command line: an answer, or one error line in bounded time."""

import json
import shutil
from pathlib import Path

import pytest
from peft import LoraConfig, get_peft_model

from hf_any3d import PointCloudProcessor, encoder_linear_pattern, trainable_module_names
from tests.cli.test_cli import FILES, build, run

pytestmark = pytest.mark.usefixtures("libraries_as_they_were")


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("untrusted")
    model = build()
    lora = LoraConfig(r=4, target_modules=encoder_linear_pattern(model), modules_to_save=trainable_module_names(model))
    get_peft_model(model, lora).save_pretrained(path)
    PointCloudProcessor(num_points=64).save_pretrained(path)
    return path


@pytest.fixture
def untrusted(folder, tmp_path):
    # At the same depth, as its files name the encoder relative to them.
    model = tmp_path.with_name(f"{tmp_path.name}-model")
    shutil.copytree(folder, model)
    return model


def changed(path: Path, **settings):
    path.write_text(json.dumps(json.loads(path.read_text()) | settings))


def refused(model: Path) -> str:
    for command in (["predict", FILES / "chair.ply", "--model", model], ["info", model]):
        code, out, err = run(*command)
        assert code == 1 and out == "" and err.startswith("error: ") and len(err.splitlines()) == 1, (command, err)
        if command[0] == "predict":
            message = err
    return message


@pytest.mark.slow
@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"in_channels": 10**9}, "in_channels=1000000000"),
        ({"released": {"final_norm_eps": float("nan")}}, "final_norm_eps=nan"),
        ({"id2label": 3}, ""),
    ],
)
def test_impossible_settings_are_refused(untrusted, settings, message):
    changed(untrusted / "config.json", **settings)
    assert message in refused(untrusted)


def test_truncated_weight_file_is_reported(untrusted):
    file = untrusted / "adapter_model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    code, out, err = run("predict", FILES / "chair.ply", "--model", untrusted)
    assert code == 1 and out == "" and len(err.splitlines()) == 1 and str(untrusted) in err


@pytest.mark.slow
def test_class_and_file_names_are_escaped_in_terminals(untrusted, tmp_path):
    labels = {"0": "bottle\x1b[2J", "1": "chair\nerror: all is lost", "2": "\u202elamp"}
    changed(untrusted / "config.json", id2label=labels, label2id={name: int(i) for i, name in labels.items()})
    file = tmp_path / "ch\x1b[31mair\n.ply"
    shutil.copy(FILES / "chair.ply", file)
    code, out, err = run("predict", file, "--model", untrusted)
    assert code == 0, err
    assert len(out.splitlines()) == 1 and out[:-1].isprintable() and "all is lost" in out
    code, out, err = run("predict", file, "--model", untrusted, "--json")
    assert {answer["label"] for answer in json.loads(out)[0]["predictions"]} == set(labels.values())
    assert out.replace("\n", "").isprintable()
    file.write_bytes(b"ply\n")
    code, out, err = run("predict", file, "--model", untrusted)
    assert code == 1 and len(err.splitlines()) == 1 and err[:-1].isprintable()


def test_code_in_a_directory_is_never_run(untrusted, tmp_path, monkeypatch):
    monkeypatch.setattr("builtins.input", None)
    (untrusted / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    for file in ("config.json", "preprocessor_config.json"):
        changed(
            untrusted / file, auto_map={name: "evil.Evil" for name in ("AutoConfig", "AutoModel", "AutoProcessor")}
        )
    changed(untrusted / "preprocessor_config.json", feature_extractor_type="Unknown")
    code, out, err = run("predict", FILES / "chair.ply", "--model", untrusted)
    assert not (tmp_path / "ran").exists() and out.count("y/N") == 0
    assert code == 0 or (err.startswith("error: ") and len(err.splitlines()) == 1)
