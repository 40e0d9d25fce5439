import pytest
import torch
from transformers import AutoConfig, AutoModel, DynamicCache

from hf_any3d import (
    AutoModelForPointCloudTextToText,
    MiniGPT3DConfig,
    MiniGPT3DForConditionalGeneration,
    MiniGPT3DModel,
)
from hf_any3d.modeling.minigpt3d import names_in, set_stage
from hf_any3d.modeling.minigpt3d.lora import merge_lora
from tests.closeness import assert_nearly_equal, assert_same_gradients
from tests.errors import raises
from tests.modeling.minigpt3d.tiny_model import PLACES, POINT_TOKEN, TEXTS, clouds, tiny_config, tiny_model

CLOUD = [POINT_TOKEN] * PLACES


def ids(*rows: list[int]) -> torch.Tensor:
    return torch.tensor(rows)


def with_lora(model: MiniGPT3DForConditionalGeneration) -> MiniGPT3DForConditionalGeneration:
    """Give LoRA an effect and query experts different values."""
    generator = torch.Generator().manual_seed(3)
    for name, parameter in model.named_parameters():
        if ".lora_B." in name or ".queries." in name:
            parameter.data.normal_(std=0.3, generator=generator)
    return model


@pytest.mark.parametrize("text", TEXTS)
@torch.no_grad()
def test_any_causal_language_model_takes_clouds(text):
    model = tiny_model(text, text_lora=None)
    prompt = ids([2, *CLOUD, 5, 6])
    one, other = (model(prompt, points=torch.stack(clouds(40, seed=seed))).logits for seed in (1, 2))
    assert one.shape == (1, 6, 24)
    assert torch.equal(one[:, 0], other[:, 0])
    assert (one[:, 1:] != other[:, 1:]).any(dim=-1).all()
    generated = model.generate(input_ids=prompt, points=torch.stack(clouds(40)), max_new_tokens=4, do_sample=False)
    assert generated.shape[1] <= 10


@torch.no_grad()
def test_clouds_of_different_sizes_are_encoded_as_they_are_alone():
    model = tiny_model()
    various = clouds(40, 25, 40)
    together = model.get_point_features(various)
    alone = torch.cat([model.get_point_features(cloud[None]) for cloud in various])
    assert together.shape == (3, PLACES, 16)
    torch.testing.assert_close(together, alone)


@torch.no_grad()
def test_clouds_replace_their_placeholders_in_order():
    model = tiny_model()
    features = model.get_point_features(clouds(40, 25, 30))
    both = model(ids([2, *CLOUD, 5, *CLOUD, 6], [2, 3, 4, *CLOUD, 5, 6, 7]), points=clouds(40, 25, 30)).logits
    embed = model.get_input_embeddings()
    rows = [
        torch.cat([embed(ids([2])[0]), features[0], embed(ids([5])[0]), features[1], embed(ids([6])[0])]),
        torch.cat([embed(ids([2, 3, 4])[0]), features[2], embed(ids([5, 6, 7])[0])]),
    ]
    for row, logits in zip(rows, both, strict=False):
        torch.testing.assert_close(model(inputs_embeds=row[None]).logits[0], logits[: len(row)])


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (1, "has 6 placeholders for point tokens .id 99.; expected 3"),
        (0, "has 6 placeholders for point tokens .id 99.; expected 0"),
    ],
)
def test_clouds_and_placeholders_must_match(given, message):
    model = tiny_model()
    with pytest.raises(ValueError, match=message):
        model(ids([2, *CLOUD, *CLOUD, 6]), points=clouds(*[40] * given) if given else None)


def test_ids_or_embeddings_are_needed():
    with raises(ValueError, naming="input_ids"):
        tiny_model()(points=clouds(40))


@torch.no_grad()
def test_cached_features_give_the_same_output_as_clouds():
    model, points = tiny_model(), torch.stack(clouds(40))
    prompt = ids([2, *CLOUD, 5, 6])
    features = model.get_point_features(points)
    generated = model.generate(prompt, points=points, max_new_tokens=5, do_sample=False)
    assert torch.equal(generated, model.generate(prompt, point_features=features, max_new_tokens=5, do_sample=False))


@torch.no_grad()
def test_samples_of_a_batch_have_the_same_output_as_alone():
    model, points = with_lora(tiny_model()), clouds(40, 30)
    rows = [[2, *CLOUD, 5, 6], [7, 2, *CLOUD, 8, 5, 6]]
    settings = {"max_new_tokens": 5, "min_new_tokens": 5, "do_sample": False, "pad_token_id": 1}
    together = model.generate(
        ids([1, 1, *rows[0]], rows[1]), attention_mask=ids([0, 0] + [1] * 6, [1] * 8), points=points, **settings
    )
    for row, cloud, generated in zip(rows, points, together, strict=True):
        alone = model.generate(ids(row), points=cloud[None], **settings)
        assert torch.equal(generated[-5:], alone[0, -5:])


