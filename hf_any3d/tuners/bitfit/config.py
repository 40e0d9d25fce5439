"""Configuration of BitFit."""

from __future__ import annotations

from dataclasses import dataclass, field

from peft import PeftConfig

from hf_any3d.modeling.pretrained_parts.stored_adapters import check_patterns
from hf_any3d.tuners.peft_type import BITFIT


@dataclass
class BitFitConfig(PeftConfig):
    """Train the biases in the layers of a frozen encoder, those of its norms among them (arXiv 2106.10199).

    Learned is what is added to each pretrained bias, starting from zero: the same gradient as training the bias, and
    several adapters can share an encoder. Weight decay therefore pulls towards the pretrained biases, not towards
    zero. By default tokenizer, class token, output norm and head are trained and saved with it.
    """

    target_modules: list[str] | str | None = field(
        default=None,
        metadata={"help": "Modules whose biases train; all linear layers and norms of the layers when None."},
    )
    exclude_modules: list[str] | str | None = field(default=None, metadata={"help": "Modules to leave out."})
    modules_to_save: list[str] | None = field(
        default=None,
        metadata={"help": "Modules trained in full and saved; None for tokenizer, class token, output norm and head."},
    )

    def __post_init__(self):
        super().__post_init__()
        check_patterns(self)
        self.peft_type = BITFIT
        if isinstance(self.target_modules, list):
            self.target_modules = set(self.target_modules)
