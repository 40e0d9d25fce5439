"""Sizes and precision of the kernels for GPUs, which need no GPU to be chosen."""

import pytest
import torch

from hf_any3d.modeling.kernels.triton.settings import DTYPES, block, product_precision, widens


@pytest.mark.parametrize(
    ("size", "expected"), [(1, 4), (3, 4), (4, 4), (5, 8), (8, 8), (9, 16), (31, 32), (32, 32), (33, 32), (1000, 32)]
)
def test_blocks_are_powers_of_two_within_limits(size, expected):
    assert block(size, 4, 32) == expected


def test_products_are_as_exact_as_those_of_torch():
    before = torch.backends.cuda.matmul.fp32_precision
    try:
        for precision, expected in (("ieee", "ieee"), ("tf32", "tf32")):
            torch.backends.cuda.matmul.fp32_precision = precision
            assert product_precision() == expected
    finally:
        torch.backends.cuda.matmul.fp32_precision = before


def test_half_precision_is_widened_by_the_interpreter_only():
    found = {dtype: widens(torch.empty(1, dtype=dtype)) for dtype in DTYPES}
    assert found == {torch.float32: False, torch.float16: True, torch.bfloat16: True}
    assert not any(widens(torch.empty(1, dtype=dtype, device="meta")) for dtype in DTYPES)
