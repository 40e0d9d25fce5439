"""Which implementation of an operation runs, and in which precision."""

from typing import Any

import pytest
import torch
from torch import nn

from hf_any3d.modeling.kernels import Kernel, set_kernels
from hf_any3d.modeling.kernels.dispatch import (
    autocast_disabled,
    recomputed,
    statistics_dtype,
    without_autocast,
)


def made(**settings: Any) -> tuple[Kernel, list[tuple]]:
    """An operation whose implementations only tell that they ran: with which arguments, and under autocast or not."""
    ran: list[tuple] = []

    def named(name: str) -> Any:
        def run(values: torch.Tensor, factor: int = 1, *, offset: int = 0) -> torch.Tensor:
            ran.append((name, factor, offset, torch.is_autocast_enabled("cpu")))
            return values * factor + offset

        return run

    settings = {key: named(key) if key == "traced" else value for key, value in settings.items()}
    return Kernel(named("plain"), named("fused"), "Always.", **settings), ran


def never(values: torch.Tensor, factor: int = 1, *, offset: int = 0) -> bool:
    """A condition that these arguments do not meet; others do."""
    return (factor, offset) != (3, 5)


@pytest.mark.parametrize(
    ("settings", "chosen", "compiling", "expected"),
    [
        ({}, "auto", False, "fused"),
        ({}, "torch", False, "plain"),
        ({"devices": ("cpu", "cuda")}, "auto", False, "fused"),
        ({"devices": ("cuda",)}, "auto", False, "plain"),
        ({"condition": never}, "auto", False, "plain"),
        ({"compiles": False}, "auto", False, "fused"),
        ({"compiles": False}, "auto", True, "plain"),
        ({"compiles": True}, "auto", True, "fused"),
        ({"traced": True}, "auto", False, "fused"),
        ({"traced": True}, "auto", True, "traced"),
        ({"traced": True, "condition": never}, "auto", True, "traced"),
    ],
)
@pytest.mark.parametrize("autocast", [False, True])
def test_one_implementation_runs_with_the_arguments(
    settings, chosen, compiling, expected, autocast, use_kernels, monkeypatch
):
    kernel, ran = made(**settings)
    use_kernels(chosen)
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: compiling)
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        result = kernel(torch.ones(2), 3, offset=5)
    # Fused implementations alone work in full precision.
    assert ran == [(expected, 3, 5, autocast and expected != "fused")]
    assert result.tolist() == [8, 8] and result.dtype == torch.float32
    if expected in ("plain", "fused"):
        assert kernel.uses_fused(torch.ones(2), 3, offset=5) is (expected == "fused")


def test_results_of_fused_implementations_are_rounded_if_those_of_plain_ones_are():
    for rounds in (False, True):
        kernel, _ = made(result_in_autocast=rounds)
        with torch.autocast("cpu", torch.bfloat16):
            assert kernel(torch.ones(2)).dtype == (torch.bfloat16 if rounds else torch.float32)
        assert kernel(torch.ones(2)).dtype == torch.float32


def test_a_setting_returns_the_one_before(use_kernels):
    assert use_kernels("torch") == "auto"
    assert set_kernels("auto") == "torch"
    with pytest.raises(ValueError):
        set_kernels("fast")
    assert set_kernels("auto") == "auto"


@pytest.mark.parametrize(
    ("dtype", "on_cpu", "elsewhere"),
    [
        (torch.bfloat16, torch.float64, torch.float32),
        (torch.float32, torch.float64, torch.float32),
        (torch.float64, torch.float64, torch.float64),
    ],
)
def test_statistics_are_summed_in_double_precision_on_the_cpu_only(dtype, on_cpu, elsewhere):
    assert statistics_dtype(torch.empty(1, dtype=dtype)) == on_cpu
    assert statistics_dtype(torch.empty(1, dtype=dtype, device="meta")) == elsewhere


def test_autocast_is_off_within_a_context_and_on_again_after_it():
    with torch.autocast("cpu", torch.bfloat16):
        with autocast_disabled(torch.device("cpu")):
            assert not torch.is_autocast_enabled("cpu")
        with autocast_disabled(torch.device("meta")):
            pass
        assert torch.is_autocast_enabled("cpu")


@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize(
    "gradients",
    [(torch.ones(2),), (None, torch.ones(2)), ([None, torch.ones(2)],), (None, None), ()],
    ids=["one", "the second", "a list", "none", "no outputs"],
)
def test_backward_passes_run_without_autocast(autocast, gradients):
    @without_autocast
    def backward(ctx, *given):
        """Documented."""
        return ctx, given, torch.is_autocast_enabled("cpu")

    has_gradient = any(one is not None for one in gradients)
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        ctx, given, enabled = backward("context", *gradients)
        assert torch.is_autocast_enabled("cpu") is autocast
    assert ctx == "context" and given == gradients and len(given) == len(gradients)
    assert enabled is (autocast and not has_gradient)
    assert backward.__doc__ == "Documented."


def test_a_backward_pass_on_a_device_without_autocast():
    assert without_autocast(lambda ctx, one: one.device.type)(None, torch.empty(1, device="meta")) == "meta"


@pytest.mark.parametrize(("mode", "calls"), [("gradients", 2), ("no gradients", 1), ("compilers", 1)])
def test_cheap_functions_are_computed_again_for_the_backward_pass(mode, calls, monkeypatch):
    layer, count = nn.Linear(3, 3), []

    def double(values: torch.Tensor, *, factor: float) -> torch.Tensor:
        count.append(factor)
        return layer(values).sin() * factor

    values = torch.arange(6.0).view(2, 3)
    expected = torch.autograd.grad(double(values, factor=2.5).sum(), layer.weight)[0]
    count.clear()
    if mode == "compilers":
        monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    with torch.set_grad_enabled(mode != "no gradients"):
        made = recomputed(double, values, factor=2.5)
    if mode != "no gradients":
        # The input needs no gradient, the weights do.
        torch.testing.assert_close(torch.autograd.grad(made.sum(), layer.weight)[0], expected)
    assert count == [2.5] * calls
