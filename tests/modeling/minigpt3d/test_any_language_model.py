"""Chat around language models of other shapes: narrow word vectors, several towers, caches of their own or none."""

import pytest
import torch

from hf_any3d.modeling.minigpt3d import MiniGPT3DForConditionalGeneration
from tests.any_encoders import small_config
from tests.errors import raises
from tests.modeling.minigpt3d.tiny_model import PLACES, POINT_TOKEN, clouds, tiny_config
from tests.turns import some

NARROW = {"hidden_size": 64, "word_embed_proj_dim": 32, "do_layer_norm_before": False}


def model_around(model_type: str, **changes) -> MiniGPT3DForConditionalGeneration:
    text = small_config(model_type)
    for name, value in changes.items():
        setattr(text, name, value)
    settings = {"text_config": text.to_dict(), "text_lora": None, "qformer_lora": None}
    torch.manual_seed(0)
    return MiniGPT3DForConditionalGeneration(tiny_config(**settings)).eval()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("model_type", "changes"),
    some(
        [
            *[("opt", NARROW), ("gemma3", {}), ("mixtral", {}), ("openai-gpt", {}), ("minimax", {}), ("mamba", {})],
            *[("bert", {"is_decoder": True}), ("marian", {}), ("falcon_h1", {})],
        ],
        left_out=[
            ("mixtral", {}),
            ("minimax", {}),
            ("falcon_h1", {}),
            ("gemma3", {}),
            ("openai-gpt", {}),
            ("marian", {}),
        ],
    ),
)
def test_the_projector_learns_and_a_cache_changes_no_answer(model_type, changes):
    model = model_around(model_type, **changes)
    ids = torch.tensor([[1, 5] + [POINT_TOKEN] * PLACES + [7, 8, 9]])
    loss = model(input_ids=ids, points=clouds(64), labels=ids.masked_fill(ids == POINT_TOKEN, -100)).loss
    loss.backward()
    assert loss.isfinite() and model.bridge.projector.fc1.weight.grad.abs().max() > 0
    asked = {"input_ids": ids, "points": clouds(64), "max_new_tokens": 5, "do_sample": False, "eos_token_id": None}
    answers = [model.generate(**asked, use_cache=cached, pad_token_id=0) for cached in (True, False)]
    assert torch.equal(*answers)


@pytest.mark.parametrize(
    ("model_type", "reason"),
    [
        *[("gemma4_text", "read the ids of words"), ("git", "reads an image")],
        *[
            ("xlm-roberta-xl", "expected is_decoder=True"),
            ("xlm", "expected causal=True"),
            ("xlnet", "attend to later"),
        ],
        ("gemma4_unified_assistant", "drafts words for another model"),
    ],
)
def test_language_models_that_cannot_chat_about_clouds_are_refused(model_type, reason):
    with raises(ValueError, naming=reason):
        model_around(model_type)
