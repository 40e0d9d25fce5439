"""Our methods on Point Transformer V3: flat lists of voxels, pooled between stages of different widths."""

import pytest
import torch
from peft import get_peft_model

from hf_any3d import (
    GuidedAdapterConfig,
    PointTransformerV3ForPointCloudClassification,
    PointTransformerV3ForPointCloudSegmentation,
    PromptTokensConfig,
    SideTuningConfig,
)
from hf_any3d.modeling.point_ops.geometry import GRIDS, FlatGeometry
from hf_any3d.tuners.targets import layer_stack
from tests.common.case import spread_weights, varied_clouds
from tests.tiny_ptv3 import tiny_ptv3

CONFIGS = {
    "guided": GuidedAdapterConfig(r=4, init_weights=False, gate=0.8),
    "prompts": PromptTokensConfig(num_prompts=3),
    "side": SideTuningConfig(r=8, init_weights=False),
}


def adapted(config, model_class=PointTransformerV3ForPointCloudSegmentation, **settings):
    model = tiny_ptv3(model_class, **settings)
    spread_weights(model)
    torch.manual_seed(1)
    return get_peft_model(model, config).eval()


@pytest.mark.slow
@torch.no_grad()
@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_clouds_of_a_batch_do_not_change_each_other(config):
    model = adapted(config, patch_sizes=(16, 4))
    clouds = [varied_clouds(1, size, 6, seed)[0] for seed, size in enumerate((40, 90, 7))]
    together = model(points=clouds).logits
    for cloud, logits in zip(clouds, together, strict=True):
        torch.testing.assert_close(logits[: len(cloud)], model(points=[cloud]).logits[0], rtol=1e-4, atol=1e-5)


def test_cells_are_voxels_of_larger_shifted_grids_in_each_cloud():
    generator = torch.Generator().manual_seed(0)
    cells, cloud = torch.randint(9, (60, 3), generator=generator), torch.arange(60) // 30
    geometry = FlatGeometry(cells, cells * 0.02, cloud, 2)
    for number, row in enumerate(geometry.view_cells().row):
        expected = torch.cat([(cells + number) // GRIDS, cloud[:, None]], dim=1)
        assert torch.equal(row[:, None] == row, (expected[:, None] == expected).all(dim=2))
    assert geometry.view_cells() is geometry.view_cells(4.0)
    # In radii of the cloud, whatever its units.
    larger = FlatGeometry(cells, cells * 5.0 + 1, cloud, 2).voxels(0.3).row
    assert torch.equal(larger, geometry.voxels(0.3).row) and 2 < len(larger.unique()) < 60


def test_attention_is_shared_within_a_stage():
    model = adapted(CONFIGS["guided"], depths=(2, 2))
    attentions = [
        layer.guided_adapter_attention["default"].qkv_weight.shape[-1] if layer.guided_adapter_attention else None
        for layer in layer_stack(model.get_base_model()).layers
    ]
    assert attentions == [16, None, 24, None]


@pytest.mark.slow
@torch.no_grad()
def test_prompts_are_seen_by_every_patch_with_every_attention(varlen):
    model = adapted(CONFIGS["prompts"], patch_sizes=(16, 4), relative_position_bias=True)
    points = varied_clouds(2, 40, 6)
    model.get_base_model().config._attn_implementation = "eager"
    output = model(points=points, output_attentions=True)
    patches = output.attentions[0]  # (patches, heads, voxels, voxels + prompts)
    assert len(patches) > 2 and patches.shape[-1] == 16 + 3 and patches[..., -3:].sum(dim=-1).min() > 1e-3
    plain = adapted(CONFIGS["prompts"], patch_sizes=(16, 4))
    logits = []
    for kind in ("eager", "sdpa", varlen):
        plain.get_base_model().config._attn_implementation = kind
        logits.append(plain(points=points).logits)
    for other in logits[1:]:
        torch.testing.assert_close(other, logits[0], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("model_class", "labels", "stages"),
    [
        (PointTransformerV3ForPointCloudSegmentation, torch.arange(3)[:, None].expand(-1, 48), 2),
        (PointTransformerV3ForPointCloudClassification, torch.arange(3), 1),
    ],
)
def test_nothing_is_propagated_back_through_the_stages(model_class, labels, stages):
    model = adapted(CONFIGS["side"], model_class).train()
    outputs = []
    for layer in layer_stack(model.get_base_model()).layers:
        layer.base_layer.register_forward_hook(lambda module, args, output: outputs.append(output))
    model(points=varied_clouds(3, channels=6), labels=labels).loss.backward()
    assert len(outputs) == 3 and not any(output.requires_grad for output in outputs)
    trained = {name: p.grad for name, p in model.named_parameters() if p.requires_grad}
    assert all(gradient is not None and gradient.abs().max() > 0 for gradient in trained.values())
    # The head reads the features of all stages, or only those of the last one.
    assert sum("side_tuning_up.default.weight" in name for name in trained) == stages


@torch.no_grad()
def test_the_next_stage_does_not_read_what_the_side_network_adds():
    model = adapted(CONFIGS["side"])
    encoder, points = model.get_base_model().base_model, varied_clouds(2, channels=6)
    states = model(points=points, output_hidden_states=True).hidden_states
    with model.disable_adapter():
        plain = model(points=points, output_hidden_states=True).hidden_states
        bare = encoder.encode(points).features
    changed = encoder.encode(points).features
    assert all(torch.equal(*pair) for pair in zip(states[:-1], plain[:-1], strict=True))
    assert all((one - other).abs().max() > 1e-3 for one, other in zip(changed, bare, strict=True))


@pytest.mark.parametrize(
    ("layers", "message"),
    [([0, 2], r"leaves out .*blocks\.1, the first layer of a stage"), ([1], r"blocks\.2, the enc")],
)
def test_layers_that_a_side_network_needs_are_named(layers, message):
    with pytest.raises(ValueError, match=message):
        adapted(SideTuningConfig(layers_to_transform=layers))
    assert adapted(SideTuningConfig(layers_to_transform=[1, 2]))
