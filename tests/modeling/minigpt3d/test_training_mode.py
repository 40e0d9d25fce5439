"""Dropout and weight decay while MiniGPT-3D trains, as published, and the released dropout at inference."""

import torch

from hf_any3d.modeling.minigpt3d import set_stage
from tests.modeling.minigpt3d.test_minigpt3d import CLOUD, ids, with_lora
from tests.modeling.minigpt3d.tiny_model import POINT_TOKEN, clouds, tiny_config, tiny_model

DROPPING = {
    "text_lora": {"r": 4, "lora_alpha": 8, "lora_dropout": 0.05},
    "qformer_lora": {"r": 2, "lora_alpha": 4, "lora_dropout": 0.5, "target_modules": ["query", "key", "value"]},
}


def test_only_the_lora_of_the_q_former_has_dropout_in_training():
    dropping = tiny_config().qformer_config.to_dict() | {
        "hidden_dropout_prob": 0.5,
        "attention_probs_dropout_prob": 0.5,
    }
    model = tiny_model(qformer_config=dropping, **DROPPING).train()
    active = {
        name
        for name, module in model.base_model.named_modules()
        if isinstance(module, torch.nn.Dropout) and module.training
    }
    assert not any(name.startswith("point_encoder.") for name in active)
    qformer = {name for name in active if name.startswith("bridge.qformer.")}
    assert qformer and all(name.endswith(".low_rank_dropout") for name in qformer)
    assert {name for name in active if "language_model" in name and "resid_dropout" in name}
    assert model.language_model.training
    assert not any(module.training for module in model.eval().modules())


def test_dropout_at_inference_is_off_by_default(caplog):
    points = torch.stack(clouds(40))
    sound = with_lora(tiny_model(**DROPPING))
    assert torch.equal(sound.get_point_features(points), sound.get_point_features(points))
    released = with_lora(tiny_model(qformer_lora_dropout_at_inference=True, **DROPPING))
    assert not torch.equal(released.get_point_features(points), released.get_point_features(points))
    assert caplog.text.count("qformer_lora_dropout_at_inference=True") == 1
    words = ids([2, 5, 6])
    assert torch.equal(released(words).logits, released(words).logits)


def test_unselected_experts_get_weight_decay():
    model = with_lora(tiny_model(router_top_k=1))
    set_stage(model, 4)
    model.bridge.experts.router.requires_grad_(False)  # so that the same set is selected twice
    model.train()
    optimizer = torch.optim.AdamW(list(model.bridge.experts.queries), lr=0.1, weight_decay=0.5)
    before = [queries.detach().clone() for queries in model.bridge.experts.queries]
    prompt, points = ids([2, *CLOUD, 5, 6]), torch.stack(clouds(40))
    for _ in range(2):
        optimizer.zero_grad()
        out = model(prompt, points=points, labels=prompt.masked_fill(prompt == POINT_TOKEN, -100))
        out.loss.backward()
        selected = int(out.router_logits.argmax())
        optimizer.step()
    for number, (old, queries) in enumerate(zip(before, model.bridge.experts.queries, strict=True)):
        if number != selected:
            assert queries.grad is not None and not queries.grad.any()
            torch.testing.assert_close(queries.detach(), old * (1 - 0.1 * 0.5) ** 2)
