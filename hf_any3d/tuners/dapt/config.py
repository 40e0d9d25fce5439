"""Configuration of DAPT."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from hf_any3d.modeling.config_checks import check_choices
from hf_any3d.tuners.tuners_utils import EncoderLayersConfig, extend_peft_type

DAPT = extend_peft_type("DAPT")
_CHOICES = {"positions": ("every_layer", "once"), "scales": ("identity", "random")}


@dataclass
class DAPTConfig(EncoderLayersConfig):
    """Adapt each token by a bottleneck with a scale of its own, and add a prompt in each layer (DAPT).

    A bottleneck beside the MLP is multiplied, token by token, by a scale that it reads from the token, so that some
    tokens are adapted and others are not; its mean over the tokens becomes a prompt, which goes on to the later
    layers. The outputs of all norms and linear layers are scaled and shifted by channel. A head can read the prompts:
    `pooling=["cls", "prompt_mean", "max"]` in the config of an ACT classifier. Other layers than those of a point
    transformer are followed by the bottleneck.

    By default a model starts as the frozen one, apart from prompts of zeros, and positions are added where the
    encoder was pretrained to add them; `published()` returns the settings of the released program.
    """

    r: int = field(default=64, metadata={"help": "Width of the bottlenecks."})
    dropout: float = field(default=0.0, metadata={"help": "Dropout inside them."})
    positions: str = field(
        default="every_layer",
        metadata={
            "help": "Where a point transformer adds the positions of its tokens: before 'every_layer', as in "
            "pretraining, or 'once', before the first."
        },
    )
    scales: str = field(
        default="identity",
        metadata={"help": "Start of scales and shifts: 'identity', or 'random' with a standard deviation of 0.02."},
    )
    init_weights: bool = field(
        default=True, metadata={"help": "Initialize the last layer of bottlenecks to zero; False for random values."}
    )

    def __post_init__(self):
        super().__post_init__()
        self.peft_type = DAPT
        check_choices(self, _CHOICES)

    @classmethod
    def published(cls, **settings: Any) -> DAPTConfig:
        """Return the config of the released program."""
        return cls(**{"positions": "once", "scales": "random", **settings})
