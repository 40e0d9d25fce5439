"""Class token, pooling and classification head of models on point tokens."""

from collections.abc import Sequence
from functools import partial

import torch
from torch import nn

from hf_any3d.modeling.config_checks import check_numbers

PROMPT_POOLING = frozenset({"prompt_max", "prompt_mean"})
"""Poolings of the prompts that adapters leave behind the tokens."""
SEQUENCE_POOLING = frozenset({"max_plus_mean", "max_plus_first_mean"})
"""Poolings of the complete sequence: class token, point tokens and, if there are some, prompts."""
HEAD_ACTIVATIONS = {
    "relu": torch.relu,
    "gelu": nn.functional.gelu,
    "leaky_relu": partial(nn.functional.leaky_relu, negative_slope=0.2),
}
"""Functions after the hidden layers of a head."""


class ClassToken(nn.Module):
    """Learned token before the point tokens, with a learned position."""

    def __init__(self, hidden_size: int):
        super().__init__()
        self.token = nn.Parameter(torch.zeros(hidden_size))
        self.position = nn.Parameter(torch.zeros(hidden_size))

    def forward(self, tokens: torch.Tensor, positions: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Prepend token and position to `(batch, tokens, hidden)` each: `(batch, 1 + tokens, hidden)`."""
        batch = tokens.shape[0]
        # torch.cat would promote tokens in half precision to the parameters' dtype.
        tokens = torch.cat([self.token.to(tokens.dtype).expand(batch, 1, -1), tokens], dim=1)
        return tokens, torch.cat([self.position.to(positions.dtype).expand(batch, 1, -1), positions], dim=1)


class HeadNorm(nn.BatchNorm1d):
    """Batch norm that uses its running statistics for a training batch of one row, such as an epoch's last."""

    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        """Normalize `(batch, channels)`."""
        if self.training and len(rows) == 1:
            # The variance of a single row is undefined.
            return nn.functional.batch_norm(
                rows, self.running_mean, self.running_var, self.weight, self.bias, eps=self.eps
            )
        return super().forward(rows)


class ClassificationHead(nn.Module):
    """Hidden layers of `widths` with batch norm, an activation and dropout, `(rows, features)` to `(rows, labels)`.

    The norm cancels a bias of the hidden layers; with `norm=False`, as in Point-BERT, there is none. There is one rate
    of dropout for all of them, or one for each, and one for the features that the head reads.
    """

    def __init__(
        self,
        features: int,
        num_labels: int,
        widths: Sequence[int] = (),
        *,
        bias: bool = True,
        dropout: float | Sequence[float] = 0.0,
        input_dropout: float = 0.0,
        activation: str = "relu",
        norm: bool = True,
    ):
        super().__init__()
        rates = dropout if isinstance(dropout, Sequence) else [dropout] * len(widths)
        self.input_dropout = nn.Dropout(input_dropout)
        self.hidden = nn.ModuleList()
        self.norms = nn.ModuleList()
        self.dropouts = nn.ModuleList()
        for width, rate in zip(widths, rates, strict=True):
            self.hidden.append(nn.Linear(features, width, bias=bias))
            self.norms.append(HeadNorm(width) if norm else nn.Identity())
            self.dropouts.append(nn.Dropout(rate))
            features = width
        # `features` is the width of the last hidden layer by now.
        self.out = nn.Linear(features, num_labels)
        self.activation = activation

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """Compute logits in the head's precision from pooled features of any precision."""
        features = self.input_dropout(in_precision_of(self, features))
        activate = HEAD_ACTIVATIONS[self.activation]
        for linear, norm, dropout in zip(self.hidden, self.norms, self.dropouts, strict=True):
            features = dropout(activate(norm(linear(features))))
        return self.out(features)

    @torch.no_grad()
    def calibrate(self, temperature: float) -> None:
        """Divide all logits by a temperature from now on: it becomes part of the last layer."""
        check_numbers(0, above=True, temperature=temperature)
        # Dividing weight and bias divides the logits, so that stored models need no setting for it.
        self.out.weight.div_(temperature)
        self.out.bias.div_(temperature)


def in_precision_of(module: nn.Module, values: torch.Tensor) -> torch.Tensor:
    """Cast values to the precision of a module's weights, as an encoder may be kept in another one than its head."""
    return values.to(precision_of(module, values.dtype))


def precision_of(module: nn.Module, otherwise: torch.dtype = torch.float32) -> torch.dtype:
    """Return the dtype of a module's floating point weights, such as norms beside quantized layers, or `otherwise`."""
    return next((weight.dtype for weight in module.parameters() if weight.is_floating_point()), otherwise)


def pool(
    hidden_states: torch.Tensor, how: Sequence[str], class_tokens: int = 1, prompts: torch.Tensor | None = None
) -> torch.Tensor:
    """Pool the tokens `(batch, class_tokens + tokens, hidden)` of a cloud: `(batch, len(how) * hidden)`.

    `how` has any of "cls", "max" and "mean", the last two over point tokens only; with `prompts (batch, prompts,
    hidden)`, tokens that adapters have added, also `PROMPT_POOLING`. "max_plus_mean" adds up maximum and mean of all
    tokens, class token and prompts included. "max_plus_first_mean" takes the mean of the first cloud of the batch for
    all of them, as the released program of APPT does. With three class tokens, ReCon's of class, image and text, there
    are also "image", "text", "queries", the maximum of all three, and "max+mean", the sum over point tokens.
    """

    def sequence() -> torch.Tensor:
        return hidden_states if prompts is None else torch.cat([hidden_states, prompts], dim=1)

    # Functions, so that only the requested poolings are computed.
    pools = {
        "cls": lambda: hidden_states[:, 0],
        "max": lambda: hidden_states[:, class_tokens:].amax(dim=1),
        "mean": lambda: hidden_states[:, class_tokens:].mean(dim=1),
        "max_plus_mean": lambda: sequence().amax(dim=1) + sequence().mean(dim=1),
        "max_plus_first_mean": lambda: sequence().amax(dim=1) + sequence()[0].mean(dim=0),
    }
    if class_tokens == 3:
        pools |= {
            "image": lambda: hidden_states[:, 1],
            "text": lambda: hidden_states[:, 2],
            "queries": lambda: hidden_states[:, :3].amax(dim=1),
            "max+mean": lambda: pools["max"]() + pools["mean"](),
        }
    if prompts is not None:
        pools |= {"prompt_max": lambda: prompts.amax(dim=1), "prompt_mean": lambda: prompts.mean(dim=1)}
    return torch.cat([pools[name]() for name in how], dim=-1)
