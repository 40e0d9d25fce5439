"""A linear layer with a product of two narrow matrices that belongs to the model: LoRA of its own.

It is no adapter of PEFT but a layer of the model. PEFT would take matrices of its kinds for an adapter, draw them anew
when another one is added, and leave the model trainable around them. Adapters adapt the linear layer inside, whatever
it is: a plain one, a quantized one, or one that another adapter has wrapped. So all of them can be merged, also those
that multiply what a layer computes. Names of the matrices are none that PEFT or quantization look for.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

INNER = "linear"
"""Name of the linear layer in a `LowRankLinear`."""
EARLIER_NAMES = {
    "base_layer.": "linear.",
    "lora_A.default.weight": "low_rank_a",
    "lora_B.default.weight": "low_rank_b",
    "lora_B.default.bias": "low_rank_bias",
}
"""Names of tensors in a layer of earlier versions, which had an adapter of PEFT in this place, to today's."""


class LowRankLinear(nn.Module):
    """A linear layer plus the product of two narrow matrices: `W x + scaling * B A x`.

    Args:
        linear: The layer, `(…, in_features)` to `(…, out_features)`.
        low_rank_a: `A`, `(rank, in_features)`.
        low_rank_b: `B`, `(out_features, rank)`.
        scaling: Factor of the product.
        dropout: Dropout of what `A` gets.
        low_rank_bias: Bias after `B`, `(out_features,)`.
    """

    def __init__(
        self,
        linear: nn.Module,
        low_rank_a: nn.Parameter,
        low_rank_b: nn.Parameter,
        scaling: float,
        dropout: nn.Module,
        low_rank_bias: nn.Parameter | None = None,
    ):
        super().__init__()
        self.linear = linear
        self.low_rank_a = low_rank_a
        self.low_rank_b = low_rank_b
        self.register_parameter("low_rank_bias", low_rank_bias)
        self.low_rank_dropout = dropout
        self.scaling = scaling

    @property
    def in_features(self) -> int:
        """Number of input channels."""
        return self.low_rank_a.shape[1]

    @property
    def out_features(self) -> int:
        """Number of output channels."""
        return self.low_rank_b.shape[0]

    @property
    def weight(self) -> torch.Tensor:
        """The weight of the linear layer, as models read its type or device."""
        return self.linear.weight  # pyright: ignore[reportReturnType]

    @property
    def bias(self) -> torch.Tensor | None:
        """The bias of the linear layer."""
        return self.linear.bias  # pyright: ignore[reportReturnType]

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """Map `(…, in_features)` to `(…, out_features)`; the product is computed in the type of its matrices."""
        result = self.linear(inputs)
        # In the order of PEFT's layers, so that equal weights give equal bits.
        narrow = nn.functional.linear(self.low_rank_dropout(inputs.to(self.low_rank_a.dtype)), self.low_rank_a)
        product = nn.functional.linear(narrow, self.low_rank_b, self.low_rank_bias)
        return (result + product * self.scaling).to(result.dtype)

    def extra_repr(self) -> str:
        """Return what `print` shows."""
        return f"rank={self.low_rank_a.shape[0]}, scaling={self.scaling}"

    @torch.no_grad()
    def merged(self) -> nn.Module:
        """Return the linear layer after the product has been added to its weights, in place.

        Raises:
            ValueError: The sum is not finite, or the layer has an adapter.
        """
        linear: Any = self.linear
        if "base_layer" in linear._modules:
            raise ValueError("the layers have an adapter; expected merge_and_unload() or unload() first")
        weight = linear.weight
        matrices = (self.low_rank_b, self.low_rank_a)
        if weight.device.type == "cpu":
            # Products in half precision are slow there, and less precise.
            matrices = tuple(matrix.float() if matrix.dtype.itemsize < 4 else matrix for matrix in matrices)
        product = matrices[0] @ matrices[1]
        # transformers' `Conv1D` has the transposed weight.
        if type(linear).__name__ == "Conv1D":
            product = product.T
        total = weight + (product * self.scaling).to(self.low_rank_a.dtype).to(weight.dtype)
        if not torch.isfinite(total).all():
            raise ValueError("the sum of weights and LoRA has NaN or infinity; expected a model that was trained")
        weight.data = total
        if self.low_rank_bias is not None:
            if linear.bias is None:
                raise ValueError("a bias of LoRA cannot be merged into a layer without a bias")
            linear.bias.data = linear.bias + (self.low_rank_bias * self.scaling).to(linear.bias.dtype)
        return linear

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any, **kwargs: Any) -> None:
        # Checkpoints of training, as of other programs, come here and not to `from_pretrained`.
        for name in list(state_dict):
            for earlier, present in EARLIER_NAMES.items():
                if name.startswith(prefix + earlier):
                    state_dict[prefix + present + name.removeprefix(prefix + earlier)] = state_dict.pop(name)
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)
