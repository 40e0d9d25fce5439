"""Configuration of ACT's discrete autoencoder and of its teacher."""

from __future__ import annotations

from typing import Any

from transformers import AutoConfig, PreTrainedConfig
from transformers.configuration_utils import SubConfigSpec

from hf_any3d.modeling.act.folding_decoder import POINTS_PER_COARSE_POINT
from hf_any3d.modeling.card_info import NamesPackageMixin
from hf_any3d.modeling.config_checks import CHANNELS, SHARE, SPREAD, TOKENS, Ranges, check_numbers
from hf_any3d.modeling.kernels.group_norms import NUM_GROUPS
from hf_any3d.modeling.pretrained_parts import EncoderConfigMixin

_RANGES: Ranges = {
    "in_channels": (3, 4096),
    "num_groups": TOKENS,
    "group_size": TOKENS,
    "patch_widths": CHANNELS,
    "hidden_size": CHANNELS,
    "num_codes": (1, 2**22),
    "graph_neighbors": TOKENS,
    "graph_input_width": CHANNELS,
    "graph_widths": CHANNELS,
    "coarse_width": CHANNELS,
    "folding_width": CHANNELS,
    "num_prompts": (0, TOKENS[1]),
    "prompt_dropout": SHARE,
    "initializer_range": SPREAD,
    "sampling_min_squared_norm": (0, 1e6),
}
_CHOICES = {
    "prompt_depth": ("shallow", "deep"),
    "position_injection": ("input", "every_layer"),
    "attention_axis": ("tokens", "batch"),
}


class ActAutoencoderConfig(NamesPackageMixin, EncoderConfigMixin, PreTrainedConfig):
    r"""Configuration of a discrete autoencoder with a frozen cross-modal teacher (ACT, arXiv 2212.08320).

    The defaults are the published sizes with sound behaviour; converted checkpoints switch on deviations of their
    released programs (the last group).

    Args:
        encoder_config: Config of the frozen teacher (of one tower for composite checkpoints such as CLIP); None for no
            teacher, as in Point-BERT's dVAE (published with `hidden_size=256`).
        parts: Source of the weights of the teacher, "encoder", see `PretrainedPart`: its `name_or_path`, `revision`
            and `checksum`; other weights are rejected when loading. Without it they are stored with the model. The
            fields are also arguments and properties: `encoder_name_or_path`, `encoder_revision`, `encoder_checksum`.
        encoder_tower: "text", "vision" or "audio" for composite checkpoints.
        in_channels: Channels of an input point; only xyz is reconstructed.
        num_groups: Patches, and therefore tokens, per cloud.
        group_size: Points per patch, including the centre; a multiple of 4.
        patch_widths: Output channels of the first, second and third layer of the patch encoder.
        hidden_size: Channels of a token, of a code and of the decoder's input.
        num_codes: Size of the codebook.
        graph_neighbors: Neighbours of a token in the graph convolutions, including itself.
        graph_input_width: Output channels of the first linear layer of a graph convolution.
        graph_widths: Output channels of its edge convolutions.
        coarse_width: Hidden channels of the decoder's layers for coarse points.
        folding_width: Hidden channels of the decoder's folding layers.
        num_prompts: Learned tokens before those of the cloud in the teacher; 0 for none.
        prompt_depth: "deep": every layer of the teacher has its own prompts; "shallow": the prompts of the first layer
            pass through all layers.
        prompt_dropout: Dropout of prompts in training.
        position_injection: Where learned positions of the centres are added: before "every_layer" or at the "input".
        use_input_norm: Apply the teacher's norm before its first layer, if it has one, before positions are added.
        use_final_norm: Apply the teacher's norm after its last layer, if it has one.
        initializer_range: Standard deviation of initial prompts.
        sampling_min_squared_norm: Points this close to the origin are never sampled as centres (released programs:
            1e-3, from their CUDA kernel).
        noise_in_eval: Draw Gumbel noise in eval mode too, as the released programs do; the codes of a cloud then vary.
        teacher_dropout: Apply the teacher's own dropout in training, as the released programs do with BERT.
        detach_teacher: Run the teacher without a gradient, as the released programs do without prompts; the layers
            before it then learn from the KL term alone.
        attention_axis: "batch" applies the teacher's attention over the clouds of a batch, as the released program
            does with CLIP and deep prompts; prompts then have no effect, and features depend on the rest of the batch.
    """

    model_type = "act3d_autoencoder"
    sub_configs_defaults = {"encoder_config": SubConfigSpec(AutoConfig, model_type="bert", optional=True)}
    keys_to_ignore_at_inference = ["logits", "neighborhoods", "token_ids", "reconstruction_loss", "kl_loss"]

    encoder_config: dict | PreTrainedConfig | None = None
    parts: dict[str, Any] | None = None
    encoder_tower: str | None = None

    in_channels: int = 3
    num_groups: int = 64
    group_size: int = 32
    patch_widths: list[int] | tuple[int, int, int] = (128, 256, 512)
    hidden_size: int = 384
    num_codes: int = 8192
    graph_neighbors: int = 4
    graph_input_width: int = 128
    graph_widths: list[int] | tuple[int, ...] = (256, 512, 512, 1024)
    coarse_width: int = 1024
    folding_width: int = 512

    num_prompts: int = 64
    prompt_depth: str = "deep"
    prompt_dropout: float = 0.1
    position_injection: str = "every_layer"
    use_input_norm: bool = True
    use_final_norm: bool = True
    initializer_range: float = 0.02

    sampling_min_squared_norm: float | None = None
    noise_in_eval: bool = False
    teacher_dropout: bool = False
    detach_teacher: bool = False
    attention_axis: str = "tokens"

    def __post_init__(self, **kwargs: Any):
        check_numbers(self, _RANGES, kwargs)
        for name, allowed in _CHOICES.items():
            value = getattr(self, name)
            if value not in allowed:
                raise ValueError(f"{name}={value!r}; expected one of {', '.join(map(repr, allowed))}")
        multiples = {"group_size": POINTS_PER_COARSE_POINT, "hidden_size": NUM_GROUPS, "num_codes": NUM_GROUPS}
        for name, factor in multiples.items():
            if getattr(self, name) % factor or not getattr(self, name):
                raise ValueError(f"{name}={getattr(self, name)}; expected a multiple of {factor}")
        if not self.graph_widths or any(width % NUM_GROUPS for width in self.graph_widths):
            raise ValueError(f"graph_widths={self.graph_widths}; expected multiples of {NUM_GROUPS}")
        if not 0 <= self.prompt_dropout < 1:
            raise ValueError(f"prompt_dropout={self.prompt_dropout}; expected 0 to below 1")
        if len(self.patch_widths) != 3:
            raise ValueError(f"patch_widths={self.patch_widths}; expected three widths")
        if not 1 <= self.graph_neighbors <= self.num_groups:
            raise ValueError(f"graph_neighbors={self.graph_neighbors}; expected 1 to num_groups={self.num_groups}")
        if self.detach_teacher and self.num_prompts:
            raise ValueError(
                f"detach_teacher=True with num_prompts={self.num_prompts}: prompts would get no gradient; expected 0"
            )
        super().__post_init__(**kwargs)
        self.check_parts(("encoder",))

    @property
    def min_points(self) -> int:
        """Minimum number of points per cloud."""
        return max(self.num_groups, self.group_size)

    @property
    def batch_dependent_flags(self) -> list[str]:
        """Enabled flags that make features depend on the other clouds of a batch."""
        return ["attention_axis='batch'"] if self.attention_axis == "batch" else []
