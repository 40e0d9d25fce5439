"""Build the models that the training programs train, with a PEFT method or a fine-tuning protocol."""

import importlib
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, cast

from peft import get_peft_model
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel

from hf_any3d import registry
from hf_any3d.hub.names import check_name
from hf_any3d.modeling.any2point import (
    Any2PointConfig,
    Any2PointForPointCloudClassification,
    Any2PointPreTrainedModel,
    PointTokenizerConfig,
    PointTokenizerForPointCloudClassification,
)
from hf_any3d.modeling.any2point.small_data_defaults import LIGHT_ADAPTER
from hf_any3d.modeling.config_checks import check_fields, check_settings
from hf_any3d.modeling.encoders.frozen_encoder import FROZEN
from hf_any3d.modeling.encoders.loading import ENCODER_WEIGHTS, encoder_settings
from hf_any3d.modeling.layers.unknown_score import UnknownScoreMixin
from hf_any3d.modeling.point_encoders.text_towers import text_tower_settings
from hf_any3d.modeling.pretrained_parts.sources import resolve_encoder
from hf_any3d.training.arguments import AdapterArguments, ModelArguments, argument
from hf_any3d.training.peft_methods import build_peft_config
from hf_any3d.training.protocol import PROTOCOLS, set_trainable
from hf_any3d.tuners.targets import encoder_owner, layer_stack

CLASSES, PARTS, SCENES = TASKS = ("classification", "part_segmentation", "semantic_segmentation")
# Tasks of models that compare clouds, or parts of them, with texts.
ZERO_SHOT, PARTS_BY_NAME = "zero_shot", "zero_shot_segmentation"
# Their names in the registry.
_REGISTERED = {
    CLASSES: "point-cloud-classification",
    PARTS: "point-cloud-segmentation",
    SCENES: "point-cloud-segmentation",
    ZERO_SHOT: "zero-shot-point-cloud-classification",
    PARTS_BY_NAME: "zero-shot-point-cloud-segmentation",
}
# Model types with a head that the programs train on labels, and the first of them around a frozen encoder.
MODEL_TYPES = tuple(
    name
    for name, kind in registry.MODEL_TYPES.items()
    if {"point-cloud-classification", "point-cloud-segmentation"} & kind.heads.keys()
)
_AROUND_ENCODERS = next(name for name in MODEL_TYPES if registry.MODEL_TYPES[name].has_frozen_encoder)
# Config settings that a fine-tuning protocol requires.
_PROTOCOL_SETTINGS: dict[str, dict[str, Any]] = {"linear": {"head_widths": []}, "side": {"side_network": True}}
# Attributes in which attention modules of transformers hold their dropout, as a number or a module.
_DROPOUTS = ("attention_dropout", "dropout")


def _listed_types() -> str:
    """Return the model types with the descriptions of their records."""
    says = {name: registry.MODEL_TYPES[name].says for name in MODEL_TYPES}
    return ", ".join(f"{name} ({text})" if text else name for name, text in says.items())


