"""Tests of the vLLM plugin without vLLM: prompts, the tower, names of tensors, refusals."""

import ast
import importlib
import sys
import tomllib
from importlib.metadata import EntryPoint
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from hf_any3d import MiniGPT3DForConditionalGeneration
from hf_any3d.modeling.minigpt3d import merge_lora
from tests.chat.tiny_chat_model import cloud, tiny_chat_pipeline
from tests.errors import raises
from tests.examples.stand_ins import installed
from tests.modeling.minigpt3d.tiny_model import clouds, tiny_model

PLUGIN = Path(__file__).parents[2] / "examples" / "vllm_plugin"


@pytest.fixture(scope="module", autouse=True)
def plugin():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(PLUGIN)
        yield
    for name in [name for name in sys.modules if name.startswith("hf_any3d_vllm")]:
        del sys.modules[name]


@pytest.mark.slow
def test_each_cloud_is_one_placeholder_of_the_prompt():
    from hf_any3d_vllm.prompts import MODALITY, collapse_placeholders, dummy_clouds, vllm_prompt

    assert collapse_placeholders([5, 9, 9, 9, 6, 9, 9, 9, 9, 9, 9], 9, 3) == [5, 9, 6, 9, 9]
    with raises(ValueError, naming="2 placeholders"):
        collapse_placeholders([9, 9, 5], 9, 3)
    processor = tiny_chat_pipeline().processor
    parts = [{"type": "point_cloud", "point_cloud": cloud()}, {"type": "text", "text": "What is this?"}]
    prompt = vllm_prompt(processor, [{"role": "user", "content": parts}])
    (whole,) = processor.prompts([[{"role": "user", "content": parts}]])
    at = prompt["prompt_token_ids"].index(900)
    assert prompt["prompt_token_ids"].count(900) == 1
    assert [*prompt["prompt_token_ids"][:at], *[900] * 12, *prompt["prompt_token_ids"][at + 1 :]] == whole.input_ids
    assert np.array_equal(prompt["multi_modal_data"][MODALITY][0], whole.points[0])
    assert set(vllm_prompt(processor, [{"role": "user", "content": "Hello"}])) == {"prompt_token_ids"}
    processor.hide_inner_bos = True
    questions = [
        {"role": "user", "content": "A"},
        {"role": "assistant", "content": "B"},
        {"role": "user", "content": "C"},
    ]
    with raises(ValueError, naming="hide_inner_bos"):
        vllm_prompt(processor, questions)
    first, second = dummy_clouds(2, 40, 6)
    assert first.shape == (40, 6) and not np.array_equal(first, second)


@pytest.mark.slow
def test_the_tower_gives_the_tokens_of_the_merged_model():
    from hf_any3d_vllm.tower import PointTower, body_name, is_of_tower, text_architecture

    model = merge_lora(tiny_model("llama"))
    tower = PointTower(model.config)
    own = {body_name(name): tensor for name, tensor in model.state_dict().items()}
    assert own.keys() == model.base_model.state_dict().keys() == set(map(body_name, own))
    state = {name: tensor for name, tensor in own.items() if is_of_tower(name)}
    tower.load_state_dict(state)  # strict: every name on both sides
    points = torch.stack(clouds(30, 30))
    with torch.no_grad():
        assert torch.allclose(tower(points), model.get_point_features(points), atol=1e-6)
    assert not any(parameter.requires_grad for parameter in tower.parameters())
    assert text_architecture(model.config) == "LlamaForCausalLM"
    with raises(ValueError, naming="'lm_head.weight'"):
        is_of_tower("lm_head.weight")


def test_vllm_is_told_the_names_that_there_are():
    project = tomllib.loads((PLUGIN / "pyproject.toml").read_text(encoding="utf-8"))
    assert all((PLUGIN / package / "__init__.py").is_file() for package in project["tool"]["setuptools"]["packages"])
    registered: dict[str, str] = {}
    registry = SimpleNamespace(get_supported_archs=lambda: registered, register_model=registered.__setitem__)
    entry = project["project"]["entry-points"]["vllm.general_plugins"]["hf_any3d"]
    register = EntryPoint("hf_any3d", entry, "vllm.general_plugins").load()
    with installed({"vllm": {"ModelRegistry": registry}}):
        register()
        register()  # vLLM does so
    ((architecture, target),) = registered.items()
    assert architecture == MiniGPT3DForConditionalGeneration.__name__  # which configurations name
    module, _, name = target.partition(":")
    tree = ast.parse((PLUGIN / f"{module.replace('.', '/')}.py").read_text(encoding="utf-8"))
    classes = {node.name: node for node in tree.body if isinstance(node, ast.ClassDef)}
    methods = {node.name for node in classes[name].body if isinstance(node, ast.FunctionDef)}
    assert {"get_placeholder_str", "embed_multimodal", "forward", "compute_logits", "load_weights"} <= methods
    imported = [node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and node.module]
    for node in imported:
        if node.module.startswith("hf_any3d"):
            assert all(hasattr(importlib.import_module(node.module), alias.name) for alias in node.names)
