"""Figures of pages that follow from settings alone are those of the models."""

import re

import torch
from peft import get_peft_model
from transformers import BertConfig, Dinov2Config, ViTConfig

from docs.tools.snippets import pages
from hf_any3d import Any2PointForPointCloudClassification, GuidedAdapterConfig
from hf_any3d.modeling.any2point import Any2PointConfig
from hf_any3d.modeling.any2point.small_data_defaults import LIGHT, fill_in

SMALL = {"hidden_size": 384, "num_attention_heads": 6}
ENCODERS = {
    "all-MiniLM-L6-v2": BertConfig(**SMALL, num_hidden_layers=6, intermediate_size=1536, vocab_size=1),
    "DINOv2-small": Dinov2Config(**SMALL),
    "ViT-base": ViTConfig(),
}


def test_pages_tell_how_many_parameters_are_trained():
    trained = {}
    for name, encoder in ENCODERS.items():
        settings = fill_in(LIGHT, encoder, {"num_labels": 18})
        with torch.device("meta"):
            model = Any2PointForPointCloudClassification(Any2PointConfig(encoder_config=encoder, **settings))
            trained[name], _ = get_peft_model(model, GuidedAdapterConfig()).get_nb_trainable_parameters()
    for page in ("README.md", "docs/fine_tune.md"):
        told = re.findall(r"([\d.]+) million(?: parameters)?(?: trainable)? on (?:a )?([\w-]+)", pages()[page])
        assert len(told) >= 2
        for millions, name in told:
            assert f"{trained[name] / 1e6:.1f}" == millions, f"{page}, {name}: {trained[name]:,}"
