"""The models that the programs for classification and segmentation train, by task and system."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, fields
from typing import Any

from peft import (
    PEFT_TYPE_TO_CONFIG_MAPPING,
    PEFT_TYPE_TO_TUNER_MAPPING,
    PeftConfig,
    PeftType,
    PromptLearningConfig,
    get_peft_model,
)
from torch import nn
from transformers import PreTrainedModel

from hf_any3d.modeling.act import (
    ActConfig,
    ActForPartSegmentation,
    ActForPointCloudClassification,
    ActForSemanticSegmentation,
)
from hf_any3d.modeling.any2point import (
    Any2PointForPartSegmentation,
    Any2PointForPointCloudClassification,
    Any2PointForSemanticSegmentation,
)
from hf_any3d.modeling.encoders.frozen_encoder import FROZEN
from hf_any3d.training import program
from hf_any3d.training.arguments import AdapterArguments, ModelArguments
from hf_any3d.training.protocol import PROTOCOLS, set_trainable
from hf_any3d.tuners import encoder_linear_pattern, trainable_module_names
from hf_any3d.tuners.targets import encoder_module_pattern, encoder_owner, layer_stack
from hf_any3d.tuners.tuners_utils import EncoderTuner

# Where transformers' attention modules keep the share, as a number or as a module.
_NAMES = ("attention_dropout", "dropout")


def drop_attention(model: nn.Module, share: float) -> int:
    """Let the frozen layers drop attention weights in training; frozen weights stay frozen, and evaluation as it was.

    A frozen encoder otherwise stays in eval mode. Nothing of this is saved with the model.

    Args:
        model: Has a frozen encoder, adapted or not.
        share: Share of the weights to drop, from 0 to less than 1.

    Returns:
        The number of attention modules.

    Raises:
        ValueError: A share out of range, or an encoder in which no such attention is found.

    Source: the released Any2Point programs for ScanObjectNN with DINOv2 and ImageBind (0.1).
    """
    if not 0 <= share < 1:
        raise ValueError(f"share is {share}; expected at least 0 and less than 1")
    owner = encoder_owner(model)
    found = 0
    for layer in owner.layer_stack.layers:
        for module in layer.modules():
            name = _dropout_name(module)
            if name is None:
                continue
            if isinstance(getattr(module, name), nn.Dropout):
                getattr(module, name).p = share
            else:
                setattr(module, name, share)
            # The attention alone follows train() again; the linear layers in it have no mode.
            vars(module).pop(FROZEN, None)
            found += 1
    if not found:
        kind = type(getattr(owner, "encoder", owner)).__name__
        raise ValueError(
            f"{kind} has no attention with dropout under {' or '.join(_NAMES)}; expected "
            "another encoder or no such dropout"
        )
    return found


def _dropout_name(module: nn.Module) -> str | None:
    if "attention" not in type(module).__name__.lower():
        return None
    if not any(isinstance(child, nn.Linear) for child in module.children()):
        return None
    return next((name for name in _NAMES if isinstance(getattr(module, name, None), (float, int, nn.Dropout))), None)


# Poly wants the number of a task with every batch, Shadow a language model's config.
_UNFIT = {"POLY", "SHADOW"}


def peft_methods() -> dict[str, type[PeftConfig]]:
    """Names of the PEFT methods that fit, in small letters, with their configs.

    Methods that put prompts in front of embedded text have no place here, nor have those that cannot train tokenizer
    and head along.
    """
    return {
        peft_type.value.lower(): config
        for peft_type, config in PEFT_TYPE_TO_CONFIG_MAPPING.items()
        if peft_type.value not in _UNFIT
        and not issubclass(config, PromptLearningConfig)
        and {"target_modules", "modules_to_save"} <= {field.name for field in fields(config)}
    }


def build_peft_config(name: str, model: nn.Module, settings: dict[str, Any] | None = None) -> PeftConfig:
    """Make the config of a PEFT method for `get_peft_model(model, config)`.

    Left to themselves, all methods adapt the linear layers of the encoder (`ln_tuning` its norms), train what is not
    pretrained in full (`trainable_module_names`), and save it with the adapter, so that methods compare fairly.

    Args:
        name: A name of `peft_methods()`, in any case.
        model: The model that will be adapted; has a frozen encoder or a pretrained point transformer.
        settings: Arguments of the config, which win over the defaults.

    Raises:
        ValueError: An unknown or unsuitable method, or settings that it does not have.
    """
    methods = peft_methods()
    config = methods.get(name.lower())
    if config is None:
        raise ValueError(f"peft method {name!r} is unknown or does not fit; expected one of {', '.join(methods)}")
    known = {field.name for field in fields(config) if field.init}
    settings = dict(settings or {})
    if unknown := sorted(set(settings) - known):
        raise ValueError(f"peft method {name!r} has no setting {unknown[0]!r}; it has {', '.join(sorted(known))}")
    settings.setdefault("modules_to_save", trainable_module_names(model))
    # Our own methods find their places by themselves.
    if not issubclass(PEFT_TYPE_TO_TUNER_MAPPING[PeftType[name.upper()]], EncoderTuner):
        defaults: dict[str, Callable[[nn.Module], Any]] = {
            "target_modules": encoder_norm_pattern if name.lower() == "ln_tuning" else encoder_linear_pattern,
            "feedforward_modules": encoder_feedforward_pattern,
        }
        for key, default in defaults.items():
            if key in known and key not in settings:
                settings[key] = default(model)
    return config(**settings)


def encoder_norm_pattern(model: nn.Module) -> str:
    """A regular expression of all norms in the encoder's layers."""
    return encoder_module_pattern(model, lambda module: "norm" in type(module).__name__.lower())


