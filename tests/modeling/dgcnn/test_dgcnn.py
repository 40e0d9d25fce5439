"""DGCNN against plain loops over edges."""

import torch

from hf_any3d.modeling.dgcnn import DgcnnConfig, DgcnnModel
from tests.errors import raises

SIZES = {"in_channels": 9, "edge_widths": ((8, 8), (12,)), "hidden_sizes": (16,), "num_neighbors": 5}


def test_clouds_and_settings_that_have_no_graph_are_refused():
    with raises(ValueError, naming="5 or more points"):
        DgcnnModel(DgcnnConfig(**SIZES))(torch.rand(1, 4, 9))
    with raises(ValueError, naming="position_channel"):
        DgcnnConfig(in_channels=6, position_channel=4)
