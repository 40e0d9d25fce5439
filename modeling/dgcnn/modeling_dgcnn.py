"""DGCNN (arXiv 1801.07829): graphs of near points, layers on their edges, and heads for clouds and for points.

points (B, N, channels) ─► edge convolutions (B, N, width), each on a new graph ─► layers for each point that
read all of them (B, N, H) ─► maximum ─► class scores; or the maximum beside each point ─► scores of points

Shapes: B clouds, N points of each, H width of a token.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import nn
from transformers.modeling_outputs import SequenceClassifierOutput, TokenClassifierOutput

from hf_any3d.modeling.dgcnn.configuration_dgcnn import DgcnnConfig
from hf_any3d.modeling.layers.forward_contract import strict_forward
from hf_any3d.modeling.layers.heads import HEAD_ACTIVATIONS, ClassificationHead, HeadNorm, in_precision_of
from hf_any3d.modeling.layers.losses import classification_loss, point_loss
from hf_any3d.modeling.layers.tasks import refuse_problem_type
from hf_any3d.modeling.point_encoders.base_model import PointCloudModel, PointCloudPreTrainedModel
from hf_any3d.modeling.point_encoders.set_abstraction import PointNetLayer
from hf_any3d.modeling.point_ops import group, knn

# Pairs of points whose distances are computed at a time.
_PAIRS = 1 << 24
leaky_relu = HEAD_ACTIVATIONS["leaky_relu"]


@torch.no_grad()
def nearest_features(features: torch.Tensor, k: int) -> torch.Tensor:
    """Find the k nearest points of each point in the space of features: indices `(batch, points, k)`."""
    rows = features.shape[1] if torch.compiler.is_compiling() else max(1, _PAIRS // features[..., 0].numel())
    # Autocast computes distances in full precision.
    features = features.float()
    parts = [torch.cdist(part, features) for part in features.split(rows, dim=1)]  # (B, rows, N)
    return torch.cat([distance.topk(k, dim=-1, largest=False).indices for distance in parts], dim=1)


class DgcnnLayer(PointNetLayer):
    """A linear layer with batch norm and leaky ReLU for every row."""

    activation = staticmethod(leaky_relu)


class EdgeConvolution(nn.Module):
    """Layers on the edges from each point to its neighbors, and the maximum over them.

    The first layer reads a neighbor's features, relative to those of the point, and the point's own. Its weights for
    the two are apart, so that each point is multiplied once, and not for each edge that it is part of.

    Source: DGCNN, Sec. 3.1, Eq. 8.
    """

    def __init__(self, inputs: int, widths: Sequence[int]):
        super().__init__()
        self.from_neighbor = nn.Linear(inputs, widths[0], bias=False)
        self.from_point = nn.Linear(inputs, widths[0], bias=False)
        self.norm = nn.BatchNorm1d(widths[0])
        self.layers = nn.ModuleList(DgcnnLayer(*sizes) for sizes in pairwise(widths))

    def forward(self, features: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
        """Map `(batch, points, inputs)` and neighbors `(batch, points, k)` to `(batch, points, widths[-1])`."""
        neighbors = self.from_neighbor(features)  # (B, N, width)
        # W_n (x_j - x_i) + W_p x_i, with x_i's two products joined.
        edges = group(neighbors, index) + (self.from_point(features) - neighbors).unsqueeze(2)
        edges = leaky_relu(self.norm(edges.flatten(0, 2)))  # (B * N * k, width)
        for layer in self.layers:
            edges = layer(edges)
        return edges.view(*index.shape, -1).amax(dim=2)


class DgcnnPreTrainedModel(PointCloudPreTrainedModel):
    """Base class of DGCNN models."""

    config_class = DgcnnConfig
    config: DgcnnConfig
    base_model_prefix = "dgcnn"


class DgcnnModel(PointCloudModel, DgcnnPreTrainedModel):
    """DGCNN: edge convolutions, the first on neighbors in space and the others on neighbors among features.

    The published network that turns clouds into a common pose is left out.

    Source: DGCNN, Sec. 3.2 and 4.
    """

    def __init__(self, config: DgcnnConfig):
        super().__init__(config)
        # Layers read the outputs of all edge convolutions side by side (Sec. 3.2).
        sizes = [config.in_channels, *(widths[-1] for widths in config.edge_widths)]
        self.edges = nn.ModuleList(map(EdgeConvolution, sizes, config.edge_widths))
        self.layers = nn.ModuleList(DgcnnLayer(*pair) for pair in pairwise((sum(sizes[1:]), *config.hidden_sizes)))
        self.post_init()

    def encode(self, points: torch.Tensor) -> tuple[list[torch.Tensor], torch.Tensor]:
        """Return the points with the output of each edge convolution and layer, and their positions."""
        index = knn(*[points[..., self.config.position_channel :]] * 2, self.config.num_neighbors)
        states = [self.input_tokens(points.to(self.dtype))]
        for number, edges in enumerate(self.edges):
            if number:
                # The graph is dynamic (Sec. 3.2): after the first, neighbors are near in features, and may be far in
                # space.
                index = nearest_features(states[-1], self.config.num_neighbors)
            states.append(edges(states[-1], index))
        hidden_states = torch.cat(states[1:], dim=-1)
        for layer in self.layers:
            hidden_states = layer(hidden_states)
            states.append(hidden_states)
        return states, points[..., :3]


class DgcnnForPointCloudClassification(DgcnnPreTrainedModel):
    """`DgcnnModel` with a classification head, which reads the maximum and the mean over the points.

    Example:
        ```python
        import torch
        from hf_any3d import DgcnnConfig, DgcnnForPointCloudClassification

        model = DgcnnForPointCloudClassification(DgcnnConfig(num_labels=3))
        points = torch.rand(2, 512, 3)  # xyz
        model(points=points).logits.shape  # (2, 3)
        ```
    """

    def __init__(self, config: DgcnnConfig):
        super().__init__(config)
        self.dgcnn = DgcnnModel(config)
        self.classifier = ClassificationHead(
            2 * config.hidden_size,
            config.num_labels,
            config.head_widths,
            bias=False,
            dropout=config.head_dropout,
            activation="leaky_relu",
        )
        self.post_init()

    @strict_forward
    def forward(
        self, points: torch.Tensor, labels: torch.Tensor | None = None, **kwargs: Any
    ) -> SequenceClassifierOutput:
        """Classify point clouds; returns `logits (batch, labels)`."""
        output = self.dgcnn(points, **kwargs, return_dict=True)
        # Maximum and mean, as published.
        pooled = torch.cat([output.pooler_output, output.last_hidden_state.mean(dim=1)], dim=-1)
        logits = self.classifier(pooled)  # (B, labels)
        loss = classification_loss(logits, labels, self.config)
        return SequenceClassifierOutput(loss, logits, output.hidden_states, output.attentions)


class DgcnnPointHead(nn.Module):
    """Head for each point, which reads the outputs of all edge convolutions and the feature of the cloud."""

    def __init__(self, point_width: int, cloud_width: int, config: DgcnnConfig):
        super().__init__()
        first, *others = config.head_widths
        # One linear layer in two parts, as in `EdgeConvolution`.
        self.from_points = nn.Linear(point_width, first, bias=False)
        self.from_cloud = nn.Linear(cloud_width, first, bias=False)
        self.norm = HeadNorm(first)
        # Before the last layer alone, as published.
        rates = [0.0] * (len(others) - 1) + [config.head_dropout] * bool(others)
        self.head = ClassificationHead(
            first, config.num_labels, others, bias=False, dropout=rates, activation="leaky_relu"
        )
        # Without a bias, as published, so that trained models fit the released program.
        self.head.out = nn.Linear(config.head_widths[-1], config.num_labels, bias=False)

    def forward(self, points: torch.Tensor, clouds: torch.Tensor) -> torch.Tensor:
        """Compute logits `(batch, points, labels)` from `(batch, points, point_width)` and `(batch, cloud_width)`."""
        points = in_precision_of(self, points)
        clouds = in_precision_of(self, clouds)
        mixed = self.from_points(points) + self.from_cloud(clouds).unsqueeze(1)  # (B, N, width)
        return self.head(leaky_relu(self.norm(mixed.flatten(0, 1)))).unflatten(0, points.shape[:2])


class DgcnnForSemanticSegmentation(DgcnnPreTrainedModel):
    """DGCNN that predicts an object class for every point of a scene or of a block of it.

    Example:
        ```python
        import torch
        from hf_any3d import DgcnnConfig, DgcnnForSemanticSegmentation

        model = DgcnnForSemanticSegmentation(DgcnnConfig(num_labels=3))
        points = torch.rand(2, 512, 3)  # xyz
        model(points=points).logits.shape  # (2, 512, 3)
        ```
    """

    def __init__(self, config: DgcnnConfig):
        super().__init__(config)
        refuse_problem_type(config)
        self.dgcnn = DgcnnModel(config)
        point_width = sum(widths[-1] for widths in config.edge_widths)
        self.segmenter = DgcnnPointHead(point_width, config.hidden_size, config)
        self.post_init()

    @strict_forward
    def forward(
        self,
        points: torch.Tensor,
        labels: torch.Tensor | None = None,
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
    ) -> TokenClassifierOutput:
        """Segment scenes; returns `logits (batch, points, labels)`."""
        with_states = self.returns_states(output_hidden_states, output_attentions)
        output = self.dgcnn(points, output_hidden_states=True, return_dict=True)
        edges = output.hidden_states[1 : 1 + len(self.config.edge_widths)]  # outputs of the edge convolutions
        logits = self.segmenter(torch.cat(edges, dim=-1), output.pooler_output)  # (B, N, labels)
        loss = point_loss(logits, labels)
        return TokenClassifierOutput(loss, logits, output.hidden_states if with_states else None)
