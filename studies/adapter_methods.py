"""Methods that the study of adapters compares, and its ablations, each defined once.

`METHODS` and `ABLATIONS` adapt the quickstart's model. Unless a method says otherwise, the encoder is frozen, and
tokenizer, class token, output norm and head are trained in full next to what the method adds. `POINT_METHODS` adapt a
pretrained point encoder. Its patches, positions and norms are pretrained too, so only its head is trained in full.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, field, fields, replace
from typing import Any

from peft import get_peft_model
from torch import nn
from transformers import AutoConfig, PreTrainedModel, set_seed

from hf_any3d.modeling.any2point import Any2PointForPointCloudClassification
from hf_any3d.training.models import CLASSES, build_peft_config, find_model_class
from hf_any3d.training.protocol import set_trainable
from hf_any3d.tuners import PointGSTConfig
from studies import earlier_recipe


@dataclass(frozen=True)
class Method:
    """One row of the table.

    Args:
        title: Its name in the table.
        about: What is trained, in words.
        adapt: Makes a model trainable by the method.
        model: Changes of the model's settings.
        rate: Learning rate inside the encoder when none is searched for; for "linear", of the linear layer.
        own: Whether the method trains anything with that learning rate.
    """

    title: str
    about: str
    adapt: Callable[[Any2PointForPointCloudClassification], nn.Module]
    model: dict[str, Any] = field(default_factory=dict)
    rate: float = earlier_recipe.TRAINING["learning_rate"]
    own: bool = True


def train_classifier_alone(model: Any2PointForPointCloudClassification) -> nn.Module:
    """Freeze all but the last linear layer."""
    model.requires_grad_(False)
    model.classifier.out.requires_grad_(True)
    return model


def train_everything(model: Any2PointForPointCloudClassification) -> nn.Module:
    """Train the encoder too."""
    model.unfreeze_encoder()
    return model


def peft(name: str, **settings: Any) -> Callable[[Any2PointForPointCloudClassification], nn.Module]:
    """Return a function that adds a PEFT method by its name."""
    return lambda model: get_peft_model(model, build_peft_config(name, model, settings))


GUIDED = Method(
    "guided adapter",
    "a bottleneck (r = 16) beside each layer's feed-forward branch, attention among the tokens of a virtual cell, an "
    "ensemble over six views, gates that start at 0.2",
    peft("guided_adapter", **earlier_recipe.ADAPTER),
)

METHODS: dict[str, Method] = {
    "linear": Method(
        "linear",
        "one linear layer on the pooled features; tokenizer, class token and norm stay random, the encoder frozen",
        train_classifier_alone,
        model={"head_widths": []},
    ),
    "probe": Method(
        "linear, cached",
        "the same on features that are computed once, without augmentation",
        train_classifier_alone,
        model={"head_widths": []},
    ),
    "head": Method(
        "head only",
        "tokenizer, class token, output norm and MLP head; nothing in the encoder",
        lambda model: model,
        own=False,
    ),
    "bitfit": Method("BitFit", "changes of all biases of the encoder's layers, norms included", peft("bitfit")),
    "ia3": Method("IA3", "one factor for each channel of every linear layer of the encoder", peft("ia3")),
    "prompt": Method("prompt tuning", "ten prompt tokens in each layer (deep)", peft("prompt_tokens", num_prompts=10)),
    "lora": Method("LoRA", "r = 8, alpha = 16 on every linear layer of the encoder", peft("lora", r=8, lora_alpha=16)),
    "side": Method(
        "side-tuning",
        "a network of width 64 beside the encoder, which reads each layer's output; no backward pass through them",
        peft("side_tuning"),
    ),
    "bottleneck": Method(
        "bottleneck adapter",
        "a bottleneck (r = 16) beside each layer's feed-forward branch, without guidance or gates",
        peft("guided_adapter", guidance=False, bottleneck_scale=1.0),
    ),
    "guided": GUIDED,
    "full": Method(
        "full fine-tuning",
        "everything that a point cloud meets: layers, norms and positions of the encoder too; dropout in the encoder "
        "is on",
        train_everything,
        rate=earlier_recipe.TRAINING["learning_rate"] / 10,
    ),
}

PUBLISHED_POINTGST = {
    item.name: getattr(PointGSTConfig.published(), item.name)
    for item in fields(PointGSTConfig)
    if getattr(PointGSTConfig.published(), item.name) != getattr(PointGSTConfig(), item.name)
}
"""Settings in which the released program differs from the defaults."""

TOKEN_METHODS: dict[str, Method] = {
    "pointgst": Method(
        "PointGST",
        "a bottleneck (r = 16) in each layer, between eigenvectors of graphs of the tokens",
        peft("pointgst", r=16, local_size=8),
    ),
    "pointgst_published": Method(
        "PointGST, as published",
        "the same with the settings of the released program, whose answers depend on the batch and on rounding",
        peft("pointgst", r=16, local_size=8, **PUBLISHED_POINTGST),
    ),
    "idpt": Method(
        "IDPT", "a prompt before the last layer, made of the tokens of each cloud", peft("idpt", neighbors=8)
    ),
    "dapt": Method(
        "DAPT",
        "a bottleneck (r = 16) for each layer with a scale of each token, a prompt of each layer, scales and shifts",
        peft("dapt", r=16),
    ),
    "ppt": Method(
        "PPT",
        "the tokens of 32 further patches as prompts, and three MLPs (r = 64) that all blocks share; only on ACT's",
        peft("ppt", num_groups=32, r=64),
    ),
}
"""Methods of point transformers; see `studies.adapter_gains`."""

ABLATIONS: dict[str, Method] = {
    "no_projection": replace(
        GUIDED,
        title="without projection",
        about="tokens are on the encoder's line in the order in which they were sampled, for positions and cells",
        model={"token_places": "order"},
    ),
    "random_positions": replace(
        GUIDED,
        title="random positions",
        about="each number of a token has a fixed random place in each view, for positions and cells",
        model={"token_places": "random"},
    ),
    "no_guidance": replace(
        GUIDED,
        title="without guidance",
        about="bottlenecks and gates stay, no cells",
        adapt=peft("guided_adapter", **earlier_recipe.ADAPTER, guidance=False),
    ),
    "no_gate": replace(
        GUIDED,
        title="without gates",
        about="as in the paper: layers count in full from the start",
        adapt=peft("guided_adapter", **(earlier_recipe.ADAPTER | {"gate": None})),
    ),
    "random_encoder": replace(
        GUIDED,
        title="random encoder",
        about="random weights in the frozen encoder",
        model={"encoder_weights": "random"},
    ),
}


def views_ablation(count: int) -> Method:
    """Define the guided adapter with fewer views."""
    title = f"{count} view{'s' if count > 1 else ''}"
    return replace(GUIDED, title=title, about=f"{count} of the six views", model={"num_views": count})


def find_method(name: str) -> Method:
    """Look up a method or an ablation; `views_2` is the ablation with two views."""
    if name.startswith("views_"):
        return views_ablation(int(name.removeprefix("views_")))
    return (METHODS | TOKEN_METHODS | ABLATIONS)[name]


def build_adapted(name: str, seed: int, names: list[str], encoder: str, model_settings: dict[str, Any]) -> nn.Module:
    """Build the quickstart's model, adapted by a method.

    Args:
        name: Name of a method or an ablation.
        seed: Seed of all random weights.
        names: Names of the classes.
        encoder: Name or directory of the pretrained encoder.
        model_settings: Changes of the quickstart's model for all methods.
    """
    method = find_method(name)
    wrapper = earlier_recipe.build_wrapper(seed, names, encoder, **{**model_settings, **method.model})
    set_seed(seed)
    return method.adapt(wrapper)


HEAD = {name: earlier_recipe.MODEL[name] for name in ("head_widths", "head_dropout", "pooling")}
"""Settings that the quickstart's model has too; encoders that are aligned with texts have no choice of pooling."""


