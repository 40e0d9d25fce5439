"""How a MiniGPT-3D is built around its parts and opened again: records, precision, settings, and what is refused."""

import pytest
import torch

from hf_any3d import MiniGPT3DForConditionalGeneration
from hf_any3d.modeling.minigpt3d import MiniGPT3DModel
from tests.errors import raises
from tests.modeling.minigpt3d.test_minigpt3d import CLOUD, ids
from tests.modeling.minigpt3d.test_parts import built, folder as folder  # a fixture
from tests.modeling.minigpt3d.tiny_model import clouds


@pytest.mark.usefixtures("directories_are_names")
@pytest.mark.slow
def test_settings_of_a_call_change_the_opened_model_alone(folder, tmp_path):  # noqa: F811
    model = built(folder)
    model.generation_config.max_new_tokens = 13
    model.save_pretrained(tmp_path)
    config = type(model.config).from_pretrained(tmp_path)
    given = {"config": config, "router_top_k": 3, "torch_dtype": "bfloat16", "attn_implementation": "eager"}
    opened, info = MiniGPT3DForConditionalGeneration.from_pretrained(tmp_path, output_loading_info=True, **given)
    assert info == {"missing_keys": set(), "unexpected_keys": set(), "mismatched_keys": set(), "error_msgs": []}
    assert (opened.config.router_top_k, config.router_top_k) == (3, 2) and opened.dtype == torch.bfloat16
    assert opened.name_or_path == opened.config.name_or_path == str(tmp_path) and not opened.training
    assert opened.generation_config.max_new_tokens == 13
    parts = (opened.point_encoder, opened.language_model, opened.bridge.qformer)
    assert {part.config._attn_implementation for part in parts} == {"eager"}
    body = MiniGPT3DModel.from_pretrained(tmp_path, config=str(tmp_path))
    with torch.no_grad():
        prompt, points = ids([2, *CLOUD, 5]), clouds(40)
        found = body.language_model.lm_head(body(prompt, points=points).last_hidden_state)
        torch.testing.assert_close(found, model(prompt, points=points).logits, rtol=1e-4, atol=1e-5)
    with raises(TypeError, naming="tp_size"):
        MiniGPT3DForConditionalGeneration.from_pretrained(tmp_path, tp_size=2)
