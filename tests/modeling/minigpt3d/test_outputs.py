"""What MiniGPT-3D returns, compared with its parts run by hand."""

import pytest
import torch
from torch import nn
from transformers.utils import ModelOutput

from hf_any3d.modeling.minigpt3d.modeling_minigpt3d import padded_tokens
from tests.modeling.minigpt3d.test_minigpt3d import CLOUD, ids
from tests.modeling.minigpt3d.tiny_model import PLACES, clouds, tiny_model

PROMPT = ids([2, *CLOUD, 5, 6, 7], [1, 3, *CLOUD, 8, 9])
MASK = ids([1] * 7, [0] + [1] * 6)


@pytest.fixture(scope="module")
def model():
    """A model with two query sets for each cloud, whose weights tell clouds apart."""
    made = with_large_logits(tiny_model(use_query_experts=True))
    made.set_attn_implementation("eager")
    return made


@torch.no_grad()
def with_large_logits(model):
    """Increase weights so that logits and gradients are of order one."""
    generator = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        if parameter.ndim > 1:
            parameter.normal_(std=0.3, generator=generator)
    return model


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
