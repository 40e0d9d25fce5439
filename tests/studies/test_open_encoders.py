"""The study of open encoders' layouts: its control that sees points alone."""

import torch

from studies import open_encoders


def test_labels_of_points_alone_do_not_depend_on_other_points():
    torch.manual_seed(0)
    network = open_encoders.PointsAlone(3, width=8).eval()
    points = torch.rand(2, 6, 3)
    logits = network(points).logits
    assert logits.shape == (2, 6, 3)
    torch.testing.assert_close(network(points[:, 2:4]).logits, logits[:, 2:4])