@dataclass
class PointModelArguments(ModelArguments):
    """The model to train: a frozen encoder of another modality, a point transformer, or a baseline."""

    model_type: str | None = argument(
        None,
        help=f"One of {_listed_types()}. By default that of --model_name_or_path, else {_AROUND_ENCODERS}.",
    )
    model_name_or_path: str | None = argument(
        None, help="Directory or Hub name of a pretrained point transformer to fine-tune."
    )
    encoder_weights: str = argument(
        "pretrained",
        help="Weights of the frozen encoder: pretrained, or, as a control, random (random initialization), "
        "shuffled (values permuted within each tensor) or none (only tokenizer and head; classification "
        "only).",
    )
    tuning: str = argument("full", help=f"Fine-tuning protocol of a point transformer: {', '.join(PROTOCOLS)}.")
    drifting_statistics: bool = argument(
        False, help="Keep drop path and running statistics of frozen parts active, as in the original code."
    )

    def __post_init__(self):
        super().__post_init__()
        self.model_type = self.model_type or _default_type(self.model_name_or_path)
        weights = (*ENCODER_WEIGHTS, "none")
        check_settings(self, {"model_type": MODEL_TYPES, "tuning": PROTOCOLS, "encoder_weights": weights})
        # It has an option of its own, by which checks and reports know it.
        if "encoder_weights" in (self.model_config or {}):
            raise ValueError("--model_config has 'encoder_weights'; use --encoder_weights instead")
        if self.has_frozen_encoder:
            # Arguments of point encoders, and those of an encoder that is left out
            if self.model_name_or_path or self.tuning != "full":
                others = ", ".join(name for name, kind in registry.MODEL_TYPES.items() if kind.is_point_encoder)
                raise ValueError(
                    f"--model_name_or_path and --tuning are for --model_type {others}; {self.model_type} has --peft"
                )
            for name in ("encoder_attention_dropout", "encoder_dtype"):
                if self.encoder_weights == "none" and getattr(self, name):
                    raise ValueError(
                        f"--{name} {getattr(self, name)} has no effect with --encoder_weights "
                        "none; leave out one of them"
                    )
        else:
            # Arguments of a frozen encoder, and protocols without pretrained weights
            if self.encoder_weights != "pretrained":
                raise ValueError(f"--encoder_weights with --model_type {self.model_type}, which has no frozen encoder")
            if self.encoder_dtype is not None:
                raise ValueError(f"--encoder_dtype {self.encoder_dtype} is for --model_type {_AROUND_ENCODERS}")
            if self.model_name_or_path is None and self.tuning != "full":
                raise ValueError(f"--tuning {self.tuning} would freeze untrained weights; add --model_name_or_path")

    @property
    def has_frozen_encoder(self) -> bool:
        """True if the model is trained around a frozen encoder of another modality."""
        return registry.MODEL_TYPES[str(self.model_type)].has_frozen_encoder

    @staticmethod
    def of_another_model(file: Mapping[str, Any], given: Mapping[str, Any]) -> set[str]:
        """Return the settings of a file that do not apply to the model that the command line requests instead."""
        model_type = file.get("model_type") or _default_type(file.get("model_name_or_path"))
        # None of the settings of model and adapter holds for another model.
        if given.get("model_type", model_type) != model_type:
            return {field.name for field in (*fields(PointModelArguments), *fields(AdapterArguments))}
        if given.get("encoder_weights") == "none":
            return {"peft", "peft_config", "encoder_attention_dropout", "encoder_dtype"}
        return set()

    def start(self) -> dict[str, Any]:
        """Return what a report lists about the start of training; empty with a frozen encoder."""
        if self.encoder_weights == "none":
            return {"model": None, "encoder weights": "none"}
        if self.has_frozen_encoder:
            return {}
        drift = {"drifting statistics": True} if self.drifting_statistics else {}
        return {"model": self.model_name_or_path, "tuning": self.tuning, **drift}


def _default_type(pretrained: str | None) -> str:
    """Return the type of a pretrained point encoder by its config, or without one the type around other encoders."""
    if pretrained is None:
        return _AROUND_ENCODERS
    try:
        check_name(pretrained)
        model_type = PreTrainedConfig.get_config_dict(pretrained)[0].get("model_type")
    except OSError:  # which is reported when the model is opened
        return next(name for name in MODEL_TYPES if registry.MODEL_TYPES[name].is_point_encoder)
    registry.check_model_type(pretrained, model_type)
    return str(model_type)


def build_model(
    task: str, arguments: PointModelArguments, adapter: AdapterArguments, labels: list[str], **config: Any
) -> nn.Module:
    """Build the model to train.

    The task is `CLASSES`, `PARTS`, `SCENES`, `ZERO_SHOT` or `PARTS_BY_NAME`; labels are the names of classes. Of
    further settings of the config, those of the arguments win. With an adapter in a pretrained point transformer,
    `arguments.tuning` is set to "adapter".
    """
    assert arguments.model_type is not None and isinstance(arguments.model_config, dict)
    model_class = find_model_class(arguments.model_type, task, arguments.model_name_or_path)
    if arguments.encoder_weights == "none":
        return _build_without_encoder(task, arguments, adapter, labels, **config)
    if arguments.has_frozen_encoder:
        config["encoder_weights"] = arguments.encoder_weights
        model_class = cast(type[Any2PointPreTrainedModel], model_class)
        return build_adapted_model(model_class, arguments, adapter, labels, **config)
    is_adapted = adapter.peft not in (None, "none", "full")
    if is_adapted and arguments.model_name_or_path is None:
        raise ValueError(f"--peft {adapter.peft} would freeze untrained weights; add --model_name_or_path")
    if is_adapted and arguments.tuning not in ("full", "adapter"):
        raise ValueError(
            f"--peft {adapter.peft} cannot be combined with --tuning {arguments.tuning}; leave out one of them"
        )
    model: Any = _build_point_encoder(model_class, arguments, labels, **config)
    if is_adapted:
        assert adapter.peft is not None and isinstance(adapter.peft_config, dict)
        # The report lists it as the protocol of the run.
        arguments.tuning = "adapter"
        return get_peft_model(model, build_peft_config(adapter.peft, model, adapter.peft_config))
    set_trainable(model, arguments.tuning, drifting_statistics=arguments.drifting_statistics)
    # Models with parts that are never trained, or by their config are not, freeze them again.
    if arguments.tuning == "full" and hasattr(model, "freeze_untrained"):
        model.freeze_untrained()
    return model


