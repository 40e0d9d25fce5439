"""The stored run of IDPT with parts of shapes in full size: prompts before three blocks, removed after them."""

from __future__ import annotations

import torch
from peft import PeftModel, get_peft_model

from hf_any3d import ActConfig, ActForPartSegmentation, IDPTConfig
from hf_any3d.conversions.act import convert_act_state_dict
from tests.modeling.act.test_segmentation_parity import PARTS
from tests.tuners.peft_case import PeftCase


def parts_run() -> tuple[PeftCase, PeftModel]:
    """Return the case and our model with its weights."""
    case = PeftCase("peft_idpt_partseg")
    own = {name: tensor for name, tensor in case.original.items() if "dgcnn_cls" in name or "prompt_cls" in name}
    base = ActForPartSegmentation(
        ActConfig(
            num_groups=128,
            num_labels=50,
            category_parts=PARTS,
            segmentation_pooling="prompts",
            sampling_min_squared_norm=1e-3,
        )
    )
    rest = {name: tensor for name, tensor in case.original.items() if name not in own}
    base.load_state_dict(convert_act_state_dict("partseg", rest), strict=True)
    config = IDPTConfig(prompt_layers=[3, 7, 11], prompt_module="mlp", keep_prompts=False)
    model = get_peft_model(base, config)
    named = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    with torch.no_grad():
        for name, tensor in own.items():
            if ".bn5." not in name:  # which nothing reads
                named[ours_of(name)].copy_(tensor.view(named[ours_of(name)].shape))
    return case, model.eval()


def ours_of(name: str) -> str:
    """Return our name of a tensor that the program has added."""
    layers = "base_model.model.act.blocks.layers."
    if name == "prompt_cls_pos":
        return f"{layers}3.idpt_position.default"
    _, module, conv, part, leaf = name.split(".")
    return f"{layers}{module.removeprefix('dgcnn_cls')}.idpt_{conv}_{part}.default.{leaf}"
