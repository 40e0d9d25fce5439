"""What MiniGPT-3D returns, compared with its parts run by hand."""

import re

import pytest
import torch
from torch import nn
from transformers import DynamicCache
from transformers.utils import ModelOutput

from hf_any3d.modeling.layers.cloud_prompts import EncodedClouds
from hf_any3d.modeling.layers.forward_contract import CACHE
from hf_any3d.modeling.minigpt3d import MiniGPT3DConfig, NormedPhiConfig, NormedPhiForCausalLM
from hf_any3d.modeling.minigpt3d.modeling_minigpt3d import padded_tokens
from hf_any3d.modeling.minigpt3d.qformer import Routing
from tests.errors import raises
from tests.modeling.minigpt3d.test_minigpt3d import CLOUD, ids, with_large_logits
from tests.modeling.minigpt3d.tiny_model import PLACES, TEXTS, clouds, tiny_config, tiny_model

PROMPT = ids([2, *CLOUD, 5, 6, 7], [1, 3, *CLOUD, 8, 9])
MASK = ids([1] * 7, [0] + [1] * 6)


@pytest.fixture(scope="module")
def model():
    """A model with two query sets for each cloud, whose weights tell clouds apart."""
    made = with_large_logits(tiny_model(use_query_experts=True))
    made.set_attn_implementation("eager")
    return made


def same(ours, theirs) -> bool:
    if isinstance(ours, torch.Tensor):
        ours, theirs = (ours,), (theirs,)
    return len(ours) == len(theirs) > 0 and all(map(torch.equal, ours, theirs))


@torch.no_grad()
def test_outputs_are_those_of_the_language_model_for_words_and_clouds(model):
    points = clouds(40, 30)
    tokens = model.minigpt3d.encode(points)
    bridged = model.bridge(tokens)
    words = model.get_input_embeddings()(PROMPT.masked_fill(PROMPT == CLOUD[0], 0))
    for row, start in ((0, 1), (1, 2)):
        words[row, start : start + PLACES] = bridged.tokens[row]
    positions = torch.tensor([[0, 1, 2, 3, 9, 10, 11], [0, 1, 2, 3, 4, 5, 6]])
    asked = {"output_hidden_states": True, "output_attentions": True}
    given = {"attention_mask": MASK, "position_ids": positions, "use_cache": True}
    text = model.language_model(inputs_embeds=words, **given, **asked)
    found = model(PROMPT, points=points, **given, **asked)
    assert set(found) == {*text, "point_features", "router_logits"}
    for name in ("logits", "hidden_states", "attentions"):
        assert same(found[name], text[name]), name
    assert same(found.point_features, bridged.tokens) and same(found.router_logits, bridged.routing.logits)
    assert found.past_key_values.get_seq_length() == 7
    body = model.minigpt3d(PROMPT, points=points, **given, **asked)
    assert set(body) == {"last_hidden_state", *set(found) - {"logits"}}
    for name in ("hidden_states", "attentions", "point_features", "router_logits"):
        assert same(body[name], found[name]), name
    assert same(model.language_model.lm_head(body.last_hidden_state), found.logits)
    assert body.past_key_values.get_seq_length() == 7
    # Neither the positions nor the mask are left out.
    for changes in ({"position_ids": None}, {"attention_mask": None}):
        for one, name in ((model, "logits"), (model.minigpt3d, "last_hidden_state")):
            other = one(PROMPT, points=points, **(given | changes))
            assert not torch.allclose(other[name], (found if one is model else body)[name], atol=1e-3)


@torch.no_grad()
def test_nothing_is_returned_that_was_not_asked_for(model):
    for one, own in ((model, "logits"), (model.minigpt3d, "last_hidden_state")):
        assert set(one(ids([2, 3]), use_cache=False)) == {own}
        assert set(one(ids([2, 3]))) == {own, CACHE}
        model.config.output_hidden_states = True
        assert len(one(ids([2, 3])).hidden_states) == 3
        model.config.output_hidden_states = False
        cache = DynamicCache(config=model.config.text_config)
        first = one(ids([2, 3]), past_key_values=cache)
        rest = one(ids([4]), past_key_values=cache)
        assert first.past_key_values is rest.past_key_values is cache and cache.get_seq_length() == 3
        torch.testing.assert_close(rest[own], one(ids([2, 3, 4]))[own][:, 2:], rtol=1e-4, atol=1e-5)
    kept = model(PROMPT, points=clouds(40, 30), logits_to_keep=2)
    torch.testing.assert_close(kept.logits, model(PROMPT, points=clouds(40, 30)).logits[:, -2:])