@torch.no_grad()
def test_beams_of_samples_with_several_clouds_keep_their_clouds():
    model = with_lora(tiny_model())
    rows = ids([2, *CLOUD, 5, *CLOUD, 6], [2, 3, 4, 5, *CLOUD, 7, 6])
    settings = {"max_new_tokens": 4, "min_new_tokens": 4, "do_sample": False, "num_beams": 3}
    together = model.generate(rows, points=clouds(40, 25, 30), **settings)
    one = model.generate(rows[:1], points=clouds(40, 25, 30)[:2], **settings)
    other = model.generate(rows[1:], points=clouds(40, 25, 30)[2:], **settings)
    assert torch.equal(together, torch.cat([one, other]))


@torch.no_grad()
def test_every_cloud_is_encoded_once_for_all_tokens_and_beams():
    model, read = tiny_model(), []
    model.point_encoder.register_forward_hook(lambda _, inputs, __: read.append(len(inputs[0])))
    model.generate(ids([2, *CLOUD, 5]), points=torch.stack(clouds(40)), max_new_tokens=6, num_beams=3)
    assert read == [1]


@torch.no_grad()
def test_a_second_turn_may_use_the_cache_of_the_first():
    model = with_lora(tiny_model())
    settings = {"max_new_tokens": 4, "min_new_tokens": 4, "do_sample": False}
    features = model.get_point_features(clouds(40, 30))
    first, cache = ids([2, *CLOUD, 5]), DynamicCache(config=model.config.text_config)
    generated = model.generate(first, point_features=features[:1], past_key_values=cache, **settings)
    again = torch.cat([generated, ids([6, 7])], dim=1)
    new_cloud = torch.cat([generated, ids([6, *CLOUD, 7])], dim=1)
    for conversation, given in ((again, features[:1]), (new_cloud, features), (new_cloud, features[1:])):
        held = DynamicCache(config=model.config.text_config)
        model.generate(first, point_features=features[:1], past_key_values=held, **settings)
        cached = model.generate(conversation, point_features=given, past_key_values=held, **settings)
        full = features[: 1 + (conversation is new_cloud)]
        assert torch.equal(cached, model.generate(conversation, point_features=full, **settings))


def test_saved_models_load_through_every_entry_point(tmp_path):
    model = with_lora(tiny_model(use_query_experts=True))
    model.save_pretrained(tmp_path)
    prompt, points = ids([2, *CLOUD, 5]), clouds(40)
    logits = model(prompt, points=points).logits
    assert type(AutoConfig.from_pretrained(tmp_path)) is MiniGPT3DConfig
    for model_class in (MiniGPT3DForConditionalGeneration, AutoModelForPointCloudTextToText):
        opened, info = model_class.from_pretrained(tmp_path, output_loading_info=True)
        assert not info["missing_keys"] and not info["unexpected_keys"]
        assert torch.equal(opened(prompt, points=points).logits, logits)
    body, info = AutoModel.from_pretrained(tmp_path, output_loading_info=True)
    assert type(body) is MiniGPT3DModel and not info["missing_keys"] and not info["unexpected_keys"]
    assert torch.equal(body.language_model.lm_head(body(prompt, points=points).last_hidden_state), logits)
    body.save_pretrained(tmp_path / "body")
    opened, info = MiniGPT3DForConditionalGeneration.from_pretrained(tmp_path / "body", output_loading_info=True)
    assert not any(info.values()) and torch.equal(opened(prompt, points=points).logits, logits)


def test_fresh_lora_has_no_effect_where_a_checkpoint_has_none():
    plain, fresh = tiny_model(text_lora=None, qformer_lora=None), tiny_model(seed=5)
    names = names_in(fresh, plain.state_dict())
    report = fresh.load_state_dict({names[name]: kept for name, kept in plain.state_dict().items()}, strict=False)
    assert not report.unexpected_keys and all("lora_" in name for name in report.missing_keys)
    prompt, points = ids([2, *CLOUD, 5]), clouds(40)
    assert torch.equal(fresh(prompt, points=points).logits, plain(prompt, points=points).logits)


def test_missing_weights_of_a_loaded_model_are_initialized_as_in_a_new_one():
    model = tiny_model()
    state = {name: kept for name, kept in model.state_dict().items() if "lora_" not in name and "queries" not in name}
    opened = MiniGPT3DForConditionalGeneration.from_pretrained(None, config=model.config, state_dict=state)
    for started in (model, opened):
        first, *others = started.bridge.experts.queries
        assert 0.01 < first.std() < 0.03 and all(torch.equal(first, queries) for queries in others)
        for name, parameter in started.named_parameters():
            if ".lora_A." in name:
                assert 0.5 < parameter.std() * (3 * parameter.shape[1]) ** 0.5 < 1.5, name
            assert ".lora_B." not in name or not parameter.any(), name


