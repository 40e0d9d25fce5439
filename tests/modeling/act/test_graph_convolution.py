"""Graph convolutions and their norms against plain modules on every edge."""

import pytest
import torch
from torch import nn

from hf_any3d.modeling.act.modeling_act_autoencoder import GraphConvolution
from hf_any3d.modeling.point_ops import knn


def plain(graph, tokens, neighbors):
    """Compute the same with one row for every edge, as in the paper."""
    features, outputs = graph.input(tokens), []
    for layer in graph.layers:
        ends = torch.stack([cloud[index] for cloud, index in zip(features, neighbors, strict=True)])
        own = features.unsqueeze(2).expand_as(ends)
        edges = layer.linear(torch.cat([ends - own, own], dim=-1)).permute(0, 3, 1, 2)
        features = nn.functional.leaky_relu(layer.norm(edges), 0.2).amax(dim=-1).transpose(1, 2)
        outputs.append(features)
    rows = graph.output(torch.cat(outputs, dim=-1)).transpose(1, 2)
    return nn.functional.leaky_relu(graph.norm(rows), 0.2).transpose(1, 2)


@pytest.fixture
def graph():
    torch.manual_seed(0)
    graph = GraphConvolution(12, 16, 8, (16, 8, 24))
    with torch.no_grad():
        for parameter in graph.parameters():  # gains of either sign
            parameter.add_(0.5 * torch.randn_like(parameter)) if parameter.ndim > 1 else parameter.normal_()
    return graph


def test_backward_pass_keeps_less_than_one_row_per_edge(graph):
    tokens, centers = torch.randn(2, 64, 12, requires_grad=True), torch.rand(2, 64, 3)
    neighbors = knn(centers, centers, 4)

    def kept(forward):
        sizes = {}

        def pack(tensor):
            sizes[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            output = forward()
        return sum(sizes.values()), output

    ours, _ = kept(lambda: graph(tokens, neighbors))
    every_edge, _ = kept(lambda: plain(graph, tokens, neighbors))
    assert ours * 3 < every_edge
