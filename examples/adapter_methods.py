"""What `compare_adapters.py` compares: each method and each ablation, defined once.

All of them stand on the same wrapped encoder (`shapes_recipe.py`). Unless a method says otherwise, the encoder is
frozen, and tokenizer, class token, output norm and head train in full beside what the method adds.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import shapes_recipe as recipe
from bench_learn import random_encoder, replace_encoder
from peft import get_peft_model
from torch import nn
from transformers import set_seed

from hf_any3d.modeling.any2point import Any2PointForPointCloudClassification
from hf_any3d.training.models import build_peft_config


@dataclass(frozen=True)
class Method:
    """One row of the table.

    Args:
        title: Its name in the table.
        about: What trains, in words.
        adapt: Makes the model that trains of the wrapped encoder.
        model: Changes of the model's settings.
        random_encoder: Put an encoder of the same shape with random weights in the place of the pretrained one.
        rate: Learning rate of what trains inside the encoder, where none is searched for; of the layer, for "linear".
        own: Whether the method has anything that takes that learning rate.
    """

    title: str
    about: str
    adapt: Callable[[Any2PointForPointCloudClassification], nn.Module]
    model: dict[str, Any] = field(default_factory=dict)
    random_encoder: bool = False
    rate: float = recipe.TRAINING["learning_rate"]
    own: bool = True


def train_classifier_alone(model: Any2PointForPointCloudClassification) -> nn.Module:
    """Freeze all but the last linear layer."""
    model.requires_grad_(False)
    model.classifier.out.requires_grad_(True)
    return model


def train_everything(model: Any2PointForPointCloudClassification) -> nn.Module:
    """Let the encoder train, too."""
    model.unfreeze_encoder()
    return model


def peft(name: str, **settings: Any) -> Callable[[Any2PointForPointCloudClassification], nn.Module]:
    """Any PEFT method by its name."""
    return lambda model: get_peft_model(model, build_peft_config(name, model, settings))


GUIDED = Method(
    "guided adapter",
    "a bottleneck (r = 16) beside each layer's feed-forward branch, attention among the tokens of a virtual cell, an "
    "ensemble over six views, gates that start at 0.2",
    peft("guided_adapter", **recipe.ADAPTER),
)

METHODS: dict[str, Method] = {
    "linear": Method(
        "linear",
        "one linear layer on the pooled features; tokenizer, class token and norm stay random, the encoder frozen",
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
        rate=recipe.TRAINING["learning_rate"] / 10,
    ),
}

ABLATIONS: dict[str, Method] = {
    "no_projection": replace(
        GUIDED,
        title="without projection",
        about="tokens stand on the encoder's line in the order in which they were sampled, for positions and cells",
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
        adapt=peft("guided_adapter", **recipe.ADAPTER, guidance=False),
    ),
    "no_gate": replace(
        GUIDED,
        title="without gates",
        about="as the paper has it: layers count in full from the start",
        adapt=peft("guided_adapter", **(recipe.ADAPTER | {"gate": None})),
    ),
    "random_encoder": replace(
        GUIDED, title="random encoder", about="random weights in the frozen encoder", random_encoder=True
    ),
}


def views_ablation(count: int) -> Method:
    """The guided adapter with fewer views."""
    title = f"{count} view{'s' if count > 1 else ''}"
    return replace(GUIDED, title=title, about=f"{count} of the six views", model={"num_views": count})


def find_method(name: str) -> Method:
    """A method or an ablation by its name; `views_2` is the ablation with two views."""
    if name.startswith("views_"):
        return views_ablation(int(name.removeprefix("views_")))
    return (METHODS | ABLATIONS)[name]


def build(name: str, seed: int, names: list[str], encoder: str, model_settings: dict[str, Any]) -> nn.Module:
    """The model that a run trains.

    Args:
        name: Of a method or an ablation.
        seed: Governs everything that starts at random.
        names: Names of the classes.
        encoder: Name or directory of the pretrained encoder.
        model_settings: Changes of the recipe's model that hold for all methods.
    """
    method = find_method(name)
    wrapper = recipe.build_wrapper(seed, names, encoder, **{**model_settings, **method.model})
    if method.random_encoder:
        wrapper = replace_encoder(wrapper, random_encoder, seed)
    set_seed(seed)
    return method.adapt(wrapper)
