"""What the configurations of our methods share: which layers they adapt, and what is trained beside them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

from peft import PeftConfig

from hf_any3d.modeling.config_checks import LAYERS, Ranges, check_numbers
from hf_any3d.modeling.pretrained_parts.stored_adapters import check_patterns


@dataclass
class EncoderLayersConfig(PeftConfig):
    """Configuration of a method that adapts whole layers of a frozen encoder.

    By default it adapts all layers, and tokenizer, class token, output norm and head are trained and saved with it.

    Raises:
        ValueError: Both `target_modules` and `layers_to_transform`.
    """

    ranges: ClassVar[Ranges] = {"layers_to_transform": (-LAYERS[1], LAYERS[1])}

    layers_to_transform: list[int] | int | None = field(
        default=None, metadata={"help": "Numbers of the layers to adapt; None for all."}
    )
    target_modules: list[str] | str | None = field(
        default=None, metadata={"help": "Regular expression of the layers to adapt; found from the encoder when None."}
    )
    exclude_modules: list[str] | str | None = field(default=None, metadata={"help": "Layers to leave out."})
    modules_to_save: list[str] | None = field(
        default=None,
        metadata={"help": "Modules trained in full and saved; None for tokenizer, class token, output norm and head."},
    )

    def __post_init__(self):
        super().__post_init__()
        check_numbers(self, self.ranges)
        check_patterns(self)
        if self.target_modules is not None and self.layers_to_transform is not None:
            raise ValueError("give target_modules or layers_to_transform, not both")
        if isinstance(self.target_modules, list):
            self.target_modules = set(self.target_modules)
