"""Every operation of the table: its two implementations agree, and the setting chooses between them."""

import copy
import re
import runpy
from pathlib import Path

import pytest
import torch
from torch import nn

from hf_any3d.modeling import kernels
from hf_any3d.modeling.act import ActAutoencoder, ActAutoencoderConfig
from hf_any3d.modeling.any2point.point_tokenizer import ResidualBlock
from hf_any3d.modeling.kernels import dispatch
from hf_any3d.modeling.kernels.cells import FlatCells, membership
from hf_any3d.modeling.kernels.guided_aggregation.ensemble import BatchNorm
from hf_any3d.modeling.kernels.guided_aggregation.table import guided_table
from hf_any3d.modeling.kernels.neighborhoods import Neighborhoods, offset_frequencies
from hf_any3d.modeling.point_encoders.patches import PatchEncoder
from hf_any3d.modeling.point_ops import neighbor_table
from tests.errors import raises
from tests.tiny_encoders import adapted_model, clouds
from tests.turns import by_turns

CLOUDS, VIEWS, TOKENS, CELLS, HIDDEN, WIDTH = 2, 3, 10, 7, 8, 4


def randn(*shape: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(sum(shape))
    return torch.randn(shape, generator=generator, dtype=torch.float64).requires_grad_()


def randint(high: int, *shape: int) -> torch.Tensor:
    return torch.randint(high, shape, generator=torch.Generator().manual_seed(7))


MEMBERS, VOXELS = membership(randint(CELLS, CLOUDS, VIEWS, TOKENS), CELLS), membership(randint(6, 2, 1, 10), TOKENS)
OCCUPIED = MEMBERS.occupied.double()
FLAT = FlatCells(torch.tensor([[0, 1, 2, 0, 1, 2, 3, 0, 0, 4], [1, 1, 0, 2, 0, 1, 1, 3, 2, 2]]))
COUNT = OCCUPIED.sum(dim=(0, 2)).unsqueeze(-1)
OWN_OCCUPIED = VOXELS.occupied.double()
OWN_COUNT = OWN_OCCUPIED.sum(dim=(0, 2)).unsqueeze(-1)
# Empty cells count, as in the released programs.
GUIDED = guided_table(MEMBERS, VOXELS, special=1, heads=2, count_empty=True, dtype=torch.float64)
BLOCKS = nn.ModuleList(ResidualBlock(12, 5) for _ in range(2)).double()
PATCH_ENCODER = PatchEncoder(3, 6, (4, 6, 8)).double()
# 40 of 64 cells of a cube, in any order.
_NUMBERS = torch.randperm(64, generator=torch.Generator().manual_seed(7))[:40]
CELL_NEIGHBORS = neighbor_table(
    torch.stack([_NUMBERS // 16, _NUMBERS // 4 % 4, _NUMBERS % 4], dim=1), torch.zeros(40, dtype=torch.long), 1
)


def blocks_on(features: torch.Tensor, offsets: torch.Tensor) -> tuple:
    frequencies = offset_frequencies(12, 1000.0, 1.0).double()
    return Neighborhoods(features, randint(20, 9, 6), randint(20, 9), offsets, frequencies), BLOCKS


# For each operation: tensors to differentiate, and the arguments made from them.
CASES = {
    "pooled_blocks": ((randn(20, 6),), lambda features: blocks_on(features, randn(9, 6, 3).detach())),
    "pair_attention": ((randn(TOKENS, 3 * WIDTH),), lambda qkv: (qkv, FLAT.pairs[1], 2, 0.7)),
    "normed_ensemble": (
        (
            randn(CLOUDS, VIEWS, CELLS, 3),
            randn(CLOUDS, 1, TOKENS, 3),
            randn(VIEWS, 3),
            randn(VIEWS, 3),
            randn(1, 3),
            randn(1, 3),
        ),
        lambda rows, others, weight, bias, own_weight, own_bias: (
            rows,
            others,
            BatchNorm(OCCUPIED, weight, bias, COUNT, COUNT + 1, 1e-5),
            BatchNorm(OWN_OCCUPIED, own_weight, own_bias, OWN_COUNT, OWN_COUNT.clone(), 1e-5),
            MEMBERS,
            VOXELS,
            0.3,
            1,
        ),
    ),
    "table_aggregation": (
        (
            randn(CLOUDS, 1 + TOKENS, HIDDEN),
            randn(CLOUDS, 1 + TOKENS, VIEWS * WIDTH),
            randn(VIEWS * WIDTH, HIDDEN),
            randn(VIEWS, HIDDEN),
            randn(VIEWS, HIDDEN),
            randn(VIEWS, HIDDEN),
            randn(1, HIDDEN),
            randn(1, HIDDEN),
        ),
        lambda *tensors: (*tensors, GUIDED, 0.3, 1e-5),
    ),
    "bottleneck": (
        (randn(CLOUDS, TOKENS, HIDDEN), randn(WIDTH, HIDDEN), randn(WIDTH), randn(HIDDEN, WIDTH), randn(HIDDEN)),
        lambda *tensors: (*tensors, 0.0, 0.3),
    ),
    "quick_gelu": ((randn(5, 7),), lambda values: (values,)),
    "pooled_patches": ((), lambda: (randn(2, 5, 6, 3).detach(), PATCH_ENCODER)),
    "farthest_point_sample": ((), lambda: (randn(2, 40, 3), 9, 3, 0.1, "cuda")),
    "knn": ((), lambda: (randn(2, 5, 3), randn(2, 70, 3), 4, "auto")),
    "submanifold_convolution": (
        (randn(40, 3), randn(2, 3, 3, 3, 3), randn(2)),
        lambda values, weight, bias: (values, weight, bias, CELL_NEIGHBORS),
    ),
}
# Statistics in float32 whatever the precision of the rows.
TOLERANCES = {"pooled_blocks": 1e-6, "knn": 1e-6}
MODULES = [BLOCKS, PATCH_ENCODER]


def trained(name: str) -> list[nn.Parameter]:
    modules = {"pooled_blocks": BLOCKS, "pooled_patches": PATCH_ENCODER}
    module = modules.get(name)
    return [] if module is None else list(module.parameters())


def results_of(name: str, call: callable) -> tuple[list[torch.Tensor], tuple, list[torch.Tensor]]:
    """Outputs, gradients and running statistics of one call in training."""
    tensors, arguments = CASES[name]
    buffers = [buffer for module in MODULES for buffer in module.buffers()]
    before = [buffer.clone() for buffer in buffers]
    outputs = call(*arguments(*tensors))
    outputs = list(outputs) if isinstance(outputs, tuple) else [outputs]
    total = sum((part * torch.arange(part.numel()).sin().view_as(part)).sum() for part in outputs)
    inputs = [*tensors, *trained(name)]
    gradients = torch.autograd.grad(total, inputs, allow_unused=True) if total.requires_grad else ()
    after = [buffer.clone() for buffer in buffers]
    for buffer, value in zip(buffers, before, strict=True):
        buffer.copy_(value)
    return outputs, gradients, after


def test_every_operation_has_a_case():
    assert CASES.keys() == kernels.TABLE.keys()
    assert all(getattr(kernels, name) is kernel for name, kernel in kernels.TABLE.items())


@pytest.mark.parametrize("name", CASES)
def test_fused_equals_plain(name):
    kernel, tolerance = kernels.TABLE[name], TOLERANCES.get(name, 1e-9)
    fused, plain = results_of(name, kernel.fused), results_of(name, kernel.plain)
    for found, expected in zip(fused, plain, strict=True):
        for one, other in zip(found, expected, strict=True):
            other = torch.zeros_like(one) if other is None else other
            torch.testing.assert_close(one, other, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("count_empty", [True, False])
def test_what_compilers_are_given_aggregates_as_the_plain_table(count_empty):
    table = guided_table(MEMBERS, VOXELS, special=1, heads=2, count_empty=count_empty, dtype=torch.float64)
    tensors, kernel = CASES["table_aggregation"][0], kernels.table_aggregation
    found, expected = (form(*tensors, table, 0.3, 1e-5) for form in (kernel.traced, kernel.plain))
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)
    weights = torch.arange(found[0].numel()).sin().view_as(found[0])
    gradients = [torch.autograd.grad(out, tensors, weights) for out, *_ in (found, expected)]
    torch.testing.assert_close(*gradients, rtol=1e-9, atol=1e-9)
    assert torch.autograd.gradcheck(
        lambda *inputs: kernel.traced(*inputs, table, 0.3, 1e-5)[0], tensors, fast_mode=True
    )


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(CASES.keys() - TOLERANCES.keys() - {"pooled_patches"}))
def test_gradients_equal_finite_differences(name):
    tensors, arguments = CASES[name]
    if tensors:
        fused = kernels.TABLE[name].fused
        assert torch.autograd.gradcheck(lambda *t: _first(name, fused(*arguments(*t))), tensors, fast_mode=True)


def _first(name: str, outputs: torch.Tensor | tuple) -> torch.Tensor:
    if name in ("normed_ensemble", "table_aggregation"):
        return outputs[0]
    return outputs[1] if isinstance(outputs, tuple) else outputs


@pytest.mark.parametrize("name", CASES)
def test_setting_and_table_choose_the_implementation(name, use_kernels):
    kernel = kernels.TABLE[name]
    arguments = CASES[name][1](*CASES[name][0])
    use_kernels("torch")
    assert not kernel.uses_fused(*arguments)
    use_kernels("auto")
    assert kernel.uses_fused(*arguments) == (kernel.devices is None or "cpu" in kernel.devices)
    assert kernel.reason.endswith(".")


@pytest.mark.parametrize("name", CASES)
def test_autocast_rounds_results_no_more_than_its_own_precision(name):
    """Under autocast the fused implementation works in full precision, forward and backward."""
    kernel = kernels.TABLE[name]
    expected, arguments = results_of(name, kernel), CASES[name][1](*CASES[name][0])
    is_fused = kernel.uses_fused(*arguments)
    with torch.autocast("cpu", torch.bfloat16):
        found = results_of(name, kernel)
        assert kernel.uses_fused(*arguments) == is_fused
    # The gradient of a result that is rounded afterwards is rounded, too.
    rounded = kernel.result_in_autocast
    tolerance = 1e-2 if rounded else 1e-6
    for one, other in list(zip(found, expected, strict=True))[: 1 if rounded else None]:
        one = [part.to(like.dtype) for part, like in zip(one, other, strict=True)]
        torch.testing.assert_close(one, list(other), rtol=tolerance, atol=tolerance)


def test_page_lists_every_operation():
    page = (Path(__file__).parents[3] / "docs" / "kernels.md").read_text(encoding="utf-8")
    table = page.partition("## What is fused")[2].partition("\n## ")[0]
    first_cells = re.findall(r"^\| (`.+?`) \|", table, re.MULTILINE)
    assert sorted(re.findall(r"`(\w+)`", " ".join(first_cells))) == sorted(kernels.TABLE)
    assert all(kernel.reason for kernel in kernels.TABLE.values())


def test_setting_is_checked():
    with raises(ValueError, naming="setting='cuda'; expected one of 'auto'"):
        kernels.set_kernels("cuda")


def test_environment_variable_sets_the_default(monkeypatch):
    monkeypatch.setenv("HF_ANY3D_KERNELS", "torch")
    assert runpy.run_path(dispatch.__file__)["_setting"] == "torch"
    monkeypatch.setenv("HF_ANY3D_KERNELS", "")
    with raises(ValueError, naming="HF_ANY3D_KERNELS"):
        runpy.run_path(dispatch.__file__)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("build", "setting"), by_turns(["any2point", "any2point_checkpointed", "act_autoencoder"], ["auto", "accelerator"])
)
def test_whole_models_give_the_same_results_with_plain_operations(use_kernels, build, setting):
    model, inputs = globals()[build]()
    results = []
    for chosen in (setting, "torch"):
        use_kernels(chosen)
        copied = copy.deepcopy(model).train()
        torch.manual_seed(0)
        output = copied(**inputs)
        output.loss.backward()
        gradients = {name: p.grad for name, p in copied.named_parameters() if p.grad is not None}
        results.append((output, gradients, dict(copied.named_buffers())))
    (fused, gradients, buffers), (plain, expected, expected_buffers) = results
    torch.testing.assert_close(fused.logits, plain.logits, rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(fused.loss, plain.loss, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(buffers, expected_buffers, rtol=1e-3, atol=1e-5)
    assert gradients.keys() == expected.keys()
    largest = max(gradient.abs().max() for gradient in expected.values())
    for name, gradient in gradients.items():
        assert (gradient - expected[name]).abs().max() < 1e-3 * largest, name


def any2point():
    model = adapted_model("clip_text_model", num_layers=1, head_dropout=0.0)
    return model, {"points": clouds(), "labels": torch.arange(3)}


def any2point_checkpointed():
    # Two layers that share one attention, whose folded weights must not be kept from one to the next.
    model = adapted_model("clip_text_model", num_layers=2, head_dropout=0.0)
    model.base_model.model.any2point.gradient_checkpointing_enable()
    return model, {"points": clouds(), "labels": torch.arange(3)}


def act_autoencoder():
    config = ActAutoencoderConfig(
        num_groups=8, group_size=8, num_codes=16, hidden_size=16, graph_widths=(8, 8, 8, 8), sample_codes=False
    )
    torch.manual_seed(0)
    return ActAutoencoder(config), {"points": clouds()}
