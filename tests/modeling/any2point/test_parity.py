"""The model against stored runs of the six released programs, stage by stage."""

from contextlib import nullcontext

import pytest
import torch

from hf_any3d.modeling.any2point.virtual_projection import project
from hf_any3d.modeling.kernels.guided_aggregation.dense import pool_views
from hf_any3d.modeling.kernels.guided_aggregation.ensemble import view_voxel_cosine
from hf_any3d.modeling.point_ops.geometry import line_cells, plane_cells
from tests.modeling.any2point.reference_case import ReferenceCase
from tests.reference.fill import fill
from tests.turns import ALL_PAIRS, some

CASES = [
    "any2point_clip_scan",
    "any2point_clip_scan_batch1",
    "any2point_clip_modelnet",
    "any2point_dinov2_scan",
    "any2point_dinov2_scan_batch1",
    "any2point_dinov2_modelnet",
    "any2point_imagebind_scan",
    "any2point_imagebind_modelnet",
]
# The case whose model has all layers; of the others the first layer, which reads and writes all that they store but
# the answers.
WHOLE = "any2point_clip_scan"
OF_ALL_LAYERS = ("features", "logits")


# To find out how DINOv2 computes takes seconds for each of its cases; ImageBind's have a plane of positions too.
# Programs of one encoder for two data sets have the same stages.
LEFT_OUT = [name for name in CASES if "dinov2" in name or "modelnet" in name]


@pytest.fixture(scope="module", params=some(CASES, left_out=LEFT_OUT))
def run(request):
    """A case, and the tensors that it stores as computed by the model: `{key: tensor}`."""
    is_whole = ALL_PAIRS or request.param == WHOLE
    case = ReferenceCase(request.param, None if is_whole else 1)
    ours = stages_of(case, case.build())
    for key in () if is_whole else OF_ALL_LAYERS:
        del ours[key]
    return case, ours


def stages_of(case, peft_model):
    """Return the tensors that a case stores as computed by the model."""
    model = peft_model.base_model.model
    base = model.any2point
    layer = base.family.layers_of(base.encoder)[0]
    ours, seen = {}, {}

    tokenizer = base.point_tokenizer.modules_to_save["default"]
    hooks = [
        tokenizer.stages[number - 1].register_forward_hook(
            lambda module, args, out, key=f"stage{number}": ours.__setitem__(key, out)
        )
        for number in (1, 2)
    ]
    hooks += [
        tokenizer.register_forward_hook(lambda module, args, out: seen.__setitem__("tokens", out)),
        layer.register_forward_pre_hook(lambda module, args, kwargs: seen.update(kwargs), with_kwargs=True),
        layer.base_layer.register_forward_hook(lambda module, args, out: seen.__setitem__("before", out)),
        layer.register_forward_hook(lambda module, args, out: seen.__setitem__("output", out)),
        model.classifier.modules_to_save["default"].register_forward_hook(
            lambda module, args, out: ours.__setitem__("features", args[0])
        ),
    ]
    expect_warning = pytest.warns(UserWarning, match="other clouds of a batch")
    with torch.no_grad(), expect_warning if base.config.batch_dependent_flags else nullcontext():
        ours["logits"] = peft_model(points=case.points).logits
    tokens, geometry = seen["tokens"], seen["geometry"]

    def batch_first(hidden_states):
        return hidden_states.transpose(0, 1) if geometry.batch_second else hidden_states

    ours["block1_output"] = batch_first(seen["output"])
    ours["block1_before_guidance"] = batch_first(seen["before"])[:, 1:]
    ours["tokens"], ours["centers"], ours["fps_index"] = tokens.tokens, tokens.centers, tokens.index
    ours["view_position"] = geometry.view_positions.squeeze(-1)
    table = base.family.positions(base.encoder)
    ours["position_embedding"] = project(tokens.centers, table, base.config).embedding
    ours["view_embedding"] = view_embedding(tokens.centers, table, base.config)
    guidance = layer.guidance["default"]
    if len(geometry.extent) == 1:
        ours["cell"] = line_cells(ours["view_position"], guidance.cell_size, *geometry.extent)
    else:
        ours["cell"] = plane_cells(ours["view_position"], guidance.cell_size, *geometry.extent)
    ours["voxel"] = geometry.voxels(guidance.voxel_size).row.squeeze(1)
    probe = 20 * torch.from_numpy(fill("probe_tokens", ours["block1_output"].shape))
    with torch.no_grad():
        ours["block1_cosine"] = cosine(layer, ours["block1_before_guidance"], geometry)
        out = layer(batch_first(probe), attention_mask=None, is_causal=False, geometry=geometry)
        ours["probe_output"] = batch_first(out)
        ours["probe_cosine"] = cosine(layer, batch_first(seen["before"])[:, 1:], geometry)
    for hook in hooks:
        hook.remove()
    return ours


