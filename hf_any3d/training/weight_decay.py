"""Which parameters weight decay draws towards zero.

The stock Trainer goes by names: it spares "bias", "layernorm" and the like, and lets class tokens, gates and norms of
other names decay, in transformers' own models too. `PointTrainer` goes by what parameters are, and `parameter_groups`
brings the same to the stock Trainer: `Trainer(…, optimizers=(AdamW(parameter_groups(model, 0.05), lr=1e-3), None))`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import Any

from torch import nn

from hf_any3d.modeling.heads import ClassToken

# Vectors here, (1, 1, hidden) in the released programs, whose rule spares vectors.
_TOKENS = (ClassToken,)


def decaying_parameters(model: nn.Module, spared: Sequence[str] = (), class_tokens: bool = True) -> list[str]:
    """Names of the parameters that decay: matrices and learned tokens, but neither biases nor norms nor vectors.

    Biases and norms of several views that are stored as one matrix count as what they are.

    Args:
        model: Any model, adapted or not.
        spared: Regular expressions; parameters in whose name one of them is found do not decay either.
        class_tokens: Whether class tokens and their positions decay, as in the released programs.

    Raises:
        ValueError: A regular expression that fits no parameter.

    Source: released Any2Point, ACT and Point-BERT programs (weight decay 0 for one-dimensional parameters, biases, and
    tokens by name).
    """
    for pattern in spared:
        if not any(re.search(pattern, name) for name, _ in model.named_parameters()):
            raise ValueError(f"no_weight_decay {pattern!r} fits no parameter of {type(model).__name__}")
    names = _weights(model, _TOKENS if class_tokens else ())
    return [name for name in names if not any(re.search(pattern, name) for pattern in spared)]


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Parameters that train, as an optimizer of torch takes them: those that decay and those that do not.

    Class tokens, norms, gates, scales and biases do not.

    Args:
        model: Any model, adapted or not.
        weight_decay: Of the first group; the second has 0.
    """
    decaying = set(decaying_parameters(model, class_tokens=False))
    groups: tuple[list[nn.Parameter], list[nn.Parameter]] = ([], [])
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            groups[name not in decaying].append(parameter)
    return [{"params": groups[0], "weight_decay": weight_decay}, {"params": groups[1], "weight_decay": 0.0}]


def _weights(model: nn.Module, tokens: tuple[type[nn.Module], ...]) -> Iterator[str]:
    for path, module in model.named_modules():
        is_norm = "norm" in type(module).__name__.lower()
        for name, parameter in module.named_parameters(recurse=False):
            is_vector = parameter.dim() < 2 and not isinstance(module, tokens)
            if not (is_vector or is_norm or "bias" in name or "norm" in name):
                yield f"{path}.{name}" if path else name
