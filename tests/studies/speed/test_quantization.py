"""The study of quantized models: how forms are opened and measured, and its table."""

import pytest
import torch

from hf_any3d.modeling.pretrained_parts.loading import is_quantized
from hf_any3d.modeling.uni3d import Uni3DForPointCloudClassification
from studies.speed import quantization
from tests.tiny_aligned import tiny_aligned


@pytest.mark.slow
@pytest.mark.parametrize("form", ["bfloat16", "torchao, bfloat16", "quantize_dynamic, float32"])
def test_forms_are_opened_and_measured(form, tmp_path):
    float_model = tiny_aligned(Uni3DForPointCloudClassification)
    float_model.save_pretrained(tmp_path)
    opened = quantization.open_form("encoder", str(tmp_path), form)
    assert is_quantized(opened) == (form != "bfloat16")
    assert (opened.dtype == torch.bfloat16) == form.endswith("bfloat16")
    full = sum(each.numel() for each in float_model.parameters()) * (2 if form.endswith("bfloat16") else 4)
    assert (quantization.weight_bytes(opened) < 0.95 * full) == (form != "bfloat16")
    row = quantization.measure("encoder", str(tmp_path), form, rounds=1)
    assert row["form"] == form and row["clouds_per_s"] > 0 and row["peak_MB"] >= 0
