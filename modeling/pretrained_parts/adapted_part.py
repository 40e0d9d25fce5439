"""The pretrained part that adapters of a model are trained on: what each system defines of it, and its checksum."""

import copy
from pathlib import Path
from typing import Any, ClassVar

import torch
from transformers import PreTrainedConfig, PreTrainedModel

from hf_any3d.modeling.pretrained_parts.loading import is_quantized
from hf_any3d.modeling.pretrained_parts.record import PretrainedPart
from hf_any3d.modeling.pretrained_parts.tensors import is_local, own_state, tensors_checksum


class AdaptedPartMixin:
    """Definitions of a system with adapters on a pretrained part; others leave them as they are."""

    # Name of the part that adapters are trained on, in the config and as a folder next to the adapter;
    # None if adapters never stand without the model.
    _adapted_part: ClassVar[str | None] = None
    # Whether adapters name the part itself as their base model, and not a model around it.
    _bases_are_parts: ClassVar[bool] = False
    # Prefixes of config fields that do not affect what an adapter does.
    _settings_without_effect_on_adapters: ClassVar[tuple[str, ...]] = ("parts",)
    # Whether `dtype` applies to the full model, or only to its pretrained weights.
    _has_single_dtype: ClassVar[bool] = False

    @classmethod
    def has_adapted_part(cls, config: PreTrainedConfig) -> bool:
        """Return whether a model of this config has a pretrained part that adapters are trained on."""
        return cls._adapted_part is not None

    @property
    def adapted_part(self) -> PreTrainedModel:
        """The pretrained part that adapters are trained on."""
        raise NotImplementedError

    @classmethod
    def open_part(cls, config: PreTrainedConfig, hub: dict[str, Any], **loading: Any) -> PreTrainedModel:
        """Load the recorded pretrained part; `hub` and `loading` are arguments of `from_pretrained`."""
        raise NotImplementedError

    @classmethod
    def open_stored_part(
        cls, name: str, config: PreTrainedConfig, hub: dict[str, Any], **loading: Any
    ) -> PreTrainedModel:
        """Load the pretrained part from a folder next to an adapter, otherwise as `open_part` does."""
        raise NotImplementedError

    @classmethod
    def build_around(cls, part: PreTrainedModel, config: PreTrainedConfig) -> PreTrainedModel:
        """Build the model around its pretrained part; everything else is untrained."""
        raise NotImplementedError

    @classmethod
    def stored_dtype(cls, config: PreTrainedConfig) -> torch.dtype:
        """Return the dtype in which `save_with_adapter` stored the part, the only one in which checksums compare."""
        return torch.float32

    def find_source(self) -> PretrainedPart:
        """Return the record of the pretrained part, which is elsewhere if a repository has its present weights."""
        raise NotImplementedError

    def save_part(self, state: dict[str, torch.Tensor], folder: Path) -> None:
        """Write the pretrained part for `open_stored_part`, with the weights `state`, without adapters."""
        raise NotImplementedError

    def config_to_store(self) -> PreTrainedConfig:
        """Return a copy of the config to store with an adapter."""
        config = copy.deepcopy(self.config)
        quantizer = getattr(self, "hf_quantizer", None)
        if quantizer is not None and not quantizer.pre_quantized:
            del config.quantization_config  # a loading option, not a property of the weights
        return config

    def reopened_state(self, name: str) -> dict[str, torch.Tensor]:
        """Load the recorded weights of the part again, for comparison if its precision was changed."""
        return own_state(self.open_part(self.config, {}))

    def checksum_in_memory(self, dtype: torch.dtype) -> str | None:
        """Return the checksum of the part's tensors; None if it is quantized, sharded or in another dtype."""
        part = self.adapted_part
        # Checksums are of the bytes that were stored.
        if is_quantized(part) or part.dtype != dtype:
            return None
        return checksum_of(part)

    def describe_weights(self, config: PreTrainedConfig) -> str | None:
        """Return the part's checksum, in the kind of a config's; None if it is unknown, another text if changed."""
        return self.checksum_in_memory(self.stored_dtype(config))


def checksum_of(part: torch.nn.Module) -> str | None:
    """Return the checksum of a part's own tensors; None if some are not here."""
    state = own_state(part, bare=True)
    return tensors_checksum(state) if all(map(is_local, state.values())) else None
