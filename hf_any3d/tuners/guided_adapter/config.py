"""Configuration of the guided adapter."""

from dataclasses import dataclass, field
from typing import Any, Self

from hf_any3d.modeling.any2point.small_data_defaults import LIGHT_ADAPTER
from hf_any3d.tuners.tuners_utils import EncoderLayersConfig


@dataclass
class GuidedAdapterConfig(EncoderLayersConfig):
    """Guided adapter after every layer of a frozen encoder of point tokens (Any2Point, Sec. 3.3).

    It adds a bottleneck to each feed-forward branch and aggregates the features of neighboring tokens in the virtual
    views. Applies to models with an encoder of `hf_any3d.modeling.encoders`, and to point transformers, whose views
    are shifted grids in space; by default tokenizer, class token, output norm and head are trained and saved with it.
    The defaults are the paper's; `light()` returns those for little data.

    Raises:
        ValueError: A setting is none of its choices or out of range; `target_modules` and `layers_to_transform` are
            both given; or, in `get_peft_model`, the encoder has no such layer.
    """

    method = "GUIDED_ADAPTER"
    choices = {"pooling": ("mean", "max_mean"), "start": ("paper", "identity")}  # noqa: RUF012

    r: int = field(default=16, metadata={"help": "Width of the bottleneck parallel to the feed-forward branch."})
    bottleneck_scale: float = field(default=0.3, metadata={"help": "Factor of the bottleneck's output."})
    bottleneck_dropout: float = field(default=0.1, metadata={"help": "Dropout inside the bottleneck."})
    guidance: bool = field(
        default=True, metadata={"help": "Aggregate tokens within cells; False for only the bottleneck (and gate)."}
    )
    aggregation_scale: float = field(default=0.3, metadata={"help": "Factor of the aggregation's output."})
    pooling: str = field(default="mean", metadata={"help": "Pooling over a cell: 'mean' or 'max_mean'."})
    attention_width: int = field(default=12, metadata={"help": "Channels of the attention within cells."})
    attention_heads: int = field(default=6, metadata={"help": "Heads of the attention within cells."})
    attention_dropout: float = field(default=0.0, metadata={"help": "Dropout of the attention within cells."})
    share_attention: bool = field(
        default=True, metadata={"help": "Use one set of attention weights for all layers of a stage, as published."}
    )
    cell_size: float | None = field(
        default=None,
        metadata={
            "help": "Edge of a cell in positions (1D), pixels (2D), radii of the cloud (point transformers) or voxels "
            "of a stage of an encoder of voxels; None for the model's."
        },
    )
    voxel_size: float = field(default=0.16, metadata={"help": "Edge of a voxel, in units of the cloud's radius."})
    count_empty_cells: bool = field(
        default=False, metadata={"help": "Include empty cells in batch statistics as zeros, as released."}
    )
    init_weights: bool = field(
        default=True, metadata={"help": "Initialize the bottlenecks to zero; False for random values."}
    )
    start: str = field(
        default="paper",
        metadata={
            "help": "What a new adapter does: 'paper' aggregates from the start, which changes the layers; 'identity' "
            "starts with gains of zero in the views' norms, and thus from the unchanged encoder."
        },
    )
    gate: float | None = field(
        default=None,
        metadata={
            "help": "Initial value of a learned gate for each channel that mixes the input of a frozen layer (0) with "
            "its output (1); None for no gate, as published."
        },
    )

    def __post_init__(self):
        super().__post_init__()
        if self.attention_width % self.attention_heads:
            raise ValueError(
                f"attention_width={self.attention_width} with attention_heads={self.attention_heads}; expected a "
                "multiple of them"
            )
        if self.start == "identity":
            # Each of both changes a layer by itself.
            for name, kept in (("gate", (None, 1)), ("init_weights", (True,))):
                if getattr(self, name) not in kept:
                    raise ValueError(
                        f"{name}={getattr(self, name)!r} with start='identity'; expected {kept[0]!r}, as it changes "
                        "the layers from the start"
                    )

    @classmethod
    def light(cls, **kwargs: Any) -> Self:
        """Return the config for little data, which goes with the settings that `from_encoder_pretrained` fills in.

        Gates that start near the layer's input, and voxels that hold several of few tokens.
        """
        return cls(**{**LIGHT_ADAPTER, **kwargs})
