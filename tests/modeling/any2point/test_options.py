import torch
from peft import get_peft_model
from transformers import BertConfig, BertModel

from hf_any3d.modeling.any2point import Any2PointConfig, Any2PointForPointCloudClassification
from hf_any3d.tuners import GuidedAdapterConfig


def _model(**settings) -> Any2PointForPointCloudClassification:
    torch.manual_seed(0)
    encoder = BertModel(
        BertConfig(
            vocab_size=8,
            hidden_size=24,
            num_hidden_layers=2,
            num_attention_heads=2,
            intermediate_size=48,
            hidden_act="gelu",
        )
    )
    config = Any2PointConfig(
        encoder_config=encoder.config, num_labels=3, num_tokens=8, tokenizer_neighbors=4, head_widths=(8,), **settings
    )
    return Any2PointForPointCloudClassification(config, encoder=encoder).eval()


def _points() -> torch.Tensor:
    return torch.rand(4, 64, 3, generator=torch.Generator().manual_seed(1)) - 0.5


def test_a_gate_of_zero_skips_the_frozen_layers():
    model = _model()
    gated = get_peft_model(model, GuidedAdapterConfig(gate=0.0, aggregation_scale=0.0))
    before = gated(points=_points()).logits
    with torch.no_grad():
        for parameter in model.any2point.encoder.encoder.layer.parameters():
            if not parameter.requires_grad:
                parameter.mul_(3)
    torch.testing.assert_close(gated(points=_points()).logits, before)