def train_by(protocol: str) -> Callable[[PreTrainedModel], nn.Module]:
    """Return a function that makes trainable what a fine-tuning protocol trains."""

    def adapt(model: PreTrainedModel) -> nn.Module:
        set_trainable(model, protocol)
        return model

    return adapt


POINT_METHODS: dict[str, Method] = {
    **METHODS,
    **TOKEN_METHODS,
    "linear": replace(
        METHODS["linear"],
        about="one linear layer on the pooled features; of ACT's students the class token too",
        adapt=train_by("linear"),
    ),
    "probe": replace(METHODS["probe"], about="one linear layer on pooled features that are computed once"),
    "head": replace(METHODS["head"], about="MLP head; of ACT's students the class token too", adapt=train_by("head")),
    "guided": replace(
        METHODS["guided"],
        about="a bottleneck (r = 16) beside each block's feed-forward branch, attention among the patches of a cell, "
        "an ensemble over four grids in space, shifted against each other; no gates, as blocks made for points "
        "count in full",
        adapt=peft("guided_adapter"),
    ),
    "full": replace(METHODS["full"], about="everything, with drop path", adapt=train_by("full")),
}


def build_adapted_point_encoder(
    name: str,
    seed: int,
    names: list[str],
    base: str | os.PathLike,
    model_settings: dict[str, Any],
    random_weights: bool = False,
) -> nn.Module:
    """Build a pretrained point encoder, adapted by a method.

    Args:
        name: Name of a method.
        seed: Seed of all random weights.
        names: Names of the classes.
        base: Name or directory of the point encoder, of any registered type with a classifier.
        model_settings: Changes of its config for all methods.
        random_weights: Draw its weights instead, by the seed.
    """
    method = POINT_METHODS[name]
    config = AutoConfig.from_pretrained(base)
    known = {setting.name for setting in fields(config)}
    settings = {key: value for key, value in HEAD.items() if key in known}
    if "autoencoder_config" in known:
        settings["autoencoder_config"] = None  # set in checkpoints of pretraining
    set_seed(seed)
    labels = {"id2label": dict(enumerate(names)), "label2id": {label: i for i, label in enumerate(names)}}
    settings = {**settings, **model_settings, **method.model}
    model_class = find_model_class(config.model_type, CLASSES)
    if random_weights:
        model = model_class(AutoConfig.from_pretrained(base, **labels, **settings))
    else:
        model = model_class.from_pretrained(base, **labels, **settings)
    set_seed(seed)
    return method.adapt(model)
