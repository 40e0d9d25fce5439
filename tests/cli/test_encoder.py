"""`hf-any3d encoder`: whether and how a checkpoint can be wrapped."""

import json

import pytest
from transformers import AutoModel

from tests.any_encoders import small_config
from tests.cli.conftest import run


@pytest.mark.slow
def test_a_checkpoint_of_one_encoder_is_described(tmp_path):
    AutoModel.from_config(small_config("bart")).save_pretrained(tmp_path)
    code, out, _ = run("encoder", tmp_path, "--json")
    (facts,) = json.loads(out)["encoders"]
    expected = {"type": "bart", "tower": "text", "works": "yes", "layers": "encoder.layers", "width": "48"}
    assert code == 0 and facts.items() >= (expected | {"count": "2", "branch": "fc2"}).items()


@pytest.mark.slow
def test_each_encoder_of_a_composite_checkpoint_is_listed(tmp_path):
    small_config("gemma3").save_pretrained(tmp_path)
    code, out, _ = run("encoder", tmp_path, "--json")
    rows = json.loads(out)["encoders"]
    assert code == 0 and [(row["tower"], row["works"]) for row in rows] == [("text", "yes"), ("vision", "yes")]
    code, out, _ = run("encoder", tmp_path, "--tower", "vision", "--json")
    assert code == 0 and [row["type"] for row in json.loads(out)["encoders"]] == ["siglip_vision_model"]


@pytest.mark.slow
def test_a_type_that_cannot_be_used_is_answered_with_its_reason_and_three_that_can():
    code, out, _ = run("encoder", "mamba")
    assert code == 1 and "tokens in sequence" in out and "bert, llama and qwen3" in out