def encoder_feedforward_pattern(model: nn.Module) -> str:
    """A regular expression of the linear layers that lead from the feed-forward branch's inner width back.

    IA3 scales what enters these, and what leaves the others (arXiv 2205.05638, Sec. 3.3).
    """
    width = layer_stack(model).hidden_size

    def leads_back(module: nn.Module) -> bool:
        return isinstance(module, nn.Linear) and module.out_features == width < module.in_features

    return encoder_module_pattern(model, leads_back)


CLASSES, PARTS, SCENES = "classification", "part segmentation", "semantic segmentation"
_AROUND_ENCODER = {
    CLASSES: Any2PointForPointCloudClassification,
    PARTS: Any2PointForPartSegmentation,
    SCENES: Any2PointForSemanticSegmentation,
}
_POINT_TRANSFORMERS: dict[str, type[PreTrainedModel]] = {
    CLASSES: ActForPointCloudClassification,
    PARTS: ActForPartSegmentation,
    SCENES: ActForSemanticSegmentation,
}
SYSTEMS = ("any2point", "act3d")
# Settings of the config that belong to a protocol of fine-tuning.
_OF_PROTOCOL: dict[str, dict[str, Any]] = {"linear": {"head_widths": []}, "side": {"side_network": True}}


@dataclass
class PointModelArguments(ModelArguments):
    """What is trained: a wrapped encoder of another modality, or a point transformer."""

    model_type: str | None = field(
        default=None,
        metadata={
            "help": "any2point puts a frozen encoder into use, act3d is a point transformer from scratch. Left out: "
            "act3d with --model_name_or_path, else any2point."
        },
    )
    model_name_or_path: str | None = field(
        default=None, metadata={"help": "Directory or hub name of a pretrained point transformer to fine-tune."}
    )
    tuning: str = field(
        default="full",
        metadata={"help": f"What of a point transformer is trained: {', '.join(PROTOCOLS)}."},
    )
    drifting_statistics: bool = field(
        default=False, metadata={"help": "Frozen parts drop branches and gather statistics, as in released programs."}
    )

    def __post_init__(self):
        super().__post_init__()
        self.model_type = self.model_type or ("any2point" if self.model_name_or_path is None else "act3d")
        if self.model_type not in SYSTEMS:
            raise ValueError(f"--model_type {self.model_type!r}; expected one of {', '.join(SYSTEMS)}")
        if self.tuning not in PROTOCOLS:
            raise ValueError(f"--tuning {self.tuning!r}; expected one of {', '.join(PROTOCOLS)}")
        if self.model_type == "any2point" and (self.model_name_or_path or self.tuning != "full"):
            raise ValueError("--model_name_or_path and --tuning are for --model_type act3d; any2point has --peft")
        if self.model_type == "act3d" and self.model_name_or_path is None and self.tuning != "full":
            raise ValueError(f"--tuning {self.tuning} freezes untrained weights; expected --model_name_or_path too")

    def start(self) -> dict[str, Any]:
        """What a report tells of the start; empty around a frozen encoder."""
        if self.model_type == "any2point":
            return {}
        drift = {"drifting statistics": True} if self.drifting_statistics else {}
        return {"model": self.model_name_or_path, "tuning": self.tuning, **drift}


def build_model(
    task: str, arguments: PointModelArguments, adapter: AdapterArguments, labels: list[str], **config: Any
) -> nn.Module:
    """The model to train.

    Args:
        task: `CLASSES`, `PARTS` or `SCENES`.
        arguments: Say which system, and what it starts from.
        adapter: Says which adapter goes into a frozen encoder or a pretrained point transformer; with one into the
            latter, `arguments.tuning` becomes "adapter".
        labels: Names of the classes.
        **config: Further settings of the config; those of `arguments` win.

    Raises:
        ValueError: Settings that the config does not have, or an adapter for a point transformer that is not
            pretrained or has another protocol beside it.
    """
    if arguments.model_type == "any2point":
        return program.build_adapted_model(_AROUND_ENCODER[task], arguments, adapter, labels, **config)
    adapted = adapter.peft not in (None, "none", "full")
    if adapted and arguments.model_name_or_path is None:
        raise ValueError(f"--peft {adapter.peft} freezes untrained weights; expected --model_name_or_path too")
    if adapted and arguments.tuning not in ("full", "adapter"):
        raise ValueError(f"--peft {adapter.peft} beside --tuning {arguments.tuning}; expected one of them")
    settings = {
        "id2label": dict(enumerate(labels)),
        "label2id": {name: number for number, name in enumerate(labels)},
        # What it was pretrained with is over.
        "autoencoder_config": None,
        **config,
        **_OF_PROTOCOL.get(arguments.tuning, {}),
        **arguments.model_config,
    }
    known = {setting.name for setting in fields(ActConfig)}
    if unknown := sorted(set(arguments.model_config) - known):
        raise ValueError(f"--model_config: {unknown[0]!r} is no setting of {ActConfig.__name__}")
    model_class = _POINT_TRANSFORMERS[task]
    if arguments.model_name_or_path is None:
        model = model_class(ActConfig(**settings, attn_implementation=arguments.attn_implementation))
    else:
        model = model_class.from_pretrained(
            arguments.model_name_or_path, attn_implementation=arguments.attn_implementation, **settings
        )
    if adapted:
        arguments.tuning = "adapter"
        return get_peft_model(model, build_peft_config(adapter.peft, model, adapter.peft_config))
    set_trainable(model, arguments.tuning, drifting_statistics=arguments.drifting_statistics)
    return model
