import json

import pytest
from typer.testing import CliRunner

from hf_any3d.cli import app


def run(*arguments):
    return CliRunner().invoke(app, ["evaluate", *map(str, arguments)])


def test_stored_answers_are_judged_by_the_command(tmp_path):
    results = [
        {"object_id": 0, "ground_truth": 0, "model_output": "an airplane", "label_name": "airplane"},
        {"object_id": 1, "ground_truth": 8, "model_output": "a night stand", "label_name": "chair"},
    ]
    file = tmp_path / "modelnet40-instruction.json"
    file.write_text(json.dumps({"prompt": "What is this?", "model": "m", "revision": "abc", "results": results}))
    arguments = ["--protocol", "modelnet40-instruction", "--output-dir", tmp_path, "--judge", "class-names", "--json"]
    result = run("minigpt3d", *arguments)
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["modelnet40-instruction"]["figures"]["accuracy"] == 50
    first, second = run("minigpt3d", *arguments[:-1]).stdout.splitlines()
    assert first == "modelnet40-instruction: 2 answers of m at abc"
    assert second.startswith("  accuracy 50.00   clean_accuracy 50.00") and second.endswith("judge class names (1)")


@pytest.mark.slow
def test_metrics_that_are_not_available_are_named_with_their_reason(tmp_path):
    results = [{"object_id": "a", "ground_truth": "a red chair", "model_output": "a chair"}]
    file = tmp_path / "objaverse-caption.json"
    file.write_text(json.dumps({"prompt": "?", "model": "m", "revision": None, "results": results}))
    lines = run("minigpt3d", "--protocol", "objaverse-caption", "--output-dir", tmp_path).stdout.splitlines()
    assert lines[0] == "objaverse-caption: 1 answers of m"
    assert any(line.startswith("  bleu-1 ") and "words between blanks" in line for line in lines)
    assert any(line.startswith("  sentence-bert: ") for line in lines)


def test_wrong_arguments_give_one_line_errors(tmp_path):
    result = run("minigpt3d", "--output-dir", tmp_path, "--judge", "endpoint")
    assert result.exit_code == 1 and "--judge-model is None" in result.stderr
    result = run("minigpt3d", "--output-dir", tmp_path, "--protocol", "modelnet40-instruction")
    assert result.exit_code == 1 and "no answers to modelnet40-instruction" in result.stderr


def test_classifiers_are_the_default_command():
    for arguments in (["model"], ["--cpu", "model"], ["classifier", "model"]):
        result = run(*arguments)
        assert result.exit_code == 1 and "DATA is missing" in result.stderr
