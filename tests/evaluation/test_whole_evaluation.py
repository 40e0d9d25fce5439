"""`hf-any3d evaluate minigpt3d` from files on disk to figures: tiny trees, a tiny model, judges on this machine."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from hf_any3d.cli import app
from hf_any3d.data.fingerprints import model_fingerprint
from tests.chat.tiny_chat_model import tiny_chat_pipeline
from tests.data.catalog import pointllm_trees
from tests.data.catalog.test_modelnet40_generative import WORDS, write
from tests.evaluation.endpoints import LocalEndpoint
from tests.evaluation.llm_judge.test_judges import saved_judge

MODELNET = ["--protocol", "modelnet40-instruction", "--protocol", "modelnet40-completion"]
OBJAVERSE = ["--protocol", "objaverse-instruction", "--protocol", "objaverse-completion", "--protocol"]
OBJAVERSE += ["objaverse-caption"]
FEW = ["--generation", '{"max_new_tokens": 10}']


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    tiny_chat_pipeline().save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("data")
    pointllm_trees.write_pointllm(root)
    write(root)
    return root


@pytest.fixture
def evaluate(data, tmp_path):
    def run(*arguments):
        options = json.dumps({"verify": False, "cache_dir": str(tmp_path / "cache")})
        arguments = [
            *arguments,
            "--data-dir",
            data,
            "--options",
            options,
            "--output-dir",
            tmp_path / "out",
            "--device",
            "cpu",
        ]
        result = CliRunner().invoke(app, ["evaluate", "minigpt3d", *map(str, arguments), "--no-metrics", "--json"])
        assert result.exit_code == 0, result.output
        return json.loads(result.stdout)

    return run


@pytest.mark.slow
def test_modelnet40_is_answered_and_judged_by_names_and_then_by_a_model(model, evaluate, tmp_path):
    by_names = evaluate(model, *MODELNET, *FEW, "--judge", "class-names")
    for name, question in (("instruction", "What is this?"), ("completion", "This is an object of ")):
        result = by_names[f"modelnet40-{name}"]
        assert (result["answers"], result["model"], result["revision"]) == (3, str(model), model_fingerprint(model))
        assert result["judge"]["name"] == "class names" and result["judge_revisions"] == ["1"]
        assert result["figures"]["total"] == 3
        stored = json.loads((tmp_path / "out" / f"modelnet40-{name}.json").read_text())
        assert stored["prompt"] == question and stored["settings"]["num_beams"] == 2
        assert [entry["label_name"] for entry in stored["results"]] == WORDS
        assert all(entry["model_output"] == entry["model_output"].strip().lower() for entry in stored["results"])

    judge = saved_judge(tmp_path / "judge", places=4096)
    settings = ["--judge-settings", '{"max_new_tokens": 4}']
    by_model = evaluate(*MODELNET, "--judge", "local", "--judge-model", judge, *settings)
    result = by_model["modelnet40-completion"]
    assert result["judge"]["name"] == judge and result["judge_revisions"] == [model_fingerprint(judge)]
    # Random letters name no class: all are invalid, and correct ones are luck.
    assert result["figures"]["invalid"] == 3 and result["figures"]["clean_accuracy"] is None
    assert result["figures"]["lucky"] == result["figures"]["correct"]


@pytest.mark.slow
def test_objaverse_is_answered_and_judged_by_an_endpoint(model, evaluate):
    with LocalEndpoint((200, "T#same"), (200, "F#other"), (200, "57#much of it")) as endpoint:
        judge = ["--judge", "endpoint", "--judge-model", "judge", "--judge-url", endpoint.url]
        result = evaluate(model, *OBJAVERSE, *FEW, *judge)
        assert evaluate(model, *OBJAVERSE, *FEW, *judge) == result and len(endpoint.requests) == 3
    assert result["objaverse-instruction"]["figures"]["accuracy"] == 100
    assert result["objaverse-completion"]["figures"]["accuracy"] == 0
    assert result["objaverse-caption"]["figures"]["score"] == 57
    assert all(one["judge_revisions"] == ["judge-0613"] and one["judge"]["name"] == "judge" for one in result.values())
    assert pointllm_trees.caption(pointllm_trees.TEST[0]) in endpoint.requests[2][2]["messages"][0]["content"]
