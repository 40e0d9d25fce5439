"""Configuration of MiniGPT-3D."""

from __future__ import annotations

from typing import Any, ClassVar

from transformers import AutoConfig, Blip2QFormerConfig, PreTrainedConfig
from transformers.configuration_utils import SubConfigSpec

from hf_any3d.modeling.config_checks import Ranges, check_settings
from hf_any3d.modeling.hooks import LibrarySettingsMixin
from hf_any3d.modeling.layers.forward_contract import CACHE
from hf_any3d.modeling.pretrained_parts.record import PartsConfigMixin
from hf_any3d.modeling.records import POINT_ENCODER

ROUTERS = ("sparse", "soft", "constant")
_RANGES: Ranges = {"num_query_experts": (1, 1_024), "stage": (0, 4)}
PARTS = ("point_encoder", "qformer", "language_model")


class MiniGPT3DConfig(LibrarySettingsMixin, PartsConfigMixin, PreTrainedConfig):
    r"""Configuration of a MiniGPT-3D model (arXiv 2405.01413) in any of its training stages.

    The defaults are the published sizes.

    Args: Models
        point_config: Configuration of the point encoder, any whose `last_hidden_state` is `(clouds, 1 + tokens,
            width)` with a class token first: act3d (the default), recon, openshape, patchalign3d, uni3d; or one of voxels,
            point_transformer_v3, whose mean is in the place of the class token.
        qformer_config: Configuration of the Q-Former, of which only the query path is used.
        text_config: Configuration of the language model, any that `AutoModelForCausalLM` supports.
        parts: Pretrained parts that are not stored with the model, among "point_encoder", "qformer" (a BLIP-2 model)
            and "language_model": `name_or_path`, `revision` and `checksum` of each, see `PretrainedPart`.

    Args: Bridge
        point_mlp_widths: Hidden widths of the MLP between point encoder and Q-Former; empty for one linear layer.
        num_query_tokens: Tokens per cloud for the language model.
        num_query_experts: Number of query sets.
        use_query_experts: Whether the router selects among them; otherwise the first set is used (stages 1 to 3).
        router: "sparse" uses the most probable sets, "soft" all of them, weighted by probability; "constant" all of
            them with equal weights.
        router_top_k: Number of sets that a sparse router selects.
        router_width: Hidden width of the router.
        normalize_router_weights: Whether the weights of the sets that a sparse router selects are normalized to sum
            to 1; they are not in the released model.
        load_balancing_weight: Weight of a loss that balances clouds over sets; 0 in the released model.
        projector_width: Width between the two layers of the projector.
        point_token_id: Placeholder id of a cloud's tokens in `input_ids`. It needs no row in the language model's
            embeddings.

    Args: LoRA and training
        text_lora: Arguments of `peft.LoraConfig` for the language model; None for a language model without LoRA.
        qformer_lora: The same for the Q-Former.
        initializer_range: Standard deviation of initial weights of the modules between the two models.
        stage: The last training stage of the model; None if not recorded.
        qformer_lora_dropout_at_inference: Whether the dropout of the Q-Former's LoRA stays on at inference, as in the
            released program by quirk; answers are then random.
    """

    model_type = "minigpt3d"
    sub_configs_defaults: ClassVar[dict[str, SubConfigSpec]] = {
        "point_config": SubConfigSpec(
            AutoConfig,
            model_type=POINT_ENCODER,
            init_kwargs={"in_channels": 6, "num_groups": 512, "patch_pooled_width": 256, "drop_path_rate": 0.1},
        ),
        # The Q-Former has no dropout of its own; its LoRA has.
        "qformer_config": SubConfigSpec(
            Blip2QFormerConfig, init_kwargs={"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
        ),
        "text_config": SubConfigSpec(AutoConfig, model_type="normed_phi"),
    }
    keys_to_ignore_at_inference: ClassVar[list[str]] = [CACHE, "point_features", "router_logits"]

    point_config: dict | PreTrainedConfig | None = None
    qformer_config: dict | PreTrainedConfig | None = None
    text_config: dict | PreTrainedConfig | None = None

    point_mlp_widths: list[int] | tuple[int, ...] = (768,)
    num_query_tokens: int = 32
    # As published: two of eight sets for each cloud, by a router of width 256
    num_query_experts: int = 8
    use_query_experts: bool = False
    router: str = "sparse"
    router_top_k: int = 2
    router_width: int = 256
    normalize_router_weights: bool = False
    load_balancing_weight: float = 0.0
    projector_width: int = 4096
    # The first id behind the words of Phi-2's tokenizer
    point_token_id: int = 50295
    text_lora: dict | None = None
    qformer_lora: dict | None = None
    initializer_range: float = 0.02
    stage: int | None = None
    parts: dict | None = None
    qformer_lora_dropout_at_inference: bool = False

    def __post_init__(self, **kwargs: Any):
        check_settings(self, {"router": ROUTERS}, _RANGES)
        # Without probabilities there is nothing to balance.
        if self.load_balancing_weight and self.router == "constant":
            raise ValueError(f"load_balancing_weight={self.load_balancing_weight}; expected 0 with router='constant'")
        super().__post_init__(**kwargs)
        self.check_parts(PARTS)
        # Encoders of voxels have no such setting; their mean stands for the class token.
        point = self.point_config
        if not getattr(point, "use_class_token", True):
            raise ValueError("point_config has use_class_token=False; expected True, as the router reads that token")

    @property
    def batch_dependent_flags(self) -> list[str]:
        """Enabled flags of the point encoder that make tokens of a cloud depend on the others of a batch."""
        return list(getattr(self.point_config, "batch_dependent_flags", ()))

    @property
    def in_channels(self) -> int:
        """Number of channels of a point."""
        return self.point_config.in_channels
