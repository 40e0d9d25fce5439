"""Which parameters weight decay draws towards zero."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

from torch import nn

from hf_any3d.modeling.heads import ClassToken

# Vectors here, (1, 1, hidden) in the released programs, whose rule spares vectors.
_TOKENS = (ClassToken,)


def decaying_parameters(model: nn.Module, spared: Sequence[str] = ()) -> list[str]:
    """Names of the parameters that decay: matrices and learned tokens, but neither biases nor norms nor vectors.

    Biases and norms of several views that are stored as one matrix count as what they are.

    Args:
        model: Any model, adapted or not.
        spared: Regular expressions; parameters in whose name one of them is found do not decay either.

    Raises:
        ValueError: A regular expression that fits no parameter.

    Source: released Any2Point, ACT and Point-BERT programs (weight decay 0 for one-dimensional parameters, biases, and
    tokens by name).
    """
    for pattern in spared:
        if not any(re.search(pattern, name) for name, _ in model.named_parameters()):
            raise ValueError(f"no_weight_decay {pattern!r} fits no parameter of {type(model).__name__}")
    return [name for name in _weights(model) if not any(re.search(pattern, name) for pattern in spared)]


def _weights(model: nn.Module) -> Iterator[str]:
    for path, module in model.named_modules():
        is_norm = "norm" in type(module).__name__.lower()
        for name, parameter in module.named_parameters(recurse=False):
            is_vector = parameter.dim() < 2 and not isinstance(module, _TOKENS)
            if not (is_vector or is_norm or "bias" in name or "norm" in name):
                yield f"{path}.{name}" if path else name
