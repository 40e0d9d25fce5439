"""An Any2Point model without its encoder: what tokenizer and head can do alone.

points (B, N, 3 + C) ─► tokenizer: tokens (B, G, H) ─► pooling ─► class scores

Shapes: B clouds, N points of each, G tokens, H width of a token.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.modeling_outputs import SequenceClassifierOutput

from hf_any3d.modeling.any2point.configuration_any2point import PointTokenizerConfig
from hf_any3d.modeling.any2point.point_index import PointIndexer
from hf_any3d.modeling.any2point.point_tokenizer import TOKENIZERS
from hf_any3d.modeling.layers.forward_contract import NoAttentionMixin, PointFeaturesOutput, strict_forward
from hf_any3d.modeling.layers.heads import ClassificationHead, pool
from hf_any3d.modeling.layers.losses import classification_loss
from hf_any3d.modeling.point_ops import in_full_precision
from hf_any3d.modeling.pretrained_parts.mixin import LibraryModelMixin


class PointTokenizerPreTrainedModel(LibraryModelMixin, NoAttentionMixin, PreTrainedModel):
    """Base class of tokenizers without an encoder."""

    config_class = PointTokenizerConfig
    config: PointTokenizerConfig
    base_model_prefix = "point_tokenizer_model"  # the model has a module `point_tokenizer` itself

    @property
    def point_indexer(self) -> PointIndexer:
        """Function that computes the `point_index` of the forward pass where batches are made."""
        return PointIndexer(self.config)


class PointTokenizerModel(PointTokenizerPreTrainedModel):
    """The tokenizer of an Any2Point model, and the maximum or mean of its tokens; there is no encoder."""

    def __init__(self, config: PointTokenizerConfig):
        super().__init__(config)
        self.point_tokenizer = TOKENIZERS[config.tokenizer](config, config.hidden_size)
        self.input_tokens = nn.Identity()
        self.post_init()
        # After `post_init`, which would draw over the weights that a tokenizer starts from.
        self.point_tokenizer.start()
        # There are no positions whose spread could be the measure, so the scale itself is the gain.
        if config.token_scale is not None:
            self.point_tokenizer.scale_tokens(config.token_scale)

    @strict_forward
    def forward(
        self,
        points: torch.Tensor,
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
        point_index: Mapping[str, Any] | None = None,
    ) -> PointFeaturesOutput:
        """Compute token features of point clouds.

        Returns:
            `last_hidden_state (batch, tokens, hidden)`, `pooler_output (batch, len(config.pooling) * hidden)`, and the
            tokens' `centers (batch, tokens, 3)`.
        """
        with_states = self.returns_states(output_hidden_states, output_attentions)
        points = in_full_precision(points, self.dtype)
        tokens = self.point_tokenizer(points, point_index=point_index)
        # The only state: tokens go straight to the pooling.
        hidden_states = self.input_tokens(tokens.tokens)
        pooled = pool(hidden_states, self.config.pooling, class_tokens=0)
        return PointFeaturesOutput(hidden_states, pooled, tokens.centers, (hidden_states,) if with_states else None)


class PointTokenizerForPointCloudClassification(PointTokenizerPreTrainedModel):
    """`PointTokenizerModel` with a classification head: the control "no encoder" of Any2Point.

    Example:
        ```python
        import torch
        from hf_any3d import PointTokenizerConfig, PointTokenizerForPointCloudClassification

        model = PointTokenizerForPointCloudClassification(PointTokenizerConfig(num_labels=3, num_tokens=32))
        points = torch.rand(2, 256, 3)  # xyz
        model(points=points).logits.shape  # (2, 3)
        ```
    """

    def __init__(self, config: PointTokenizerConfig):
        super().__init__(config)
        self.point_tokenizer_model = PointTokenizerModel(config)
        self.classifier = ClassificationHead(
            len(config.pooling) * config.hidden_size,
            config.num_labels,
            config.head_widths,
            bias=config.head_bias,
            dropout=config.head_dropout,
            input_dropout=config.released.pooler_dropout,
        )
        self.post_init()

    @strict_forward
    def forward(
        self,
        points: torch.Tensor,
        labels: torch.Tensor | None = None,
        point_index: Mapping[str, Any] | None = None,
        **kwargs: Any,
    ) -> SequenceClassifierOutput:
        """Classify point clouds; returns `logits (batch, labels)`."""
        output = self.point_tokenizer_model(points, point_index=point_index, **kwargs, return_dict=True)
        logits = self.classifier(output.pooler_output)  # (B, labels)
        loss = classification_loss(logits, labels, self.config)
        return SequenceClassifierOutput(loss, logits, output.hidden_states, output.attentions)
