"""Stand-ins for FiftyOne and LeRobot: what the examples for them import, in the documented form, and no more."""

from __future__ import annotations

import abc
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from enum import StrEnum
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
from torch import nn


@contextmanager
def installed(modules: Mapping[str, Mapping[str, Any]]) -> Iterator[None]:
    """Put modules with these names into `sys.modules`, each also into the one that holds it."""
    with pytest.MonkeyPatch.context() as patch:
        for name, content in modules.items():
            module = ModuleType(name)
            vars(module).update(content)
            patch.setitem(sys.modules, name, module)
            parent, _, own = name.rpartition(".")
            if parent:
                setattr(sys.modules[parent], own, module)
        yield


class Model(abc.ABC):
    """FiftyOne's interface of models: what is abstract there."""

    def __enter__(self):
        return self

    def __exit__(self, *error: object) -> None:
        return None

    @property
    @abc.abstractmethod
    def media_type(self): ...

    @property
    @abc.abstractmethod
    def transforms(self): ...

    @property
    @abc.abstractmethod
    def preprocess(self): ...

    @property
    @abc.abstractmethod
    def ragged_batches(self): ...

    @abc.abstractmethod
    def predict(self, arg): ...


FIFTYONE = {
    "fiftyone": {"Classification": SimpleNamespace, "Classifications": SimpleNamespace},
    "fiftyone.core": {},
    "fiftyone.core.models": {"Model": Model},
}


class NormalizationMode(StrEnum):
    """How a feature is normalized."""

    MEAN_STD = "MEAN_STD"


@dataclass
class Feature:
    """A feature of a policy."""

    shape: tuple[int, ...]


@dataclass
class PreTrainedConfig(abc.ABC):
    """LeRobot's base class of configurations: registration, features, abstract methods."""

    input_features: dict[str, Feature] | None = field(default_factory=dict)
    output_features: dict[str, Feature] | None = field(default_factory=dict)
    device: str | None = "cpu"
    choices = {}

    def __post_init__(self) -> None:
        self.device = self.device or "cpu"

    @classmethod
    def register_subclass(cls, name: str):
        def register(kind: type) -> type:
            cls.choices[name] = kind
            return kind

        return register

    @property
    def robot_state_feature(self):
        return (self.input_features or {}).get("observation.state")

    @property
    def action_feature(self):
        return (self.output_features or {}).get("action")

    @property
    @abc.abstractmethod
    def observation_delta_indices(self): ...

    @property
    @abc.abstractmethod
    def action_delta_indices(self): ...

    @property
    @abc.abstractmethod
    def reward_delta_indices(self): ...

    @abc.abstractmethod
    def get_optimizer_preset(self): ...

    @abc.abstractmethod
    def get_scheduler_preset(self): ...

    @abc.abstractmethod
    def validate_features(self): ...


class PreTrainedPolicy(nn.Module, abc.ABC):
    """LeRobot's base class of policies: its checks and abstract methods."""

    def __init__(self, config: PreTrainedConfig, *inputs: Any, **kwargs: Any):
        super().__init__()
        self.config = config

    def __init_subclass__(cls, **kwargs: Any):
        super().__init_subclass__(**kwargs)
        assert cls.config_class and cls.name

    @abc.abstractmethod
    def get_optim_params(self): ...

    @abc.abstractmethod
    def reset(self): ...

    @abc.abstractmethod
    def forward(self, batch): ...

    @abc.abstractmethod
    def predict_action_chunk(self, batch): ...

    @abc.abstractmethod
    def select_action(self, batch): ...


_STEPS = ("AddBatchDimension", "Device", "Normalizer", "RenameObservations", "Unnormalizer")
LEROBOT = {
    "lerobot": {},
    "lerobot.configs": {"PreTrainedConfig": PreTrainedConfig, "NormalizationMode": NormalizationMode},
    "lerobot.optim": {"AdamWConfig": SimpleNamespace},
    "lerobot.policies": {"PreTrainedPolicy": PreTrainedPolicy},
    "lerobot.utils": {},
    "lerobot.utils.constants": {
        "ACTION": "action",
        "OBS_STATE": "observation.state",
        "POLICY_PREPROCESSOR_DEFAULT_NAME": "policy_preprocessor",
        "POLICY_POSTPROCESSOR_DEFAULT_NAME": "policy_postprocessor",
    },
    "lerobot.processor": {
        "PolicyProcessorPipeline": SimpleNamespace,
        **{f"{name}ProcessorStep": type(f"{name}ProcessorStep", (SimpleNamespace,), {}) for name in _STEPS},
    },
    "lerobot.processor.converters": {"policy_action_to_transition": len, "transition_to_policy_action": len},
}