@torch.no_grad()
def test_the_loss_is_the_mean_over_next_tokens_and_the_balance_of_the_query_sets():
    made = with_large_logits(tiny_model(use_query_experts=True, load_balancing_weight=0.3))
    points, labels = clouds(40, 30), PROMPT.masked_fill(PROMPT == CLOUD[0], -100)
    output = made(PROMPT, points=points, labels=labels)
    logs = output.logits.log_softmax(dim=-1)
    losses = [
        -logs[row, place, labels[row, place + 1]]
        for row in range(2)
        for place in range(6)
        if labels[row, place + 1] != -100
    ]
    chances = output.router_logits.softmax(dim=-1)
    chosen = chances.topk(2).indices
    shares = torch.stack([(chosen == number).float().sum() / 4 for number in range(4)])
    balance = 4 * (shares * chances.mean(dim=0)).sum()
    torch.testing.assert_close(output.loss, torch.stack(losses).mean() + 0.3 * balance)
    shifted = nn.functional.pad(labels[:, 1:], (0, 1), value=-100)
    again = made(PROMPT, points=points, shift_labels=shifted)
    torch.testing.assert_close(again.loss, output.loss)
    parts = made(PROMPT, points=points, labels=labels, num_items_in_batch=torch.tensor(20))
    torch.testing.assert_close(parts.loss, (torch.stack(losses).sum() + 0.3 * balance * len(losses)) / 20)
    # Given features were routed before.
    features = made(PROMPT, point_features=output.point_features, labels=labels)
    torch.testing.assert_close(features.loss, torch.stack(losses).mean())
    assert features.router_logits is None


@torch.no_grad()
def test_clouds_come_once_as_points_features_or_encoded(model):
    points, embedded = clouds(40, 30), model.get_input_embeddings()(ids([2, 3]))
    features = model.get_point_features(points)
    expected = model(PROMPT, points=points).logits
    encoded = {"point": EncodedClouds(features)}
    for given in ({"point_features": features}, {"mm_encoder_outputs": encoded}):
        found = model(PROMPT, **given)
        assert torch.equal(found.logits, expected) and torch.equal(found.point_features, features)
    assert torch.equal(model(ids([2, 3]), mm_encoder_outputs={}).logits, model(inputs_embeds=embedded).logits)
    for given, message in (
        (
            {"points": points, "mm_encoder_outputs": encoded},
            "points with mm_encoder_outputs['point']",
        ),
        (
            {"point_features": features, "mm_encoder_outputs": encoded},
            "with mm_encoder_outputs['point']; expected one",
        ),
        (
            {"points": points, "inputs_embeds": embedded},
            "points with inputs_embeds; expected the cl",
        ),
        ({"point_features": features, "inputs_embeds": embedded}, "expected the clouds' tokens in inputs_embeds"),
        ({"points": []}, "points is an empty list; expected at least one cloud, or None for text only"),
    ):
        with pytest.raises(ValueError, match=re.escape(message)):
            model(**({"input_ids": PROMPT} | given))


@torch.no_grad()
def test_prompts_for_another_program_leave_out_hidden_tokens(model):
    points = clouds(40, 30)
    whole = model.minigpt3d.embed(PROMPT, points=points).inputs_embeds
    assert whole.shape == (2, 7, 16)
    rows = model.prompt_embeddings(PROMPT, points)
    assert isinstance(rows, list) and all(map(torch.equal, rows, whole)) and len(rows) == 2
    shown = model.prompt_embeddings(PROMPT, attention_mask=MASK, point_features=model.get_point_features(points))
    assert torch.equal(shown[0], whole[0]) and torch.equal(shown[1], whole[1, 1:])


def test_flat_tokens_become_a_batch_behind_the_feature_of_their_cloud():
    output = ModelOutput(
        last_hidden_state=torch.arange(8.0).view(4, 2),
        offsets=torch.tensor([3, 4]),
        pooler_output=torch.tensor([[10.0, 11], [12, 13]]),
    )
    tokens, mask = padded_tokens(output)
    assert tokens.tolist() == [[[10, 11], [0, 1], [2, 3], [4, 5]], [[12, 13], [6, 7], [0, 0], [0, 0]]]
    assert mask.tolist() == [[True] * 4, [True, True, False, False]]


def test_sets_are_mixed_and_balanced_by_hand():
    logits = torch.tensor([[2.0, 0.0, -1.0], [0.0, 0.5, 3.0]])
    routing = Routing(logits, torch.tensor([[0, 1], [1, 2]]), torch.tensor([[0.5, 0.25], [0.125, 2.0]]))
    outputs = torch.arange(24.0).view(2, 2, 3, 2)
    expected = torch.stack([0.5 * outputs[0, 0] + 0.25 * outputs[0, 1], 0.125 * outputs[1, 0] + 2 * outputs[1, 1]])
    assert torch.equal(routing.mix(outputs), expected)
    chances = logits.softmax(dim=-1).mean(dim=0)
    wanted = 3 * (0.25 * chances[0] + 0.5 * chances[1] + 0.25 * chances[2])
    torch.testing.assert_close(routing.load_balancing_loss(), wanted)


