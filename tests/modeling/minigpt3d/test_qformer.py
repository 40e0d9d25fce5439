import pytest
import torch
from transformers import BertConfig

from hf_any3d.modeling.act import ActConfig
from hf_any3d.modeling.minigpt3d import Bridge, MiniGPT3DConfig
from hf_any3d.modeling.minigpt3d.lora import add_low_rank
from tests.modeling.minigpt3d.reference_case import ReferenceCase
from tests.reference.fill import points

LORA = {"r": 8, "lora_alpha": 16, "lora_dropout": 0.1, "target_modules": ["query", "key", "value"]}


@pytest.fixture(scope="module")
def case() -> ReferenceCase:
    return ReferenceCase("bridge")


@pytest.fixture(scope="module")
def point_tokens() -> torch.Tensor:
    return torch.from_numpy(4 * points("minigpt3d_bridge", 2, 513, 384) - 2)


@pytest.fixture(scope="module")
def released(case) -> Bridge:
    """The released bridge with four layers in its Q-Former, LoRA included."""
    with torch.device("meta"):
        bridge = Bridge(config_of(num_hidden_layers=4))
        add_low_rank(bridge.qformer, LORA)
    return case.load_into(bridge, "bridge.")


def config_of(num_hidden_layers: int = 12, **changes) -> MiniGPT3DConfig:
    # Of the two models around the bridge only the widths count.
    point, text = ActConfig(hidden_size=384), BertConfig(hidden_size=2560)
    qformer = {"num_hidden_layers": num_hidden_layers}
    return MiniGPT3DConfig(point_config=point, text_config=text, qformer_config=qformer, **changes)


@pytest.fixture
def routed(released):
    """Set the router of the released bridge, and reset it after the test."""

    def choose(router: str) -> Bridge:
        released.config.use_query_experts, released.config.router = True, router
        return released

    yield choose
    released.config.use_query_experts, released.config.router = False, "sparse"


@torch.no_grad()
def steps_of(bridge: Bridge, point_tokens: torch.Tensor, modules: dict[str, torch.nn.Module]):
    """Run the bridge and record outputs of its modules."""
    found = {}
    hooks = [
        module.register_forward_hook(lambda _, __, output, key=key: found.update({key: output}))
        for key, module in modules.items()
    ]
    bridged = bridge(point_tokens)
    for hook in hooks:
        hook.remove()
    return bridged, found


@pytest.mark.slow
def test_first_query_set_gives_the_released_tokens(released, case, point_tokens):
    layers = released.qformer.encoder.layer
    modules = {
        "mlp": released.point_mlp,
        "stage3.query_embed": released.qformer.layernorm,
        "stage3.layer0_self_attention": layers[0].attention,
        "stage3.layer0_cross_attention": layers[0].crossattention,
        **{f"stage3.qformer_layer{index}": layer for index, layer in enumerate(layers)},
        "stage3.llama_proj": released.projector.fc1,
    }
    bridged, found = steps_of(released, point_tokens, modules)
    found["stage3.qformer"] = found["stage3.qformer_layer3"]
    for key, ours in found.items():
        assert case.difference(key, ours) < (5e-4 if key == "stage3.llama_proj" else 1e-4), key
    assert case.difference("stage3.llm_tokens", bridged.tokens) < 5e-4
    assert bridged.routing is None


@pytest.mark.slow
def test_sparse_experts_give_the_released_tokens(routed, case, point_tokens):
    bridge = routed("sparse")
    bridged, found = steps_of(bridge, point_tokens, {"mqe.router_hidden": bridge.experts.router[0]})
    routing = bridged.routing
    assert case.difference("mqe.router_hidden", found["mqe.router_hidden"]) < 1e-5
    assert case.difference("mqe.router_logits", routing.logits) < 1e-5
    assert case.difference("mqe.router_weights", routing.logits.softmax(dim=-1)) < 1e-5
    assert torch.equal(routing.index, case["mqe.topk_index"].long())
    assert case.difference("mqe.topk_weight", routing.weights) < 1e-5
    with torch.no_grad():
        queried = bridge.query(bridge.experts.chosen(routing), bridge.point_mlp(point_tokens))
    assert case.difference("mqe.expert_outputs", queried) < 1e-4
    assert case.difference("mqe.mixed", routing.mix(queried)) < 1e-4
    assert case.difference("mqe.llm_tokens", bridged.tokens) < 5e-4


@pytest.mark.slow
@pytest.mark.parametrize("router", ["soft", "constant"])
def test_other_routers_give_the_released_tokens(routed, case, point_tokens, router):
    with torch.no_grad():
        tokens = routed(router)(point_tokens).tokens
    assert case.difference(f"{router}.llm_tokens", tokens) < 5e-4


@pytest.mark.slow
def test_tokens_of_a_cloud_do_not_depend_on_the_batch(routed, case, point_tokens):
    bridge = routed("sparse")
    with torch.no_grad():
        tokens = torch.cat([bridge(cloud[None]).tokens for cloud in point_tokens])
    assert case.difference("mqe.single.llm_tokens", tokens) < 5e-4


@pytest.mark.slow
@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_query_sets_do_not_attend_to_each_other(routed, point_tokens, attention):
    bridge = routed("soft")
    bridge.qformer.set_attn_implementation(attention)
    seen = bridge.point_mlp(point_tokens[:, :40])
    queries = torch.stack(list(bridge.experts.queries))[:3].expand(2, -1, -1, -1)
    with torch.no_grad():
        together = bridge.query(queries, seen)
        alone = torch.stack([bridge.query(queries[:, [number]], seen)[:, 0] for number in range(3)], dim=1)
    bridge.qformer.set_attn_implementation("sdpa")
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-5)


def count_of(module):
    return sum(parameter.numel() for parameter in module.parameters())


def test_sizes_are_the_published_ones():
    with torch.device("meta"):
        bridge = Bridge(config_of())
        qformer = count_of(bridge.qformer)
        add_low_rank(bridge.qformer, LORA)
    assert qformer == 105_137_664
    assert count_of(bridge.qformer) - qformer == 724_992
    assert count_of(bridge.point_mlp) == 1_378_432
    assert count_of(bridge.experts) == 395_528
    assert (count_of(bridge.projector.fc1), count_of(bridge.projector.fc2)) == (3_149_824, 10_488_320)


@pytest.mark.slow
def test_load_balancing_loss_is_one_for_even_use(routed, point_tokens):
    routing = routed("sparse").experts.route(point_tokens)
    routing.logits = torch.zeros(4, 8)
    routing.index = torch.arange(8).view(4, 2)
    assert routing.load_balancing_loss().item() == pytest.approx(1)
    routing.logits, routing.index = torch.eye(8)[[3, 3]] * 100, torch.tensor([[3], [3]])
    assert routing.load_balancing_loss().item() == pytest.approx(8)


@pytest.mark.slow
def test_weights_of_the_chosen_sets_sum_to_one_on_request(routed, point_tokens):
    bridge = routed("sparse")
    published = bridge.experts.route(point_tokens).weights.sum(dim=-1)
    bridge.config.normalize_router_weights = True
    queried = bridge.experts.route(point_tokens).weights.sum(dim=-1)
    bridge.config.normalize_router_weights = False
    assert (published < 0.99).all()
    torch.testing.assert_close(queried, torch.ones(2))