def _build_point_encoder(
    model_class: type[PreTrainedModel], arguments: PointModelArguments, labels: list[str], **config: Any
) -> PreTrainedModel:
    """Build a point encoder with a head, with pretrained weights if the arguments name some."""
    assert isinstance(arguments.model_config, dict)
    config_kwargs = {
        **_label_settings(labels),
        **config,
        **_PROTOCOL_SETTINGS.get(arguments.tuning, {}),
        **arguments.model_config,
    }
    config_class = model_class.config_class
    assert config_class is not None
    if "autoencoder_config" in config_class.__dataclass_fields__:
        config_kwargs.setdefault("autoencoder_config", None)  # set in checkpoints of pretraining
    check_fields(config_class, arguments.model_config, "--model_config")
    if arguments.model_name_or_path is None:
        attention = arguments.attn_implementation
        return model_class(config_class(**config_kwargs, attn_implementation=attention))  # pyright: ignore[reportCallIssue] not a field
    config_kwargs["attn_implementation"] = arguments.attn_implementation
    stored = PreTrainedConfig.get_config_dict(arguments.model_name_or_path)[0]
    task = registry.task_of_class((stored.get("architectures") or [""])[0])
    saved_labels = stored.get("id2label") or {}
    # In a file, numbers are texts.
    in_order = [saved_labels[number] for number in sorted(saved_labels, key=int)]
    has_other_classes = task == "point-cloud-classification" and in_order != labels
    if has_other_classes:
        # The head of a classifier of other classes is of no use.
        model = model_class(config_class.from_pretrained(arguments.model_name_or_path, **config_kwargs))
        trained = cast("type[PreTrainedModel]", type(model.base_model)).from_pretrained(
            arguments.model_name_or_path, attn_implementation=arguments.attn_implementation
        )
        model.base_model.load_state_dict(trained.state_dict())
    else:
        model = model_class.from_pretrained(arguments.model_name_or_path, **config_kwargs)
    # What the saved model knew are other clouds.
    if isinstance(model, UnknownScoreMixin):
        model.drop_unknown_score()
    return model


def _build_without_encoder(
    task: str, arguments: PointModelArguments, adapter: AdapterArguments, labels: list[str], **config: Any
) -> PreTrainedModel:
    """Build the classifier that is left without the encoder; other settings of the encoder have no effect."""
    if task != CLASSES:
        raise ValueError(f"--encoder_weights none is only for classification; this is {task.replace('_', ' ')}")
    if adapter.peft not in (None, "none"):
        raise ValueError(f"--peft {adapter.peft} adapts the encoder that --encoder_weights none leaves out")
    assert isinstance(arguments.model_config, dict)
    check_fields(Any2PointConfig, arguments.model_config, "--model_config")
    # The encoder gives the tokens their width.
    encoder = encoder_settings(arguments.encoder_name_or_path, arguments.tower, arguments.encoder_revision)
    config_kwargs = {**_label_settings(labels), **config, **arguments.model_config}
    # The same as with the encoder.
    config_kwargs = Any2PointForPointCloudClassification.complete_settings(
        encoder["encoder_config"], config_kwargs, "small_data"
    )
    complete = Any2PointConfig(encoder_config=encoder["encoder_config"], **config_kwargs)
    return PointTokenizerForPointCloudClassification(PointTokenizerConfig.without_encoder(complete))


def text_tower_of(arguments: PointModelArguments) -> dict[str, Any]:
    """Return the settings of a point encoder's config that record `--encoder_name_or_path` as its text tower.

    Empty for a model around a frozen encoder, and for a pretrained point encoder, whose config has them.
    """
    if arguments.has_frozen_encoder or arguments.model_name_or_path is not None:
        return {}
    source = resolve_encoder(arguments.encoder_name_or_path, arguments.encoder_revision)
    tower = text_tower_settings(arguments.encoder_name_or_path, arguments.encoder_revision)
    if tower["text_pooling"] not in (None, "mean"):
        raise ValueError(
            f"--encoder_name_or_path {arguments.encoder_name_or_path} pools words by {tower['text_pooling']!r}; "
            f"expected a text tower that takes their mean, for --model_type {arguments.model_type}"
        )
    part = {"name_or_path": source.name, "revision": source.revision}
    return {"projection_dim": tower["text_width"], "parts": {"text_tower": part}}