@torch.no_grad()
@pytest.mark.parametrize("router", ["sparse", "soft", "constant"])
def test_clouds_are_routed_by_their_class_token_and_the_maximum_of_their_own_patches(router):
    experts = with_large_logits(tiny_model(router=router, router_top_k=3)).bridge.experts
    tokens = torch.randn(2, 5, 16, generator=torch.Generator().manual_seed(3))
    mask = torch.tensor([[True] * 5, [True] * 3 + [False] * 2])
    tokens[1, 3:] = 100  # what fills up a cloud
    found = experts.route(tokens, mask)
    if router == "constant":
        assert found.logits is None and found.weights.tolist() == [[0.25] * 4] * 2
        assert found.index.tolist() == [[0, 1, 2, 3]] * 2
        return
    first, _, second = experts.router
    own = [torch.cat([one[0], one[1:end].amax(dim=0)]) for one, end in zip(tokens, (5, 3), strict=True)]
    logits = second(nn.functional.gelu(first(torch.stack(own))))
    torch.testing.assert_close(found.logits, logits)
    chances = logits.softmax(dim=-1)
    for row in range(2):
        kept = sorted(chances[row].argsort(descending=True)[:3].tolist()) if router == "sparse" else [0, 1, 2, 3]
        assert found.index[row].tolist() == kept
        torch.testing.assert_close(found.weights[row], chances[row, kept])
    queries = experts.chosen(found)
    assert queries.shape == (2, found.index.shape[1], PLACES, 16)
    assert all(torch.equal(queries[1, place], experts.queries[n]) for place, n in enumerate(found.index[1].tolist()))
    assert torch.equal(experts.first(3), experts.queries[0].expand(3, 1, -1, -1))


@torch.no_grad()
def test_the_bridge_leaves_out_what_fills_up_a_cloud():
    bridge = with_large_logits(tiny_model(use_query_experts=True)).bridge
    tokens = torch.randn(1, 5, 16, generator=torch.Generator().manual_seed(3))
    alone = bridge(tokens[:, :3])
    filled = bridge(tokens, torch.tensor([[True] * 3 + [False] * 2]))
    torch.testing.assert_close(filled.tokens, alone.tokens, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(bridge(tokens).tokens, alone.tokens, atol=1e-2)


def test_layers_between_the_models_have_the_sizes_of_the_config():
    bridge = tiny_model(point_mlp_widths=(18, 22), router_width=6).bridge
    widths = [(layer.in_features, layer.out_features) for layer in bridge.point_mlp.layers]
    assert widths == [(16, 18), (18, 22), (22, 20)]
    linear = [bridge.experts.router[0], bridge.experts.router[2], bridge.projector.fc1, bridge.projector.fc2]
    sizes = [(layer.in_features, layer.out_features) for layer in linear]
    assert sizes == [(32, 6), (6, 4), (16, 24), (24, 16)]
    assert [queries.shape for queries in bridge.experts.queries] == [(PLACES, 16)] * 4
    tokens = torch.randn(3, 16, generator=torch.Generator().manual_seed(3))
    first, second, third = bridge.point_mlp.layers
    gelu = nn.functional.gelu
    torch.testing.assert_close(bridge.point_mlp(tokens), third(gelu(second(gelu(first(tokens))))))


def test_a_config_tells_of_its_point_encoder():
    config = tiny_config()
    assert (config.in_channels, config.batch_dependent_flags) == (6, [])
    wrapped = {"model_type": "point_transformer_v3", "in_channels": 4}
    assert tiny_config(point_config=wrapped).in_channels == 4
    default = MiniGPT3DConfig()
    point, qformer = default.point_config, default.qformer_config
    assert (point.model_type, point.in_channels, point.num_groups) == ("act3d", 6, 512)
    assert (point.patch_pooled_width, point.drop_path_rate) == (256, 0.1)
    assert (qformer.hidden_dropout_prob, qformer.attention_probs_dropout_prob) == (0.0, 0.0)
    assert default.text_config.model_type == "normed_phi"
    assert tiny_config(router_top_k=4, num_query_experts=4).router_top_k == 4
    assert tiny_config(router="constant").load_balancing_weight == 0.0


def test_a_language_model_has_the_sizes_of_its_config():
    sizes = {**TEXTS["normed_phi"], "resid_pdrop": 0.2, "embd_pdrop": 0.3, "attention_dropout": 0.4, "pad_token_id": 3}
    config = NormedPhiConfig(**sizes, layer_norm_eps=2e-3, post_norm_eps=3e-3)
    made = NormedPhiForCausalLM(config)
    assert made.vocab_size == made.model.vocab_size == 24 and made.model.padding_idx == 3
    assert made.model.embed_tokens.padding_idx == 3 and not made.model.gradient_checkpointing
    layer = made.model.layers[1]
    assert (layer.input_layernorm.eps, layer.post_layernorm.eps, layer.self_attn.layer_idx) == (2e-3, 3e-3, 1)
    assert (made.model.final_layernorm.eps, layer.resid_dropout.p, made.model.embed_dropout.p) == (2e-3, 0.2, 0.3)
    assert layer.self_attn.attention_dropout == 0.4
    assert layer.self_attn.query_key_value.weight.shape == (48, 16) and made.lm_head.bias.shape == (24,)
    assert NormedPhiConfig().rope_parameters["partial_rotary_factor"] == 0.4
    with raises(TypeError, naming="colors"):
        made(ids([1]), colors=3)
    with raises(TypeError, naming="colors"):
        made.model(ids([1]), colors=3)
