"""Input embeddings of models on point tokens, as transformers and PEFT expect them.

Language models have input embeddings: the module whose output enters the first layer. transformers registers hooks on
it to add noise (NEFTune) or to let gradients reach adapters inside checkpointed layers. In models on points,
`input_tokens` plays this role: all tokens of a cloud, `(batch, tokens, hidden)`, pass it before the first layer.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint


class PointTokensMixin:
    """For `PreTrainedModel` classes whose base model has an `input_tokens` module.

    `get_input_embeddings` returns that module, an `nn.Identity` unless `set_input_embeddings` replaced it, and
    `enable_input_require_grads` and NEFTune work on its output. There is no vocabulary.
    """

    _input_embed_layer = "input_tokens"

    def resize_token_embeddings(self, *args: Any, **kwargs: Any) -> nn.Embedding:
        """Raise an error: these tokens have no vocabulary.

        Raises:
            ValueError: Always.
        """
        raise ValueError(
            f"{type(self).__name__} has no token embeddings to resize; its tokens are computed from its inputs"
        )

    def enable_input_require_grads(self) -> None:
        """Make the tokens that enter the first layer require gradients, even if nothing before it is trained."""
        # transformers' own version would look for the word embeddings of encoders inside the model.
        entry = self.get_input_embeddings()
        self._require_grads_hooks = [entry.register_forward_hook(_require_gradients)]
        self._require_grads_hook = self._require_grads_hooks[0]

    def _set_gradient_checkpointing(self, enable: bool = True, *args: Any, **kwargs: Any) -> None:
        super()._set_gradient_checkpointing(enable, *args, **kwargs)
        function = kwargs.get("gradient_checkpointing_func", args[0] if args else checkpoint)
        # Re-entrant checkpoints pass no gradient to adapters in a layer unless its input requires one, and the input
        # of the first layer does not if only adapters are trained.
        if enable and getattr(function, "keywords", {}).get("use_reentrant", True):
            # An autoencoder without a teacher has no layers.
            if hasattr(self.base_model, self._input_embed_layer) and not getattr(self, "_require_grads_hooks", None):
                self.enable_input_require_grads()
                self._requires_grads_for_checkpoints = True
        elif getattr(self, "_requires_grads_for_checkpoints", False):
            self.disable_input_require_grads()
            self._requires_grads_for_checkpoints = False


def _require_gradients(module: nn.Module, args: tuple, output: torch.Tensor) -> None:
    output.requires_grad_(True)