def find_model_class(model_type: str, task: str, saved: str | None = None) -> type[PreTrainedModel]:
    """Return the registered model class of a model type and task: of several that of a `saved` model, or the first."""
    kind = registry.MODEL_TYPES.get(model_type)
    if kind is not None:
        names = list(kind.heads.get(_REGISTERED[task], ()))
        if saved is not None and len(names) > 1:
            architectures = PreTrainedConfig.get_config_dict(saved)[0].get("architectures") or []
            names.sort(key=lambda name: name not in architectures)
        for name in names:
            # Models of parts and of scenes have classes of their own for the same task.
            if (name in kind.part_heads) == (task == PARTS):
                return getattr(importlib.import_module("hf_any3d"), name)
    raise ValueError(f"no model of the type {model_type!r} is registered for {task}")


def build_adapted_model(
    model_class: type[Any2PointPreTrainedModel],
    arguments: ModelArguments,
    adapter: AdapterArguments,
    labels: list[str],
    **config: Any,
) -> nn.Module:
    """Build a model with a frozen encoder, tokenizer, head and adapter; see `build_model`."""
    assert isinstance(arguments.model_config, dict) and isinstance(adapter.peft_config, dict)
    model = model_class.from_encoder_pretrained(
        arguments.encoder_name_or_path,
        tower=arguments.tower,
        revision=arguments.encoder_revision,
        num_layers=arguments.num_layers,
        attn_implementation=arguments.attn_implementation,
        **{**_label_settings(labels), **config, **arguments.model_config},
    )
    if arguments.encoder_attention_dropout:
        drop_attention(model, arguments.encoder_attention_dropout)
    peft = adapter.peft or "guided_adapter"
    if peft == "full":
        model.unfreeze_encoder()
    if peft in ("none", "full"):
        return model
    settings = adapter.peft_config
    if peft == "guided_adapter":
        settings = {**LIGHT_ADAPTER, **settings}  # with which the model's own light settings were found
    adapted = get_peft_model(model, build_peft_config(peft, model, settings))
    # An optimizer's steps are often smaller than the distance between neighboring half-precision numbers, and get
    # lost.
    half = [name for name, weight in adapted.named_parameters() if weight.requires_grad and weight.itemsize < 4]
    if half:
        raise ValueError(
            f"--encoder_dtype {model.config.encoder_dtype} with --peft {peft} trains {half[0]} and "
            f"{len(half) - 1} more in half precision; use another method, or leave out --encoder_dtype"
        )
    return adapted


def drop_attention(model: nn.Module, share: float) -> int:
    """Apply dropout to the attention weights of the frozen layers in training.

    Otherwise a frozen encoder stays in eval mode. Weights stay frozen, evaluation is unchanged, and nothing is saved
    with the model. Returns the number of attention modules.

    Source: the released Any2Point programs for ScanObjectNN with DINOv2 and ImageBind (0.1).
    """
    owner = encoder_owner(model)
    count = 0
    for module in (module for layer in layer_stack(owner).layers for module in layer.modules()):
        # Of nested attention modules only the one with the projections computes the weights.
        has_projections = any(isinstance(child, nn.Linear) for child in module.children())
        if "attention" not in type(module).__name__.lower() or not has_projections:
            continue
        for name in _DROPOUTS:
            # Some attention modules apply an nn.Dropout, others pass a number to a kernel.
            dropout = getattr(module, name, None)
            if isinstance(dropout, nn.Dropout):
                dropout.p = share
            elif isinstance(dropout, (float, int)):
                setattr(module, name, share)
            else:
                continue
            # Only the attention module follows train() again; its linear layers have no mode.
            vars(module).pop(FROZEN, None)
            count += 1
            break
    if not count:
        kind = type(getattr(owner, "encoder", owner)).__name__
        raise ValueError(f"{kind} has no attention with dropout; use another encoder, or no dropout")
    return count


def _label_settings(labels: list[str]) -> dict[str, Any]:
    return {"id2label": dict(enumerate(labels)), "label2id": {name: number for number, name in enumerate(labels)}}
