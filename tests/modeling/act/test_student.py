"""The point transformer and all models with a head on it."""

import pytest
import torch

from hf_any3d.modeling.act import ActConfig, ActForPointCloudClassification, ActForSemanticSegmentation
from tests.tiny_act import SMALL


def test_initial_weights_are_as_in_the_released_programs():
    torch.manual_seed(0)
    model = ActForPointCloudClassification(ActConfig(**(SMALL | {"hidden_size": 192, "head_widths": (256,)})))
    weight = model.act.blocks.layers[0].mlp.fc1.weight
    assert weight.std().item() == pytest.approx(0.02, rel=0.05) and not model.act.blocks.layers[0].mlp.fc1.bias.any()
    assert model.act.class_token.token.std().item() == pytest.approx(0.02, rel=0.2)
    assert model.classifier.hidden[0].weight.abs().max().item() == pytest.approx(384**-0.5, rel=1e-2)
    torch.manual_seed(0)
    segmenter = ActForSemanticSegmentation(ActConfig(**(SMALL | {"propagation_widths": (256, 256)})))
    assert segmenter.propagation.out.weight.std().item() == pytest.approx(0.02, rel=0.05)
    assert not segmenter.segmenter.from_points.bias.any()


def test_a_segmenter_does_not_change_its_config_argument():
    config = ActConfig(**SMALL)
    assert ActForSemanticSegmentation(config).config.use_class_token is False
    assert config.use_class_token is True
