"""Answers of a detector's outputs, and settings of processors by their class, against plain loops."""

import torch

from hf_any3d import PointCloudProcessor


def test_boxes_with_few_points_in_them_are_left_out():
    logits = torch.tensor([[[9.0, 0, 0], [9.0, 0, 0]]])
    boxes = torch.tensor([[[0, 0, 0, 2, 2, 2, 0], [9, 9, 9, 2, 2, 2, 0]]], dtype=torch.float32)
    points = torch.zeros(1, 5, 6)
    points[:, :, 3:] = 9  # colors are no coordinates
    processor, outputs = PointCloudProcessor(), {"logits": logits, "pred_boxes": boxes}
    (answer,) = processor.post_process_object_detection(outputs, points=points, min_points=1)
    assert torch.equal(answer["boxes"], boxes[0, :1])
