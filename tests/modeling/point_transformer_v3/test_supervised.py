"""The supervised layout as a transformers model: training, saving, batches, settings."""

import pytest
import torch

from hf_any3d.modeling.point_transformer_v3 import (
    PointTransformerV3Config,
    PointTransformerV3ForPointCloudSegmentation,
)
from tests.errors import raises
from tests.tiny_ptv3 import tiny_ptv3

LAYOUT = {
    "stem": "convolution",
    "stage_norm": "batch",
    "pooling": "serialized",
    "block_rule": "branch",
    "depth_rule": "max",
    "decoder_convolution": "skip",
    "use_decoder": True,
    "depths": (2, 3),
    "decoder_depths": (2,),
    "decoder_hidden_sizes": (16,),
    "decoder_num_attention_heads": (2,),
    "lovasz_weight": 1.0,
    "shuffle_curves": "never",
    "drop_path_rate": 0.0,
}


def model_of(**changes):
    return tiny_ptv3(PointTransformerV3ForPointCloudSegmentation, **LAYOUT | changes)


def gradients(model, points, labels):
    model.zero_grad()
    model.train()(points, labels=labels).loss.backward()
    return {name: weight.grad.clone() for name, weight in model.named_parameters() if weight.grad is not None}


@pytest.mark.parametrize("classes", [{"b": [0, 1, 2], "a": [0, 1]}, {"b": [2, 0], "a": [0, 1], "c": [1, 0]}])
@pytest.mark.parametrize("head", ["conditions", "texts"])
def test_data_sets_keep_their_order_when_saved(head, classes, tmp_path):
    several = {"segmentation_head": head, "condition_classes": classes, "condition": "a", "num_labels": 2}
    several |= {"norm_conditions": ["b", "a", "c"], "condition_layer_norms": True, "condition_size": 4}
    model = model_of(**several, adaptive_norms=True, text_embedding_size=5)
    if head == "texts":
        model.segmenter.class_embeddings.normal_()
    model.save_pretrained(tmp_path)
    opened = PointTransformerV3ForPointCloudSegmentation.from_pretrained(tmp_path).eval()
    assert opened.config.condition_classes == classes and list(opened.config.condition_classes) == list(classes)
    points = torch.rand(1, 80, 6)
    with torch.no_grad():
        torch.testing.assert_close(opened(points).logits, model(points).logits, rtol=0, atol=1e-6)
    # As another program may give it.
    assert PointTransformerV3Config.from_dict(model.config.to_dict()).condition_classes == classes


@pytest.mark.slow
def test_blocks_that_are_computed_again_have_the_same_gradients():
    model, points = model_of(), torch.rand(2, 80, 6)
    labels = torch.randint(3, (2, 80))
    plain = gradients(model, points, labels)
    assert len(plain) == len(list(model.parameters()))
    model.gradient_checkpointing_enable({"use_reentrant": False})
    again = gradients(model, points, labels)
    assert plain.keys() == again.keys()
    for name in plain:
        torch.testing.assert_close(again[name], plain[name], atol=1e-6, rtol=1e-4)
    model.gradient_checkpointing_enable({"use_reentrant": True})
    with raises(ValueError, naming="use_reentrant"):
        gradients(model, points, labels)
    # Decoders read a skip connection, of which a block that is computed again knows no gradient.
    model = model_of(block_rule="full")
    model.gradient_checkpointing_enable({"use_reentrant": True})
    with raises(ValueError, naming="use_reentrant"):
        gradients(model, points, labels)


def test_nothing_that_blocks_leave_stays_in_memory_without_gradients():
    model = model_of()
    with torch.no_grad():
        stages = model.point_transformer_v3.encode(torch.rand(1, 60, 6)).stages
    # What the last block of a stage left has no reader.
    assert all(len(voxels.sources) <= 2 for voxels in stages)


def test_a_stride_of_more_bits_than_a_cloud_has_pools_nothing():
    model = model_of(pooling_strides=(4,))
    small, large = torch.tensor([[[0, 0, 0], [1, 0, 0]]]), torch.tensor([[[0, 0, 0], [7, 0, 0]]])
    points = torch.rand(1, 2, 6)
    with torch.no_grad():
        for cells, pooled in ((small, [[0, 0, 0], [1, 0, 0]]), (large, [[0, 0, 0], [1, 0, 0]])):
            stages = model.point_transformer_v3.encode(points, grid_coord=cells).stages
            assert stages[1].grid_coord.tolist() == pooled
