"""Where tokens made of points enter a transformer, as transformers and PEFT look for it.

Models of words have input embeddings: the module whose output enters the first layer. transformers hangs a hook there
to add noise (NEFTune) or to let gradients reach adapters below checkpoints. Models of points have such a place, too:
`input_tokens`, which all tokens of a cloud pass, `(batch, tokens, hidden)`, before the first layer.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint


class PointTokensMixin:
    """For `PreTrainedModel` classes whose base model has an `input_tokens` module.

    `get_input_embeddings` gives that module, an `nn.Identity` unless `set_input_embeddings` put another in its place,
    and `enable_input_require_grads` and NEFTune work on what it gives. There is no vocabulary behind it.
    """

    _input_embed_layer = "input_tokens"

    def resize_token_embeddings(self, *args: Any, **kwargs: Any) -> nn.Embedding:
        """Refuse: tokens are made of points, or of sound.

        Raises:
            ValueError: Always.
        """
        raise ValueError(f"{type(self).__name__} has no words among its tokens; there is no vocabulary to resize")

    def enable_input_require_grads(self) -> None:
        """Let gradients reach the tokens that enter the first layer, whatever is trained in front of it."""
        # Not as transformers does, which would ask encoders inside the model for the embeddings of their words.
        entry = self.get_input_embeddings()
        self._require_grads_hooks = [entry.register_forward_hook(_require_gradients)]
        self._require_grads_hook = self._require_grads_hooks[0]

    def _set_gradient_checkpointing(self, enable: bool = True, *args: Any, **kwargs: Any) -> None:
        super()._set_gradient_checkpointing(enable, *args, **kwargs)
        function = kwargs.get("gradient_checkpointing_func", args[0] if args else checkpoint)
        # Re-entrant checkpoints give no gradient to adapters in a layer unless one reaches what enters the layer; the
        # tokens that enter the first need none of their own where only adapters train.
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
