"""Answers of a detector's outputs, and settings of processors by their class, against plain loops."""

import json

import torch

from hf_any3d import PointCloudProcessor, PointTransformerV3Processor


def test_boxes_with_few_points_in_them_are_left_out():
    logits = torch.tensor([[[9.0, 0, 0], [9.0, 0, 0]]])
    boxes = torch.tensor([[[0, 0, 0, 2, 2, 2, 0], [9, 9, 9, 2, 2, 2, 0]]], dtype=torch.float32)
    points = torch.zeros(1, 5, 6)
    points[:, :, 3:] = 9  # colors are no coordinates
    processor, outputs = PointCloudProcessor(), {"logits": logits, "pred_boxes": boxes}
    (answer,) = processor.post_process_object_detection(outputs, points=points, min_points=1)
    assert torch.equal(answer["boxes"], boxes[0, :1])


def test_a_saved_file_names_the_class_that_opens_it(tmp_path):
    processor = PointCloudProcessor(num_points=7)
    processor.save_pretrained(tmp_path)
    stored = json.loads((tmp_path / "preprocessor_config.json").read_text())
    assert stored["processor_class"] == "PointCloudProcessor" and stored["num_points"] == 7
    assert not hasattr(processor, "processor_class"), "of the file alone"
    for kind in (PointCloudProcessor, PointTransformerV3Processor):
        made = PointCloudProcessor.from_dict({"processor_class": kind.__name__, "num_points": 9})
        assert type(made) is kind and made.num_points == 9 and not hasattr(made, "processor_class")
    other = PointCloudProcessor.from_dict({"processor_class": "Other", "num_points": 9})
    assert type(other) is PointCloudProcessor and other.num_points == 9
