"""The guided adapter against a plain loop over views and cells."""

import pytest
import torch
from torch import nn

from hf_any3d.modeling.point_ops.geometry import Geometry
from hf_any3d.tuners.guided_adapter.module import CellAttention, CellNorm, Guidance, guided_aggregation

BATCH, VIEWS, TOKENS, HIDDEN, WIDTH, HEADS = 2, 3, 7, 8, 6, 2


def randomize(module):
    generator = torch.Generator().manual_seed(11)
    with torch.no_grad():
        for tensor in (*module.parameters(), *module.buffers()):
            tensor.copy_(torch.rand(tensor.shape, generator=generator, dtype=tensor.dtype) + 0.2)
    return module


@pytest.fixture
def case():
    """Tokens, their places on a line of three cells, and modules with random weights, in float64."""
    generator = torch.Generator().manual_seed(3)
    draw = {"generator": generator, "dtype": torch.float64}
    place = torch.rand(BATCH, VIEWS, TOKENS, 1, **draw) * 9
    place[0] = place[0].clamp(max=5)  # empty cells
    geometry = Geometry(torch.rand(BATCH, TOKENS, 3, **draw), place, (9.0,), 3.0)
    tokens = torch.randn(BATCH, 1 + TOKENS, HIDDEN, **draw)
    attention = randomize(CellAttention(HIDDEN, VIEWS, WIDTH, HEADS).double().eval())
    view_norm = randomize(CellNorm(VIEWS, HIDDEN).double().eval())
    voxel_norm = randomize(CellNorm(1, HIDDEN).double().eval())
    return tokens, attention, view_norm, voxel_norm, geometry


def cells_of(place, size):
    cells = {}
    for token, position in enumerate((place / size).floor().tolist()):
        cells.setdefault(tuple(position), []).append(token)
    return list(cells.values())


def attend(tokens, attention, view):
    """Plain multi-head attention among the tokens of one cell, `(cell tokens, hidden)`."""
    normed = nn.functional.layer_norm(
        tokens, (HIDDEN,), attention.norm_weight[view], attention.norm_bias[view], eps=1e-5
    )
    triple = normed @ attention.qkv_weight[view].T + attention.qkv_bias[view]
    query, key, value = triple.split(WIDTH, dim=-1)
    heads = []
    for head in range(HEADS):
        part = slice(head * WIDTH // HEADS, (head + 1) * WIDTH // HEADS)
        scores = query[:, part] @ key[:, part].T / WIDTH**0.5
        heads.append(scores.softmax(dim=-1) @ value[:, part])
    return torch.cat(heads, dim=-1) @ attention.out_weight[view].T + attention.out_bias[view]


def batch_norm(row, norm, view):
    scale = norm.weight[view] / (norm.running_var[view] + norm.eps).sqrt()
    return nn.functional.gelu((row - norm.running_mean[view]) * scale + norm.bias[view])


def plain_aggregation(hidden_states, attention, view_norm, voxel_norm, geometry, guidance):
    out = hidden_states.clone()
    for batch, sequence in enumerate(hidden_states):
        tokens, centers = sequence[1:], geometry.centers[batch]
        voxel_of, said, cosine = {}, {}, torch.zeros(VIEWS, TOKENS, dtype=tokens.dtype)
        for members in cells_of(centers - centers.amin(dim=0), guidance.voxel_size):
            row = tokens[members].amax(dim=0) + tokens[members].mean(dim=0)
            voxel_of.update(dict.fromkeys(members, batch_norm(row, voxel_norm, 0)))
        for view in range(VIEWS):
            for members in cells_of(geometry.view_positions[batch, view], guidance.cell_size or geometry.cell_size):
                gathered = tokens[members] + attend(tokens[members], attention, view)
                row = gathered.mean(dim=0)
                if guidance.pooling == "max_mean":
                    row = row + gathered.amax(dim=0)
                for token in members:
                    said[view, token] = batch_norm(row, view_norm, view)
                    cosine[view, token] = torch.cosine_similarity(said[view, token], voxel_of[token], dim=0)
        weight = (1 + cosine) / 2
        weight = weight / weight.sum(dim=0)
        for token in range(TOKENS):
            added = sum(weight[view, token] * said[view, token] for view in range(VIEWS))
            out[batch, 1 + token] += guidance.scale * added
    return out


@pytest.mark.parametrize("cell_size", [None, 1.1, 100.0])
@pytest.mark.parametrize("pooling", ["mean", "max_mean"])
def test_aggregation_equals_the_plain_program(case, pooling, cell_size):
    guidance = Guidance(0.7, cell_size, 0.4, pooling)
    expected = plain_aggregation(*case, guidance)
    found = guided_aggregation(*case, guidance)
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)
    assert torch.equal(found[:, 0], case[0][:, 0])
    assert (found[:, 1:] - case[0][:, 1:]).abs().amax(dim=-1).min() > 1e-3


def test_norm_of_a_single_cell_is_finite():
    geometry = Geometry(torch.zeros(1, 2, 3), torch.zeros(1, 1, 2, 1), (1.0,), 1.0)
    norm = CellNorm(1, HIDDEN).train()
    rows = norm(torch.randn(1, 1, 1, HIDDEN), geometry.view_cells())
    assert rows.isfinite().all() and norm.running_var.isfinite().all()


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("pooling", ["mean", "max_mean"])
def test_gradients_equal_finite_differences(case, pooling, training):
    tokens, attention, view_norm, voxel_norm, geometry = case
    modules = [module.train(training) for module in (attention, view_norm, voxel_norm)]
    names = [(module, name) for module in modules for name, _ in module.named_parameters()]

    def aggregate(tokens, *weights):
        for (module, name), weight in zip(names, weights, strict=True):
            module._parameters.pop(name, None)
            setattr(module, name, weight)
        return guided_aggregation(tokens, *modules, geometry, Guidance(0.7, None, 0.4, pooling))

    weights = [getattr(module, name).detach().requires_grad_() for module, name in names]
    assert torch.autograd.gradcheck(aggregate, (tokens.requires_grad_(), *weights), fast_mode=True)
