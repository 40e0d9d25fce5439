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
