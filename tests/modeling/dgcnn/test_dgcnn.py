"""DGCNN against plain loops over edges."""

import pytest
import torch
from torch import nn

from hf_any3d.modeling.dgcnn import DgcnnConfig, DgcnnForSemanticSegmentation, DgcnnModel
from tests.common.case import spread_weights, varied_clouds
from tests.errors import raises

SIZES = {"in_channels": 9, "edge_widths": ((8, 8), (12,)), "hidden_sizes": (16,), "num_neighbors": 5}


def plain_edges(layer: nn.Module, features: torch.Tensor, places: torch.Tensor, k: int) -> torch.Tensor:
    """The layers on each edge of one cloud, `(points, channels)`, and their maximum."""
    rows = []
    # One layer reads a neighbor's difference and the point, as in the paper.
    weight = torch.cat([layer.from_neighbor.weight, layer.from_point.weight], dim=1)
    for point, place in zip(features, places, strict=True):
        near = (places - place).square().sum(dim=1).argsort(stable=True)[:k]
        edges = torch.stack([torch.cat([features[other] - point, point]) for other in near])
        edges = nn.functional.leaky_relu(layer.norm(edges @ weight.T), 0.2)
        for further in layer.layers:
            edges = nn.functional.leaky_relu(further.norm(further.linear(edges)), 0.2)
        rows.append(edges.amax(dim=0))
    return torch.stack(rows)


@torch.no_grad()
@pytest.mark.parametrize("channel", [0, 6])
def test_edges_are_those_to_near_points_and_then_to_near_features(channel):
    model = DgcnnModel(DgcnnConfig(**SIZES, position_channel=channel)).eval()
    spread_weights(model)
    clouds = varied_clouds(2, 30, 9)
    output = model(clouds, output_hidden_states=True)
    for number, cloud in enumerate(clouds):
        first = plain_edges(model.edges[0], cloud, cloud[:, channel : channel + 3], 5)
        second = plain_edges(model.edges[1], first, first, 5)
        last = model.layers[0](torch.cat([first, second], dim=1)[None])[0]
        for state, expected in zip(output.hidden_states, (cloud, first, second, last), strict=True):
            torch.testing.assert_close(state[number], expected)
        torch.testing.assert_close(output.pooler_output[number], last.amax(dim=0))


@torch.no_grad()
def test_scores_of_a_point_read_its_edges_and_the_cloud():
    model = DgcnnForSemanticSegmentation(DgcnnConfig(**SIZES, head_widths=(10, 6), num_labels=4)).eval()
    spread_weights(model)
    clouds = varied_clouds(2, 30, 9)
    output = model(clouds, output_hidden_states=True)
    _, first, second, last = output.hidden_states
    cloud = last.amax(dim=1, keepdim=True).expand(-1, 30, -1)
    rows, head = torch.cat([cloud, first, second], dim=-1), model.segmenter
    rows = rows @ torch.cat([head.from_cloud.weight, head.from_points.weight], dim=1).T
    rows = nn.functional.leaky_relu(head.norm(rows.flatten(0, 1)), 0.2)
    torch.testing.assert_close(output.logits.flatten(0, 1), head.head(rows))
    assert model(clouds).hidden_states is None


def test_clouds_and_settings_that_have_no_graph_are_refused():
    with raises(ValueError, naming="5 or more points"):
        DgcnnModel(DgcnnConfig(**SIZES))(torch.rand(1, 4, 9))
    with raises(ValueError, naming="position_channel"):
        DgcnnConfig(in_channels=6, position_channel=4)
