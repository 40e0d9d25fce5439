"""How a MiniGPT-3D is built around its parts and opened again: records, precision, settings, and what is refused."""

import pytest
import torch
from transformers import AutoModelForCausalLM

from hf_any3d import MiniGPT3DForConditionalGeneration
from hf_any3d.modeling.minigpt3d import MiniGPT3DModel, build_from_parts
from hf_any3d.modeling.minigpt3d.modeling_minigpt3d import QueriesAndQFormer
from hf_any3d.modeling.pretrained_parts.sources import resolve_encoder
from tests.errors import raises
from tests.modeling.minigpt3d.test_minigpt3d import CLOUD, ids
from tests.modeling.minigpt3d.test_parts import PARTS, SETTINGS, built, folder as folder  # a fixture
from tests.modeling.minigpt3d.tiny_model import clouds


def test_parts_that_are_given_by_name_are_recorded(folder):  # noqa: F811
    model = built(folder)
    expected = {
        part: {"name_or_path": str(folder / part), "checksum": resolve_encoder(folder / part).checksum}
        for part in PARTS
    }
    assert model.config.parts == expected and not model.training
    given = QueriesAndQFormer.from_pretrained(folder / "qformer")
    text = AutoModelForCausalLM.from_pretrained(folder / "language_model", dtype=torch.bfloat16)
    text.generation_config.max_new_tokens = 11
    made = build_from_parts(folder / "point_encoder", given, text, **SETTINGS)
    assert list(made.config.parts) == ["point_encoder"] and made.language_model is text
    # All have the precision of the language model, and its settings of generation.
    assert {tensor.dtype for tensor in made.parameters()} == {torch.bfloat16}
    assert made.generation_config.max_new_tokens == 11
    half = build_from_parts(*(folder / part for part in PARTS), dtype=torch.float16, **SETTINGS)
    assert {tensor.dtype for tensor in half.parameters()} == {torch.float16}
    assert made.config.num_query_tokens == given.query_tokens.shape[1] == 3
    with raises(ValueError, naming="'qformer'; expected some of 'point_encoder'"):
        build_from_parts(folder / "point_encoder", given, text, revisions={"qformer": "main"}, **SETTINGS)


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


@pytest.mark.slow
def test_clouds_are_read_without_gradients_unless_their_encoder_trains():
    from tests.modeling.minigpt3d.tiny_model import tiny_model

    model = tiny_model().minigpt3d
    points = torch.stack(clouds(40, 40))
    assert not model.encode(points).requires_grad and model.get_point_features(points).requires_grad
    model.point_encoder.requires_grad_(True)
    assert model.encode(points).requires_grad and model.encode(list(points)).requires_grad
    with torch.no_grad():
        assert not model.encode(points).requires_grad
    torch.testing.assert_close(model.encode(list(points)), model.encode(points))