def view_embedding(centers, table, config):
    """Return the positions of each view, `(batch, views, tokens, hidden)`, of which the model uses the mean."""
    seen, mean = [], torch.Tensor.mean

    def recorded_mean(self, *args, **kwargs):
        seen.append(self)
        return mean(self, *args, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.Tensor, "mean", recorded_mean)
        project(centers, table, config)
    return next(tensor for tensor in seen if tensor.ndim == 4 and tensor.shape[-1] == table.weight.shape[-1])


def cosine(layer, tokens, geometry):
    """Compute the cosine of views and voxels in a layer from the parts of the aggregation."""
    guidance = layer.guidance["default"]
    members, voxels = geometry.view_cells(guidance.cell_size), geometry.voxels(guidance.voxel_size)
    rows = pool_views(tokens, layer.guided_adapter_attention["default"], members, guidance.pooling)
    rows = layer.guided_adapter_view_norm["default"](rows, members)
    low = torch.full((len(tokens), tokens.shape[1], tokens.shape[2]), -torch.inf)
    index = voxels.row.squeeze(1).unsqueeze(-1).expand_as(tokens)
    low = low.scatter_reduce(1, index, tokens, "amax").unsqueeze(1)
    low = torch.where(voxels.occupied.unsqueeze(-1), low, 0.0) + voxels.pool @ tokens.unsqueeze(1)
    reference = layer.guided_adapter_voxel_norm["default"](low, voxels).squeeze(1)
    return view_voxel_cosine(rows, reference, members, voxels)


@pytest.mark.slow
@pytest.mark.parametrize("key", ["centers", "fps_index", "cell"])
def test_discrete_decisions_are_identical(run, key):
    case, ours = run
    assert torch.equal(ours[key], case.expected[key].to(ours[key].dtype))


@pytest.mark.slow
def test_tokens_share_the_voxels_of_the_original(run):
    case, ours = run
    expected = case.expected["voxel"]
    for cloud in range(len(expected)):
        same = expected[cloud][:, None] == expected[cloud][None]
        assert torch.equal(ours["voxel"][cloud][:, None] == ours["voxel"][cloud][None], same)


STAGES = (
    *("stage1", "stage2", "tokens", "view_position", "view_embedding", "position_embedding"),
    *("block1_before_guidance", "block1_cosine", "block1_output", "probe_output", "probe_cosine"),
    *OF_ALL_LAYERS,
)


@pytest.mark.slow
def test_every_stored_stage_agrees_to_one_in_ten_thousand(run):
    case, ours = run
    tried = [key for key in STAGES if key in ours]
    assert len(tried) >= len(STAGES) - len(OF_ALL_LAYERS)
    for key in tried:
        expected = case.expected[key].float()
        found = case.stored(key, ours[key])
        assert found.shape == expected.shape
        error = (found - expected).abs().max() / expected.abs().max()
        assert error < 1e-4, f"{key}: largest difference is {error:.1e} of the largest value"
        tolerance = case.manifest["tolerance"].get(key)
        if isinstance(tolerance, float):
            assert (found - expected).abs().max() <= tolerance, key
