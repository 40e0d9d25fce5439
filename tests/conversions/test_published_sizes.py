"""Trained parameters of the six released variants, counted without weights."""

import pytest
import torch
from peft import get_peft_model
from transformers import AutoConfig

from hf_any3d import Any2PointConfig, Any2PointForPointCloudClassification, GuidedAdapterConfig
from hf_any3d.conversions.any2point import VARIANTS
from hf_any3d.model_card.run_report import count_parameters
from tests.modeling.any2point.reference_case import ReferenceCase


@pytest.mark.slow
@pytest.mark.parametrize("name", VARIANTS)
def test_trained_parameters_are_those_of_the_released_program(name):
    variant = VARIANTS[name]
    manifest = ReferenceCase("any2point_" + name.replace("-", "_")).manifest
    encoder = AutoConfig.for_model(**(variant.encoder | variant.encoder_changes))
    with torch.device("meta"):
        model = Any2PointForPointCloudClassification(Any2PointConfig(encoder_config=encoder, **variant.model))
        adapted = get_peft_model(model, GuidedAdapterConfig(**variant.adapter))
    trained, _ = count_parameters(adapted)
    head = sum(
        value.numel() for name, value in adapted.named_parameters() if value.requires_grad and "classifier" in name
    )
    assert trained == manifest["trainable_count"]
    assert 1_260_000 <= trained <= 1_420_000
    assert 800_000 <= trained - head <= 950_000
