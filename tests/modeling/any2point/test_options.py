import torch
from peft import PeftModel, get_peft_model
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


def test_gates_learn_and_are_saved_with_the_adapter(tmp_path):
    gated = get_peft_model(_model(), GuidedAdapterConfig(gate=0.5))
    gated(points=_points(), labels=torch.tensor([0, 1, 2, 0])).loss.backward()
    gates = {name: value for name, value in gated.named_parameters() if "gate" in name}
    assert len(gates) == 2 and all(value.grad.abs().sum() > 0 for value in gates.values())
    with torch.no_grad():
        for value in gates.values():
            value.copy_(torch.linspace(0, 1, value.numel()))
    gated.eval().save_pretrained(tmp_path)
    loaded = PeftModel.from_pretrained(_model(), tmp_path).eval()
    torch.testing.assert_close(loaded(points=_points()).logits, gated(points=_points()).logits)
