"""Answers of a detector's outputs, and settings of processors by their class, against plain loops."""

import json

import pytest
import torch

from hf_any3d import PointCloudProcessor, PointTransformerV3Processor


def test_boxes_above_a_score_are_answers_the_likeliest_first():
    generator = torch.Generator().manual_seed(0)
    logits = 3 * torch.randn(2, 6, 4, generator=generator, dtype=torch.float64)
    # Far apart, so that none goes for another.
    boxes = torch.rand(2, 6, 7, generator=generator) + 50 * torch.arange(6)[None, :, None]
    found = PointCloudProcessor().post_process_object_detection(
        {"logits": logits, "pred_boxes": boxes}, threshold=0.25, top_k=3
    )
    assert len(found) == 2
    for cloud, answer in enumerate(found):
        shares = logits[cloud].float().softmax(dim=-1)
        scored = [
            (shares[box, label].item(), box, label) for box in range(6) for label in [int(shares[box, :3].argmax())]
        ]
        some = PointCloudProcessor().post_process_object_detection(
            {"logits": logits[cloud : cloud + 1], "pred_boxes": boxes[cloud : cloud + 1]}, threshold=0.25, top_k=3
        )[0]
        assert all(torch.equal(answer[name], some[name]) for name in answer)
        assert answer["scores"].tolist() == sorted(answer["scores"].tolist(), reverse=True)
        assert 0 < len(answer["scores"]) <= 3 and (answer["scores"] >= 0.25).all()
        for box, label in zip(answer["boxes"], answer["labels"], strict=True):
            (number,) = [n for n in range(6) if torch.equal(boxes[cloud, n], box)]
            assert (number, int(label)) in [(own, kind) for _, own, kind in scored]
    with pytest.raises(TypeError):
        PointCloudProcessor().post_process_object_detection({"logits": logits, "pred_boxes": boxes}, odd=1)


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
