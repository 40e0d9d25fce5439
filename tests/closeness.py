"""Compare outputs of two models, relative to the spread of the outputs."""

from __future__ import annotations

import torch


def assert_nearly_equal(found: torch.Tensor, expected: torch.Tensor, relative: float = 0.05) -> None:
    """Assert that outputs agree up to a fraction of their spread.

    The spread ignores the mean, so that a model that outputs zeros, or one number for everything, fails however large
    that number is.

    Args:
        found: Outputs of the model under test.
        expected: Expected outputs, of the same shape and of order one.
        relative: The largest difference (root mean square) over the spread (standard deviation) of `expected`.
    """
    assert found.shape == expected.shape, f"shape {tuple(found.shape)}; expected {tuple(expected.shape)}"
    found, expected = found.detach().double(), expected.detach().double()
    spread = (expected - expected.mean()).square().mean().sqrt().item()
    assert spread > 0.05, f"the expected outputs hardly differ (spread {spread:.3g}): nothing would be compared"
    error = (found - expected).square().mean().sqrt().item() / spread
    assert error <= relative, f"differs by {error:.3g} of the spread; expected at most {relative}"


def assert_same_gradients(
    found: dict[str, torch.Tensor | None], expected: dict[str, torch.Tensor | None], relative: float = 1e-4
) -> None:
    """Assert that every parameter gets the same gradient, each relative to its own size.

    Gradients that are zero up to rounding, such as those of biases that a norm removes, are compared with
    the largest of all.

    Args:
        found: Gradients by parameter name.
        expected: Expected gradients.
        relative: The largest difference over the gradient's own largest entry.
    """
    assert found.keys() == expected.keys(), f"other parameters: {sorted(found.keys() ^ expected.keys())}"
    lacking = [name for name in expected if (found[name] is None) != (expected[name] is None)]
    assert not lacking, f"a gradient on one side only: {lacking}"
    sizes = {name: float(gradient.abs().max()) for name, gradient in expected.items() if gradient is not None}
    largest = max(sizes.values(), default=0.0)
    assert largest > 1e-4, f"the largest gradient is {largest:.3g}: nothing would be compared"
    compared = [name for name, size in sizes.items() if size > 1e-6 * largest]
    assert len(compared) > len(sizes) / 2, "most gradients are zero"
    for name, size in sizes.items():
        error = float((found[name].double() - expected[name].double()).abs().max())
        allowed = relative * size + 1e-6 * largest
        assert error <= allowed, f"{name}: the gradient differs by {error:.3g}; expected at most {allowed:.3g}"
