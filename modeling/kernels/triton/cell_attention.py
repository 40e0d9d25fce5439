"""Attention among the tokens of a cell: masked attention whose scores and masks exist only tile by tile.

Forward and backward save the output and one number for each query, recompute the shares, and add nothing atomically:
one kernel sums over the keys of a query, one over the queries of a key.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from hf_any3d.modeling.kernels.dispatch import operator
from hf_any3d.modeling.kernels.triton.settings import block

_TOKENS = 32


@triton.jit
def _load(base, token, channel, is_token, head_width: tl.constexpr, stride: tl.constexpr):
    """Load rows of a head in float32, `(block, channels)`, zeros beyond its width."""
    place = base + token.to(tl.int64)[:, None] * stride + channel[None, :]
    return tl.load(place, mask=is_token[:, None] & (channel < head_width)[None, :], other=0.0).to(tl.float32)


@triton.jit
def _attend_kernel(
    qkv,  # (rows, tokens, 3 * width), a row is a view of a cloud
    cells,  # (rows, tokens)
    gathered,  # (rows, tokens, width)
    log_total,  # (rows, heads, tokens)
    scale,
    tokens,
    heads: tl.constexpr,
    head_width: tl.constexpr,
    block_tokens: tl.constexpr,
    block_width: tl.constexpr,
):
    width: tl.constexpr = heads * head_width
    row, head = (tl.program_id(0) // heads).to(tl.int64), tl.program_id(0) % heads
    qkv += row * tokens * 3 * width + head * head_width
    cells += row * tokens
    channel = tl.arange(0, block_width)
    token = tl.program_id(1) * block_tokens + tl.arange(0, block_tokens)
    is_token = token < tokens
    query = _load(qkv, token, channel, is_token, head_width, 3 * width) * scale
    cell = tl.load(cells + token, mask=is_token, other=-1)
    largest = tl.full((block_tokens,), float("-inf"), dtype=tl.float32)
    total = tl.zeros((block_tokens,), dtype=tl.float32)
    sums = tl.zeros((block_tokens, block_width), dtype=tl.float32)
    for first in range(0, tokens, block_tokens):
        partner = first + tl.arange(0, block_tokens)
        is_partner = partner < tokens
        same = cell[:, None] == tl.load(cells + partner, mask=is_partner, other=-2)[None, :]
        key = _load(qkv + width, partner, channel, is_partner, head_width, 3 * width)
        value = _load(qkv + 2 * width, partner, channel, is_partner, head_width, 3 * width)
        score = tl.where(same, tl.dot(query, tl.trans(key), input_precision="ieee"), float("-inf"))
        most = tl.maximum(largest, tl.max(score, axis=1))
        # Before its first partner, a token's sums are zero whatever their factor is.
        known = tl.where(most == float("-inf"), 0.0, most)
        share = tl.exp(score - known[:, None])
        factor = tl.exp(largest - known)
        total = total * factor + tl.sum(share, axis=1)
        sums = sums * factor[:, None] + tl.dot(share, value, input_precision="ieee")
        largest = most
    total = tl.where(is_token, total, 1.0)
    place = gathered + (row * tokens + token.to(tl.int64))[:, None] * width + head * head_width + channel[None, :]
    mask = is_token[:, None] & (channel < head_width)[None, :]
    tl.store(place, (sums / total[:, None]).to(gathered.dtype.element_ty), mask=mask)
    tl.store(log_total + (row * heads + head) * tokens + token, largest + tl.log(total), mask=is_token)


@triton.jit
def _gradient_kernel(
    qkv,
    cells,
    gradient,  # (rows, tokens, width)
    log_total,
    common,  # (rows, heads, tokens): a token's gradient times its output
    result,  # (rows, tokens, 3 * width)
    scale,
    tokens,
    heads: tl.constexpr,
    head_width: tl.constexpr,
    of_queries: tl.constexpr,
    block_tokens: tl.constexpr,
    block_width: tl.constexpr,
):
    width: tl.constexpr = heads * head_width
    row, head = (tl.program_id(0) // heads).to(tl.int64), tl.program_id(0) % heads
    qkv += row * tokens * 3 * width + head * head_width
    result += row * tokens * 3 * width + head * head_width
    gradient += row * tokens * width + head * head_width
    cells += row * tokens
    log_total += (row * heads + head) * tokens
    common += (row * heads + head) * tokens
    channel = tl.arange(0, block_width)
    token = tl.program_id(1) * block_tokens + tl.arange(0, block_tokens)
    is_token = token < tokens
    cell = tl.load(cells + token, mask=is_token, other=-1)
    place = result + token.to(tl.int64)[:, None] * 3 * width + channel[None, :]
    mask = is_token[:, None] & (channel < head_width)[None, :]
    sums = tl.zeros((block_tokens, block_width), dtype=tl.float32)
    if of_queries:
        query = _load(qkv, token, channel, is_token, head_width, 3 * width) * scale
        grad = _load(gradient, token, channel, is_token, head_width, width)
        own_total = tl.load(log_total + token, mask=is_token, other=0.0)
        own_common = tl.load(common + token, mask=is_token, other=0.0)
        for first in range(0, tokens, block_tokens):
            partner = first + tl.arange(0, block_tokens)
            is_partner = partner < tokens
            same = cell[:, None] == tl.load(cells + partner, mask=is_partner, other=-2)[None, :]
            key = _load(qkv + width, partner, channel, is_partner, head_width, 3 * width)
            value = _load(qkv + 2 * width, partner, channel, is_partner, head_width, 3 * width)
            score = tl.dot(query, tl.trans(key), input_precision="ieee") - own_total[:, None]
            share = tl.exp(tl.where(same, score, float("-inf")))
            slope = share * (tl.dot(grad, tl.trans(value), input_precision="ieee") - own_common[:, None])
            sums += tl.dot(slope, key, input_precision="ieee")
        tl.store(place, (sums * scale).to(result.dtype.element_ty), mask=mask)
    else:
        key = _load(qkv + width, token, channel, is_token, head_width, 3 * width)
        value = _load(qkv + 2 * width, token, channel, is_token, head_width, 3 * width)
        of_value = tl.zeros((block_tokens, block_width), dtype=tl.float32)
        for first in range(0, tokens, block_tokens):
            partner = first + tl.arange(0, block_tokens)
            is_partner = partner < tokens
            same = cell[:, None] == tl.load(cells + partner, mask=is_partner, other=-2)[None, :]
            query = _load(qkv, partner, channel, is_partner, head_width, 3 * width) * scale
            grad = _load(gradient, partner, channel, is_partner, head_width, width)
            own_total = tl.load(log_total + partner, mask=is_partner, other=0.0)
            own_common = tl.load(common + partner, mask=is_partner, other=0.0)
            score = tl.dot(key, tl.trans(query), input_precision="ieee") - own_total[None, :]
            share = tl.exp(tl.where(same, score, float("-inf")))
            slope = share * (tl.dot(value, tl.trans(grad), input_precision="ieee") - own_common[None, :])
            sums += tl.dot(slope, query, input_precision="ieee")
            of_value += tl.dot(share, grad, input_precision="ieee")
        tl.store(place + width, sums.to(result.dtype.element_ty), mask=mask)
        tl.store(place + 2 * width, of_value.to(result.dtype.element_ty), mask=mask)


@operator("triton_cell_attention")
def attend(qkv: Tensor, cells: Tensor, heads: int, scale: float) -> tuple[Tensor, Tensor]:
    """Attend to the tokens of the same cell.

    Args:
        qkv: `(batch, views, tokens, 3 * width)`.
        cells: `(batch, views, tokens)`, equal for tokens of the same cell, not negative.
        heads: Number of heads.
        scale: Factor of the scores.

    Returns:
        `(batch, views, tokens, width)`, and the logarithm of each token's sum of exponential scores in float32,
        `(batch * views, heads, tokens)`.
    """
    qkv, cells = qkv.contiguous(), cells.contiguous()
    batch, views, tokens, triple = qkv.shape
    gathered = qkv.new_empty(batch, views, tokens, triple // 3)
    log_total = qkv.new_empty(batch * views, heads, tokens, dtype=torch.float32)
    with torch.cuda.device_of(qkv):
        _attend_kernel[batch * views * heads, triton.cdiv(tokens, _TOKENS)](
            qkv, cells, gathered, log_total, scale, tokens, **_sizes(triple, heads)
        )
    return gathered, log_total


def _sizes(triple: int, heads: int) -> dict[str, int]:
    head_width = triple // 3 // heads
    return {
        "heads": heads,
        "head_width": head_width,
        "block_tokens": _TOKENS,
        "block_width": block(head_width, 16, 64),
    }


@torch.library.impl("hf_any3d::triton_cell_attention", "Meta")
def _result_shapes(qkv: Tensor, cells: Tensor, heads: int, scale: float) -> tuple[Tensor, Tensor]:
    batch, views, tokens, triple = qkv.shape
    totals = qkv.new_empty(batch * views, heads, tokens, dtype=torch.float32)
    return qkv.new_empty(batch, views, tokens, triple // 3), totals


@operator("triton_cell_attention_gradient")
def _gradient(
    gradient: Tensor, qkv: Tensor, cells: Tensor, gathered: Tensor, log_total: Tensor, heads: int, scale: float
) -> Tensor:
    gradient, qkv, cells = gradient.contiguous(), qkv.contiguous(), cells.contiguous()
    batch, views, tokens, triple = qkv.shape
    # What all partners of a token have in common, as its shares sum to one.
    common = (gradient.float() * gathered.float()).view(batch * views, tokens, heads, -1).sum(dim=-1)
    common = common.transpose(1, 2).contiguous()
    result = torch.empty_like(qkv)
    for of_queries in (True, False):
        with torch.cuda.device_of(qkv):
            _gradient_kernel[batch * views * heads, triton.cdiv(tokens, _TOKENS)](
                qkv,
                cells,
                gradient,
                log_total,
                common,
                result,
                scale,
                tokens,
                of_queries=of_queries,
                **_sizes(triple, heads),
            )
    return result


@torch.library.impl("hf_any3d::triton_cell_attention_gradient", "Meta")
def _gradient_shape(
    gradient: Tensor, qkv: Tensor, cells: Tensor, gathered: Tensor, log_total: Tensor, heads: int, scale: float
) -> Tensor:
    return torch.empty_like(qkv, memory_format=torch.contiguous_format)


def _keep(ctx: Any, inputs: tuple, output: tuple[Tensor, Tensor]) -> None:
    qkv, cells, ctx.heads, ctx.scale = inputs
    ctx.save_for_backward(qkv, cells, *output)
    ctx.mark_non_differentiable(output[1])
    ctx.set_materialize_grads(False)


def _backward(ctx: Any, gradient: Tensor | None, _: Tensor | None) -> tuple[Tensor | None, ...]:
    if gradient is None:
        return None, None, None, None
    return _gradient(gradient, *ctx.saved_tensors, ctx.heads, ctx.scale), None, None, None


torch.library.register_autograd("hf_any3d::triton_cell_attention", _backward, setup_context=_keep)
