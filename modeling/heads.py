"""What models on point tokens share around their transformer: a class token, pooling, a head."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn


class ClassToken(nn.Module):
    """A learned token in front of the point tokens, and its learned position."""

    def __init__(self, hidden_size: int):
        super().__init__()
        self.token = nn.Parameter(torch.zeros(hidden_size))
        self.position = nn.Parameter(torch.zeros(hidden_size))

    def forward(self, tokens: torch.Tensor, positions: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Put token and position in front of `(batch, tokens, hidden)` each: `(batch, 1 + tokens, hidden)`."""
        batch = tokens.shape[0]
        tokens = torch.cat([self.token.to(tokens.dtype).expand(batch, 1, -1), tokens], dim=1)
        return tokens, torch.cat([self.position.to(positions.dtype).expand(batch, 1, -1), positions], dim=1)


class HeadNorm(nn.BatchNorm1d):
    """Batch norm that takes its running statistics where a training batch has one row only.

    An epoch whose last batch is a single cloud would otherwise end in an error.
    """

    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        """Normalise `(batch, channels)`."""
        if self.training and len(rows) == 1:
            return nn.functional.batch_norm(
                rows, self.running_mean, self.running_var, self.weight, self.bias, eps=self.eps
            )
        return super().forward(rows)


class ClassificationHead(nn.Module):
    """Linear layers with batch norm, ReLU and dropout, `(rows, features)` to `(rows, labels)`.

    Args:
        features: Channels of what enters.
        num_labels: Classes.
        widths: Of the hidden layers; none for a linear head.
        bias: Whether hidden layers have a bias, which the norm takes out again.
        dropout: Behind each hidden layer; one share for all, or one for each.

    Raises:
        ValueError: If there is not one share for each hidden layer.
    """

    def __init__(
        self,
        features: int,
        num_labels: int,
        widths: Sequence[int] = (),
        *,
        bias: bool = True,
        dropout: float | Sequence[float] = 0.0,
    ):
        super().__init__()
        inputs = [features, *widths]
        shares = list(dropout) if isinstance(dropout, Sequence) else [dropout] * len(widths)
        if len(shares) != len(widths):
            raise ValueError(f"dropout={dropout}; expected one share for each of the hidden layers {tuple(widths)}")
        self.hidden = nn.ModuleList(nn.Linear(a, b, bias=bias) for a, b in zip(inputs, widths, strict=False))
        self.norms = nn.ModuleList(HeadNorm(width) for width in widths)
        self.dropouts = nn.ModuleList(nn.Dropout(share) for share in shares)
        self.out = nn.Linear(inputs[-1], num_labels)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """Logits of pooled features of any precision, in the head's own."""
        features = in_precision_of(self, features)
        for linear, norm, dropout in zip(self.hidden, self.norms, self.dropouts, strict=True):
            features = dropout(torch.relu(norm(linear(features))))
        return self.out(features)


def in_precision_of(module: nn.Module, values: torch.Tensor) -> torch.Tensor:
    """Cast values to the precision of a module's weights, which may differ from that of the part in front of it.

    An encoder may be kept in half precision under a head that trains in full precision, and the other way round.
    """
    own = next((weight.dtype for weight in module.parameters() if weight.is_floating_point()), values.dtype)
    return values.to(own)


def pool(hidden_states: torch.Tensor, how: Sequence[str], class_tokens: int = 1) -> torch.Tensor:
    """Pool tokens of a cloud to one vector.

    Args:
        hidden_states: `(batch, class_tokens + tokens, hidden)`.
        how: Any of "cls", "max" and "mean"; the last two are over the tokens of points.
        class_tokens: 1, or 0 where there is none in front.

    Returns:
        `(batch, len(how) * hidden)`, in the order of `how`.
    """
    pools = {
        "cls": lambda: hidden_states[:, 0],
        "max": lambda: hidden_states[:, class_tokens:].amax(dim=1),
        "mean": lambda: hidden_states[:, class_tokens:].mean(dim=1),
    }
    return torch.cat([pools[name]() for name in how], dim=-1)
