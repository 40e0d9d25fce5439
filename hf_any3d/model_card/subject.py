"""The model that a card describes: its class, config, adapter and training report."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import MISSING, dataclass, field, fields
from pathlib import Path
from typing import Any, cast

from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id
from peft import PeftConfig, PeftModel
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel

from hf_any3d import registry
from hf_any3d.model_card.run_report import RunReport
from hf_any3d.model_card.tasks import PARTS, TASKS, CardTask
from hf_any3d.modeling.pretrained_parts.mixin import opens_from_adapter
from hf_any3d.tuners.targets import left_out_modules
from hf_any3d.utils.markdown import code

# Fields of a PEFT config that do not describe what the adapter does.
_NOT_SETTINGS = {"auto_mapping", "base_model_name_or_path", "inference_mode", "peft_type", "peft_version", "revision"}


@dataclass(frozen=True)
class Subject:
    """A model whose card is to be written; what is unknown of it is None."""

    model_class: type
    config: PreTrainedConfig
    adapter: Mapping[str, Any] = field(default_factory=dict)
    """`method` and `settings` of its PEFT adapter; empty without one."""
    total_parameters: int | None = None
    report: RunReport | None = None
    num_points: int | None = None
    left_out: tuple[str, ...] = ()
    """Modules that were trained with the adapter but are not saved with it."""

    @classmethod
    def from_model(cls, model: nn.Module, report: RunReport | None = None, num_points: int | None = None) -> Subject:
        """Collect what is known of a loaded model, with or without an adapter."""
        inner = cast(PreTrainedModel, model.get_base_model() if isinstance(model, PeftModel) else model)
        left_out: tuple[str, ...] = ()
        # Other adapters need their base model anyway, so that they are incomplete without a list.
        if isinstance(model, PeftModel) and opens_from_adapter(type(inner), inner.config):
            active = model.active_adapter
            # An empty list once all adapters are deleted.
            left_out = tuple(left_out_modules(model, active)) if isinstance(active, str) else ()
        return cls(
            type(inner),
            inner.config,
            report.adapter if report else adapter_facts(model),
            sum(parameter.numel() for parameter in inner.parameters()),
            report,
            num_points,
            left_out,
        )

    @property
    def task(self) -> CardTask:
        """Text on the task of the model."""
        return self.named_task[1]

    @property
    def named_task(self) -> tuple[str, CardTask]:
        """Name of the registered class that the model's derives from, and its text."""
        # A user's subclass has the card of the class that it derives from.
        for name in (base.__name__ for base in self.model_class.__mro__):
            if name in TASKS:
                return name, TASKS[name]
            kind = registry.type_of_class(name)
            if kind is not None:
                # Heads for parts are of a task that has other heads, too.
                text = PARTS if name in kind.part_heads else TASKS[kind.cards.get(name) or kind.models()[name]]
                return name, text
        name = self.model_class.__name__
        raise ValueError(
            f"{name} cannot be described in a model card: hf_any3d.registry does not have it; expected an entry "
            f"{name!r} of hf_any3d.model_card.TASKS"
        )

    @property
    def model_type(self) -> registry.ModelType:
        """The registered model type of the model's class, or of one that it derives from."""
        # Of a class that derives from no registered one, by the type in its config.
        return registry.type_of_model(self.model_class) or registry.MODEL_TYPES[self.config.model_type]

    @property
    def encoder(self) -> str | None:
        """Name of the frozen encoder or teacher."""
        if self.report is not None:
            return self.report.encoder.get("name")
        return getattr(self.config, "encoder_name_or_path", None)

    @property
    def start(self) -> str | None:
        """Name of the point transformer that training started from."""
        if self.report is not None:
            return self.report.start.get("model")
        return getattr(self.config, "base_name_or_path", None) if self.adapter else None

    @property
    def method(self) -> str | None:
        """PEFT method of the adapter."""
        return self.adapter.get("method")

    @property
    def is_complete(self) -> bool:
        """False if an adapter is saved without all that opening it needs."""
        return not self.left_out and (not self.method or opens_from_adapter(self.model_class, self.config))

    @property
    def is_trained(self) -> bool:
        """True if the training run is known."""
        return self.report is not None

    @property
    def classes(self) -> list[str]:
        """Class names in order; empty for a task without classes."""
        labels = cast("dict[int, str]", self.config.id2label) if self.task.has_classes else {}
        return [labels[number] for number in sorted(labels)]

    def show_name(self, name: str) -> str:
        """Format a repository, or the last part of a path, as inline code."""
        return code(name if hub_name(name) else Path(name).name)

    def locate_encoder(self, name: str | None) -> str:
        """Return a sentence on where an encoder's weights are, starting with "encoder is"."""
        if name is None:
            return "encoder is stored in this repository."
        if hub_name(name):
            return f"encoder is loaded from {code(name)}, and its weights are checked against a checksum."
        return (
            "encoder is loaded from a local directory of the machine that this was made on; before sharing, store it "
            "with the model, or name a repository on the hub."
        )


def hub_name(name: Any) -> str | None:
    """Return a repository name as it is, and None for a local path."""
    # A folder of this name is what was opened, and not the repository.
    if not name or not isinstance(name, (str, os.PathLike)) or os.path.isabs(name) or os.path.isdir(name):
        return None
    try:
        validate_repo_id(str(name))
    except HFValidationError:
        return None
    return str(name)


def adapter_facts(model: nn.Module) -> dict[str, Any]:
    """Return the PEFT method of a model's active adapter and its non-default settings; empty without an adapter."""
    # Models of transformers have adapters of their own too, without a PeftModel around them.
    configs = getattr(model, "peft_config", None)
    if not isinstance(configs, Mapping) or not configs:
        return {}
    if isinstance(model, PeftModel):
        active = model.active_adapter
    else:
        active = next(iter(cast(PreTrainedModel, model).active_adapters()), None)
    # Without an active adapter, the first one is meant.
    config = configs.get(active, next(iter(configs.values())))
    return {"method": config.peft_type.value.lower(), "settings": changed_settings(config)}


def changed_settings(config: PeftConfig) -> dict[str, Any]:
    """Return the settings of a PEFT config that are not its defaults, of plain types."""
    changed = {}
    for setting in fields(config):
        value = getattr(config, setting.name)
        # A default may be made anew for each config, such as a list.
        default = setting.default_factory() if setting.default_factory is not MISSING else setting.default
        if setting.init and setting.name not in _NOT_SETTINGS and value != default:
            # Sets have no order, and cards of the same settings would differ.
            value = sorted(value) if isinstance(value, set) else value
            changed[setting.name] = value if isinstance(value, (bool, int, float, list)) else str(value)
    return changed
