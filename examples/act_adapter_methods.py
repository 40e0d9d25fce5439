"""The methods of `adapter_methods.py` on a pretrained point transformer (ACT) in the place of a wrapped encoder.

Here nothing but the head is new: patches, positions and norms are pretrained, too. So the head alone trains in full
beside what a method adds.
"""

from __future__ import annotations

import os
from dataclasses import replace
from typing import Any

import shapes_recipe as recipe
from adapter_methods import METHODS, Method, peft
from torch import nn
from transformers import set_seed

from hf_any3d.modeling.act import ActForPointCloudClassification
from hf_any3d.training.protocol import set_trainable

HEAD = {name: recipe.MODEL[name] for name in ("head_widths", "head_dropout", "pooling")}
"""Settings of the model that the wrapped encoder has, too."""


def train_by(protocol: str) -> Any:
    """What a protocol of fine-tuning lets train."""

    def adapt(model: ActForPointCloudClassification) -> nn.Module:
        set_trainable(model, protocol)
        return model

    return adapt


ACT_METHODS: dict[str, Method] = METHODS | {
    "linear": replace(
        METHODS["linear"],
        about="one linear layer on the pooled features and the class token",
        adapt=train_by("linear"),
    ),
    "head": replace(METHODS["head"], about="MLP head and class token; nothing else", adapt=train_by("head")),
    "guided": replace(
        METHODS["guided"],
        about="a bottleneck (r = 16) beside each block's feed-forward branch, attention among the patches of a cell, "
        "an ensemble over four grids in space, shifted against each other; no gates, as blocks made for points "
        "count in full",
        adapt=peft("guided_adapter"),
    ),
    "full": replace(METHODS["full"], about="everything, with drop path", adapt=train_by("full")),
}


def build_act(
    name: str, seed: int, names: list[str], base: str | os.PathLike, model_settings: dict[str, Any]
) -> nn.Module:
    """The model that a run trains.

    Args:
        name: Of a method.
        seed: Governs everything that starts at random.
        names: Names of the classes.
        base: Name or directory of a pretrained point transformer.
        model_settings: Changes of the config that hold for all methods.
    """
    method = ACT_METHODS[name]
    set_seed(seed)
    labels = {"id2label": dict(enumerate(names)), "label2id": {label: i for i, label in enumerate(names)}}
    model = ActForPointCloudClassification.from_pretrained(
        base, autoencoder_config=None, **labels, **{**HEAD, **model_settings, **method.model}
    )
    set_seed(seed)
    return method.adapt(model)
