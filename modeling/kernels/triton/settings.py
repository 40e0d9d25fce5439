"""Dtypes and precision of products, shared by the Triton kernels."""

import torch

DTYPES = (torch.float32, torch.float16, torch.bfloat16)
"""Dtypes that the kernels read and write; they sum in float32."""


def product_precision() -> str:
    """Return the precision of products of float32: that of torch's own, full unless the user has allowed TF32."""
    return "tf32" if torch.backends.cuda.matmul.fp32_precision == "tf32" else "ieee"


def widens(values: torch.Tensor) -> bool:
    """Return whether values are widened before products: Triton's interpreter would multiply the bits of bfloat16."""
    return values.device.type == "cpu" and values.dtype != torch.float32


def block(size: int, least: int, most: int) -> int:
    """Return the smallest power of two that is at least `size`, within limits."""
    return min(max(1 << (size - 1).bit_length(), least), most)
