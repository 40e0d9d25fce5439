"""Base configurations of this package's PEFT methods, and their names in PEFT's enum."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

from peft import PeftConfig, PeftType

from hf_any3d.modeling.config_checks import LAYERS, Ranges, check_numbers
from hf_any3d.modeling.pretrained_parts.stored_adapters import check_patterns


def extend_peft_type(name: str) -> PeftType:
    """Add a member to PEFT's enum of methods, or return the existing one.

    PEFT refuses methods whose name is not a member, and an enum can neither be subclassed nor extended by public
    means, so the member is written to the enum's own tables.
    """
    if name in PeftType.__members__:
        return PeftType[name]
    member = str.__new__(PeftType, name)
    member._name_ = member._value_ = name
    member._sort_order_ = len(PeftType._member_names_)  # pyright: ignore[reportAttributeAccessIssue] enum internal
    PeftType._member_names_.append(name)
    PeftType._member_map_[name] = member
    PeftType._value2member_map_[name] = member
    type.__setattr__(PeftType, name, member)
    return member


@dataclass
class EncoderTunerConfig(PeftConfig):
    """Configuration of a method that adapts modules in the layers of a frozen encoder.

    By default tokenizer, class token, output norm and head are trained and saved with the adapter.
    """

    target_modules: list[str] | set[str] | str | None = field(
        default=None, metadata={"help": "Regular expression or names of the modules to adapt; None for the default."}
    )
    exclude_modules: list[str] | str | None = field(default=None, metadata={"help": "Modules to leave out."})
    modules_to_save: list[str] | None = field(
        default=None,
        metadata={"help": "Modules trained in full and saved; None for tokenizer, class token, output norm and head."},
    )

    def __post_init__(self):
        super().__post_init__()
        check_patterns(self)
        if isinstance(self.target_modules, list):
            self.target_modules = set(self.target_modules)


@dataclass
class EncoderLayersConfig(EncoderTunerConfig):
    """Configuration of a method that adapts complete layers of a frozen encoder, by default all of them.

    Raises:
        ValueError: If both `target_modules` and `layers_to_transform` are given.
    """

    ranges: ClassVar[Ranges] = {"layers_to_transform": (-LAYERS[1], LAYERS[1])}

    layers_to_transform: list[int] | int | None = field(
        default=None, metadata={"help": "Numbers of the layers to adapt; None for all."}
    )

    def __post_init__(self):
        super().__post_init__()
        check_numbers(self, self.ranges)
        if self.target_modules is not None and self.layers_to_transform is not None:
            raise ValueError("give target_modules or layers_to_transform, not both")
