"""The definition of the guided adapter against a plain loop over views and cells, and its faster forms against it."""

import copy

import pytest
import torch
from torch import nn

from hf_any3d.modeling.kernels import set_kernels
from hf_any3d.modeling.kernels.guided_aggregation import choice
from hf_any3d.modeling.point_ops.geometry import FlatGeometry, Geometry
from hf_any3d.tuners.guided_adapter.faster import add_bottleneck
from hf_any3d.tuners.guided_adapter.method import CellAttention, CellNorm, Guidance, guided_aggregation
from tests.turns import some

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


def by_definition(hidden_states, attention, view_norm, voxel_norm, geometry, guidance):
    cells, voxels = geometry.view_cells(guidance.cell_size), geometry.voxels(guidance.voxel_size)
    special = geometry.special_tokens
    modules = attention, view_norm, voxel_norm
    changed = guided_aggregation(hidden_states[:, special:], cells, voxels, *modules, guidance)
    return torch.cat([hidden_states[:, :special], changed], dim=1)


@pytest.mark.parametrize("cell_size", [None, 1.1, 100.0])
@pytest.mark.parametrize("pooling", ["mean", "max_mean"])
def test_the_definition_equals_the_plain_program(case, pooling, cell_size):
    guidance = Guidance(0.7, cell_size, 0.4, pooling)
    found = by_definition(*case, guidance)
    torch.testing.assert_close(found, plain_aggregation(*case, guidance), rtol=1e-9, atol=1e-9)
    assert (found[:, 1:] - case[0][:, 1:]).abs().amax(dim=-1).min() > 1e-3


@pytest.fixture
def kernels_setting():
    """`set_kernels` that is undone after the test."""
    before = set_kernels("auto")
    yield set_kernels
    set_kernels(before)


def flat_geometry():
    """Voxels of two clouds of 4 and 10 in one list."""
    generator = torch.Generator().manual_seed(5)
    cells = torch.randint(5, (BATCH * TOKENS, 3), generator=generator)
    return FlatGeometry(cells, cells * 0.02, (torch.arange(BATCH * TOKENS) > 3).long(), 2)


def plane_geometry(line):
    generator = torch.Generator().manual_seed(4)
    place = torch.rand(BATCH, VIEWS, TOKENS, 2, generator=generator, dtype=torch.float64) * 5
    return Geometry(line.centers, place, (6.0, 5.0), 2.0, batch_second=True)


# Every form: the fused and the plain sum of matrices, the table of accelerators, and the list of all clouds.
@pytest.mark.parametrize(
    ("training", "count_empty"),
    # Only in training the empty cells count.
    some([(True, False), (True, True), (False, False), (False, True)], left_out=[(False, True)]),
)
@pytest.mark.parametrize("pooling", ["mean", "max_mean"])
@pytest.mark.parametrize("kind", ["line", "plane", "flat"])
@pytest.mark.parametrize("setting", ["auto", "torch", "accelerator"])
def test_every_form_equals_the_definition(case, setting, kind, pooling, count_empty, training, kernels_setting):
    tokens, *_, line = case
    views = 4 if kind == "flat" else VIEWS  # the grids of `FlatGeometry`
    norms = CellNorm(views, HIDDEN, count_empty), CellNorm(1, HIDDEN)
    modules = [randomize(module.double()) for module in (CellAttention(HIDDEN, views, WIDTH, HEADS), *norms)]
    if kind == "plane":
        tokens = tokens.transpose(0, 1)
    elif kind == "flat":
        tokens = tokens[:, 1:].flatten(0, 1)
    places = {"line": line, "plane": plane_geometry(line), "flat": flat_geometry()}

    def run(how):
        kernels_setting(how)
        own = nn.ModuleList(modules)
        own = copy.deepcopy(own).train(training)
        # New, as a batch is counted once
        geometry = copy.deepcopy(places[kind])
        inputs = tokens.detach().clone().requires_grad_()
        guidance = Guidance(0.7, None, 0.4, pooling)
        found = choice.guided_aggregation(guided_aggregation, inputs, *own, geometry, guidance)
        (found * torch.arange(found.numel()).sin().view_as(found)).sum().backward()
        return [found, inputs.grad, *(weight.grad for weight in own.parameters()), *own.buffers()]

    found, expected = run(setting), run("reference")
    assert (expected[0] - tokens).abs().amax() > 1e-2 and all(part.abs().amax() > 0 for part in expected)
    for one, other in zip(found, expected, strict=True):
        # Shares of cells and places are kept in single precision.
        torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("setting", ["auto", "torch", "accelerator"])
def test_every_bottleneck_equals_the_definition(setting, kernels_setting):
    down, up = (randomize(nn.Linear(*sizes).double()) for sizes in ((HIDDEN, 3), (3, HIDDEN)))
    branch = torch.randn(2, TOKENS, HIDDEN, dtype=torch.float64)
    results = []
    for how in (setting, "reference"):
        kernels_setting(how)
        inputs = branch.clone().requires_grad_()
        found = add_bottleneck(inputs, down, up, nn.Dropout(0.0), 0.3)
        weights = [inputs, *down.parameters(), *up.parameters()]
        results.append([found, *torch.autograd.grad(found.square().sum(), weights)])
    assert (results[1][0] - branch).abs().amax() > 1e-2
    torch.testing.assert_close(*results)


def test_hooks_of_the_attention_are_called(case):
    tokens, attention, *modules, geometry = case
    guidance, calls = Guidance(0.7, None, 0.4, "mean"), []
    expected = choice.guided_aggregation(guided_aggregation, tokens, attention, *modules, geometry, guidance)
    attention.register_forward_hook(lambda *_: calls.append(1))
    found = choice.guided_aggregation(guided_aggregation, tokens, attention, *modules, geometry, guidance)
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)
    assert calls == [1]


def test_norm_of_a_single_cell_is_finite():
    geometry = Geometry(torch.zeros(1, 2, 3), torch.zeros(1, 1, 2, 1), (1.0,), 1.0)
    norm = CellNorm(1, HIDDEN).train()
    rows = norm(torch.randn(1, 1, 1, HIDDEN), geometry.view_cells())
    assert rows.isfinite().all() and norm.running_var.isfinite().all()


def test_gradients_equal_finite_differences(case):
    tokens, attention, view_norm, voxel_norm, geometry = case
    modules = [module.train() for module in (attention, view_norm, voxel_norm)]
    names = [(module, name) for module in modules for name, _ in module.named_parameters()]

    def aggregate(tokens, *weights):
        for (module, name), weight in zip(names, weights, strict=True):
            module._parameters.pop(name, None)
            setattr(module, name, weight)
        return by_definition(tokens, *modules, geometry, Guidance(0.7, None, 0.4, "max_mean"))

    weights = [getattr(module, name).detach().requires_grad_() for module, name in names]
    assert torch.autograd.gradcheck(aggregate, (tokens.requires_grad_(), *weights), fast_mode=True)