def test_merged_lora_gives_the_same_output():
    model = with_lora(tiny_model(use_query_experts=True))
    prompt, points = ids([2, *CLOUD, 5]), clouds(40)
    with torch.no_grad():
        before = model(prompt, points=points).logits
        merged = merge_lora(model)
        torch.testing.assert_close(merged(prompt, points=points).logits, before, rtol=1e-4, atol=1e-5)
    assert not [name for name, _ in merged.named_parameters() if "lora" in name or "base_layer" in name]
    assert merged.config.text_lora is merged.config.qformer_lora is None


@torch.no_grad()
def with_large_logits(model: MiniGPT3DForConditionalGeneration) -> MiniGPT3DForConditionalGeneration:
    """Increase weights so that logits and gradients are of order one."""
    generator = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        if parameter.ndim > 1:
            parameter.normal_(std=0.3, generator=generator)
    return model


def one_step(model: MiniGPT3DForConditionalGeneration) -> dict[str, torch.Tensor]:
    """Gradients of trained parameters, with the same dropout each time."""
    prompt = ids([2, *CLOUD, 5, 6, 7])
    torch.manual_seed(1)
    model(prompt, points=clouds(40), labels=prompt.masked_fill(prompt == POINT_TOKEN, -100)).loss.backward()
    return {name: each.grad for name, each in model.named_parameters() if each.requires_grad}


@pytest.mark.parametrize("stage", [1, 2, 4])
def test_gradient_checkpointing_changes_no_gradient(stage):
    gradients = []
    lora = {key: {**getattr(tiny_config(), key), "lora_dropout": 0.5} for key in ("text_lora", "qformer_lora")}
    for checkpointing in (False, True):
        model = with_large_logits(with_lora(tiny_model(**lora)))
        set_stage(model, stage)
        model.train()
        if checkpointing:
            model.activation_checkpointing_enable()
        gradients.append(one_step(model))
    assert all(gradient is not None for gradient in gradients[0].values())
    assert_same_gradients(gradients[1], gradients[0])


@pytest.mark.parametrize("order", ["before", "after"])
def test_gradient_checkpointing_runs_the_layers_of_both_models_again(order):
    model, runs = with_lora(tiny_model()), {}
    set_stage(model, 2)
    for name in ("bridge.qformer.encoder.layer.1.output_query", "language_model.model.layers.1.mlp"):
        model.get_submodule(name).register_forward_pre_hook(
            lambda *_, name=name: runs.update({name: runs.get(name, 0) + 1})
        )
    for switch in (model.train, model.activation_checkpointing_enable)[:: 1 if order == "after" else -1]:
        switch()
    one_step(model)
    assert list(runs.values()) == [2, 2]
    model.activation_checkpointing_disable()
    one_step(model)
    assert list(runs.values()) == [3, 3]


def test_a_frozen_point_encoder_stays_in_eval_mode():
    model = tiny_model().train()
    assert model.training and model.bridge.training and not model.point_encoder.training
    model.point_encoder.requires_grad_(True)
    assert model.train().point_encoder.training


def test_load_balancing_loss_is_scaled_with_the_batch_share():
    model = tiny_model(use_query_experts=True, load_balancing_weight=0.5)
    prompt, points = ids([2, *CLOUD, 5, 6, 7]), clouds(40)
    labels = prompt.masked_fill(prompt == POINT_TOKEN, -100)
    full = model(prompt, points=points, labels=labels)
    parts = model(prompt, points=points, labels=labels, num_items_in_batch=torch.tensor(2 * 3))
    shifted = torch.nn.functional.pad(labels[:, 1:], (0, 1), value=-100)
    again = model(prompt, points=points, shift_labels=shifted, num_items_in_batch=torch.tensor(2 * 3))
    assert torch.equal(again.loss, parts.loss)
    model.config.load_balancing_weight = 0.0
    plain = model(prompt, points=points, labels=labels)
    assert full.loss > plain.loss
    torch.testing.assert_close(parts.loss * 2, full.loss)
    assert full.router_logits.shape == (1, 4)


@torch.no_grad()
def test_half_precision_runs():
    model = with_large_logits(tiny_model(use_query_experts=True, router="soft"))
    prompt, points = ids([2, *CLOUD, 5]), clouds(40)
    expected = model(prompt, points=points).logits
    found = model.to(torch.bfloat16)(prompt, points=points).logits
    assert found.dtype == torch.bfloat16
    assert_nearly_equal(found, expected, 0.1)


def test_embeddings_can_be_resized():
    model = tiny_model()
    model.resize_token_embeddings(30)
    assert model(ids([29, *CLOUD]), points=clouds(40)).logits.shape[-1] == 30
    assert model.config.text_config.vocab_size == 30
