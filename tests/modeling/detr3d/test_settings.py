"""What settings of a 3DETR build, and what a detector returns of its parts."""

from torch import nn

from hf_any3d.modeling.act import ActModel
from hf_any3d.modeling.detr3d import Detr3DForPointCloudObjectDetection
from tests.tiny_act import tiny_act

ON_ENCODER = {"hidden_size": 32, "decoder_layers": 2, "decoder_ffn_dim": 32, "num_queries": 8, "num_labels": 3}


def _of_kind(model: nn.Module, kind: type[nn.Module]) -> list[nn.Module]:
    return [module for module in model.modules() if isinstance(module, kind)]


def test_norms_beside_an_adapter_measure_nothing(tmp_path):
    from peft import LoraConfig, get_peft_model

    from hf_any3d import encoder_linear_pattern

    tiny_act(ActModel).save_pretrained(tmp_path)
    base = Detr3DForPointCloudObjectDetection.from_point_encoder_pretrained(tmp_path, **ON_ENCODER)
    norms = [module for name, module in base.named_modules() if isinstance(module, nn.BatchNorm1d)]
    assert all(norm.training for norm in norms if norm in _of_kind(base.train().class_head, nn.BatchNorm1d))
    adapted = get_peft_model(base, LoraConfig(r=2, target_modules=encoder_linear_pattern(base))).train()
    assert not any(norm.training for norm in norms)
    assert all(drop.training for drop in _of_kind(adapted, nn.Dropout) if drop.p == 0.3)
    copies = adapted.base_model.model.class_head.modules_to_save["default"]
    assert [norm.training for norm in _of_kind(copies, nn.BatchNorm1d)] == [True, True]
