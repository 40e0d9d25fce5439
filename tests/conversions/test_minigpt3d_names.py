import pytest
import torch

from hf_any3d.conversions.minigpt3d.names import convert_minigpt3d_state_dict
from tests.errors import raises


def test_one_tensor_under_two_names_is_taken_once():
    queries, mean = torch.rand(1, 3, 4), torch.rand(5)
    original = {
        "query_tokens": queries,
        "query_expert_dict.0": queries.clone(),
        "pc_encoder.encoder.first_conv.1.running_mean": mean,
        "point_encoder.encoder.first_conv.1.running_mean": mean.clone(),
        "point_encoder.cls_token": torch.ones(1, 1, 6),
        "point_encoder.encoder.first_conv.0.weight": torch.ones(8, 6, 1),
        "Qformer.bert.embeddings.position_ids": torch.zeros(1, 512),
    }
    converted = convert_minigpt3d_state_dict(original)
    assert {name: tuple(tensor.shape) for name, tensor in converted.items()} == {
        "bridge.experts.queries.0": (3, 4),
        "point_encoder.patch_encoder.lift_norm.running_mean": (5,),
        "point_encoder.class_token.token": (6,),
        "point_encoder.patch_encoder.lift.weight": (8, 6),
    }
    assert torch.equal(converted["bridge.experts.queries.0"], queries[0])


def test_two_values_for_one_tensor_are_refused():
    original = {"query_tokens": torch.zeros(1, 3, 4), "query_expert_dict.0": torch.ones(1, 3, 4)}
    with raises(ValueError, naming="query_expert_dict"):
        convert_minigpt3d_state_dict(original)


def test_tensors_of_no_known_part_are_named():
    with pytest.raises(ValueError, match="no known part: vision.weight"):
        convert_minigpt3d_state_dict({"vision.weight": torch.zeros(1)})
