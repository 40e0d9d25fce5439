"""MiniGPT-3D: a language model that takes point clouds as input (arXiv 2405.01413).

points (B, N, 6) ──────► point encoder ─► point tokens (B, 1 + G, width) ──────► MLP ─► keys and values
                                                │                                            │
                                                └─► router: mixture of query experts ─► Q-Former
                                                                                             │  projector
                                                                                             ▼
input_ids with placeholders ─► word embeddings ──────► placeholders filled with cloud tokens (B, 32, H)
                                                                                             │
                                                             language model with LoRA ◄──────┘ ─► next token

Shapes: B clouds, N points of each, G tokens, H width of a token.
"""

from __future__ import annotations

import copy
import inspect
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers import (
    AutoModel,
    AutoModelForCausalLM,
    Blip2Config,
    Blip2PreTrainedModel,
    Blip2QFormerModel,
    GenerationConfig,
    GenerationMixin,
    PreTrainedConfig,
    PreTrainedModel,
    initialization as init,
)
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import BaseModelOutputWithPast, CausalLMOutputWithPast
from transformers.modeling_utils import load_state_dict
from transformers.utils import SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME, ModelOutput, cached_file, logging
from transformers.utils.hub import get_checkpoint_shard_files

from hf_any3d.modeling.encoders.discovery import attends_to_later_words
from hf_any3d.modeling.layers.cloud_prompts import (
    CloudGenerationMixin,
    CloudLanguageModelMixin,
    EncodedClouds,
    fields_of,
)
from hf_any3d.modeling.layers.forward_contract import strict_forward
from hf_any3d.modeling.layers.heads import in_precision_of
from hf_any3d.modeling.layers.low_rank import LowRankLinear
from hf_any3d.modeling.minigpt3d.configuration_minigpt3d import PARTS, MiniGPT3DConfig
from hf_any3d.modeling.minigpt3d.lora import EARLIER_PATTERNS, add_low_rank, name_of_today, names_in
from hf_any3d.modeling.minigpt3d.qformer import Bridge, Bridged, Routing
from hf_any3d.modeling.minigpt3d.stages import set_stage, trained_names
from hf_any3d.modeling.pretrained_parts.loading import (
    HUB_ARGUMENTS,
    apply_settings,
    dtype_named,
    is_quantized,
    keep_in_full,
    listed,
    set_quantization,
    single_device,
)
from hf_any3d.modeling.pretrained_parts.mixin import LibraryModelMixin
from hf_any3d.modeling.pretrained_parts.record import PretrainedPart, check_revisions
from hf_any3d.modeling.pretrained_parts.sources import open_recorded, record_source
from hf_any3d.modeling.pretrained_parts.tensors import OwnTensor, own_state, remember_weights

Clouds = torch.Tensor | Sequence[torch.Tensor]
Part = str | os.PathLike | PreTrainedModel
logger = logging.get_logger(__name__)


@dataclass
class MiniGPT3DOutput(CausalLMOutputWithPast):
    """Output of MiniGPT-3D: that of its language model, with the load balancing loss in `loss` if weighted.

    Args:
        point_features: `(clouds, num_query_tokens, text hidden)`, the tokens of the clouds.
        router_logits: `(clouds, num_query_experts)`, if query experts are used.
    """

    point_features: torch.Tensor | None = None
    router_logits: torch.Tensor | None = None


@dataclass
class MiniGPT3DModelOutput(BaseModelOutputWithPast):
    """Output of MiniGPT-3D without scores of tokens, with the fields that `MiniGPT3DOutput` adds."""

    point_features: torch.Tensor | None = None
    router_logits: torch.Tensor | None = None


class QueriesAndQFormer(Blip2PreTrainedModel):
    """The query tokens and Q-Former of a BLIP-2 model; other weights of its repository are ignored.

    It can also be saved as a small repository of its own.
    """

    config_class = Blip2Config
    # The vision and language models of a BLIP-2, which no cloud passes
    _keys_to_ignore_on_load_unexpected = [r"^(vision_model|language_model|language_projection)\."]

    def __init__(self, config: Blip2Config):
        super().__init__(config)
        self.query_tokens = nn.Parameter(torch.zeros(1, config.num_query_tokens, config.qformer_config.hidden_size))
        self.qformer = Blip2QFormerModel._from_config(config.qformer_config)
        self.post_init()


PART_CLASSES = {"point_encoder": AutoModel, "qformer": QueriesAndQFormer, "language_model": AutoModelForCausalLM}
"""Class that loads each pretrained part."""


class MiniGPT3DPreTrainedModel(CloudLanguageModelMixin, LibraryModelMixin, PreTrainedModel):
    """Base class of MiniGPT-3D's models.

    Only trained weights are saved, 47.8 million of 2,954 million: pretrained parts are recorded in `config.parts` and
    loaded from their own repositories. Without that record, the full model is saved and loaded.
    """

    config_class = MiniGPT3DConfig
    config: MiniGPT3DConfig
    # Not "model": transformers renames `model.language_model.model` in any checkpoint, as older models of it had it.
    base_model_prefix = "minigpt3d"

    def set_stage(self, stage: int) -> None:
        """Prepare the model for a training stage, from 1 to 4; see `hf_any3d.modeling.minigpt3d.set_stage`."""
        set_stage(self, stage)

    def trained_by_stages(self) -> list[str]:
        """Return the names of the parameters that the stages up to `config.stage` train, in `base_model`."""
        return trained_names(self)

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, nn.ParameterList):  # the query sets, which start out equal
            first, *others = module
            init.normal_(first, std=self.config.initializer_range)
            for queries in others:
                init.copy_(queries, first)

    @torch.no_grad()
    def initialize_weights(self) -> None:
        """Initialize weights that were not loaded, LoRA last, as language models initialize it like other layers."""
        super().initialize_weights()
        for name, parameter in self.named_parameters():
            if name.endswith(".low_rank_a"):
                # As PEFT and `nn.Linear` do. With B = 0 the product has no effect at first.
                init.kaiming_uniform_(parameter, a=5**0.5)
            elif name.endswith((".low_rank_b", ".low_rank_bias")):
                init.zeros_(parameter)

    # Loading and saving; see `LibraryModelMixin`.

    def store_parts(self) -> None:
        """Store all parts with the model from now on."""
        if self.config.parts and is_quantized(self.base_model.language_model):
            raise ValueError("the language model was loaded quantized; expected full weights to store")
        self.config.parts = None
        self._keys_to_ignore_on_save = set()

    @classmethod
    def _from_full_repository(cls, name: str | os.PathLike | None, *args: Any, **kwargs: Any) -> Any:
        """Load a model with its pretrained parts from their repositories.

        `quantization_config` then applies to the language model except its last layer, and the model is on one device.
        That of a model which is stored whole applies to all linear layers except the last one.
        """
        hub = {key: kwargs[key] for key in HUB_ARGUMENTS if key in kwargs}
        config = kwargs.get("config")
        if name is not None and not isinstance(config, cls.config_class):
            config = cls.config_class.from_pretrained(name if config is None else config, **hub)
        if config is None or not any(config.part(part).is_elsewhere for part in PARTS):
            # Logits are sensitive.
            kwargs = keep_in_full(kwargs, r".*language_model\.lm_head")
            kwargs["key_mapping"] = {**EARLIER_PATTERNS, **(kwargs.get("key_mapping") or {})}
            opened = super()._from_full_repository(name, *args, **kwargs)
            _forget_earlier_names(opened[0] if isinstance(opened, tuple) else opened)
            return opened
        # Settings are applied to it below, and the caller keeps its own.
        config = copy.deepcopy(config)
        others = {key: value for key, value in kwargs.items() if key not in {*HUB_ARGUMENTS, "config"}}
        return cls._from_parts(os.fspath(name), config, hub, **others)

    @classmethod
    def _from_parts(
        cls,
        name: str,
        config: MiniGPT3DConfig,
        hub: dict[str, Any],
        dtype: torch.dtype | str | None = None,
        torch_dtype: torch.dtype | str | None = None,
        attn_implementation: str | None = None,
        device_map: Any = None,
        quantization_config: Any = None,
        output_loading_info: bool = False,
        ignore_mismatched_sizes: bool = False,
        **overrides: Any,
    ) -> Any:
        apply_settings(cls, config, overrides)
        # `torch_dtype` is the earlier name of the argument, which transformers still takes.
        dtype = dtype_named(dtype or torch_dtype) or config.dtype or torch.float32
        if attn_implementation is not None:
            config._attn_implementation = attn_implementation
        if quantization_config is not None and not config.part("language_model").is_elsewhere:
            raise ValueError("quantization_config needs a language model that is kept elsewhere")
        loading = {"dtype": dtype}
        if attn_implementation is not None:
            loading["attn_implementation"] = attn_implementation
        # Only the language model is large enough to gain from it.
        of_language_model = {}
        if quantization_config is not None:
            of_language_model = keep_in_full(
                {"quantization_config": quantization_config, "device_map": device_map},
                inside=("language_model",),
                build=lambda: AutoModelForCausalLM.from_config(copy.deepcopy(config.text_config)),
            )
        # Open the parts that the repository does not hold itself. The Q-Former is a part of BLIP-2, which is opened
        # with its own config.
        configs = {"point_encoder": config.point_config, "qformer": None, "language_model": config.text_config}
        opened = {}
        for part in PARTS:
            recorded = config.part(part)
            if recorded.is_elsewhere:
                more = of_language_model if part == "language_model" else {}
                opened[part], _ = open_part(part, recorded, config=configs[part], model=name, **loading, **more)
        attention_of = {model: model.config._attn_implementation for model in opened.values()}
        # Parts first, then what is stored: trained weights replace those of the parts.
        model = cls._assemble(config, opened, attention_of, dtype)
        _load_stored(model, name, read_stored(name, hub))
        model.name_or_path = config.name_or_path = name
        if model.can_generate():
            try:
                model.generation_config = GenerationConfig.from_pretrained(name, **hub)
            except OSError:
                pass  # keep the default derived from the config
        if device_map is not None:
            model.to(single_device(device_map))
        # Always empty, as `_load_stored` raises for any key that is missing, unexpected or of another shape. Callers
        # that ask for the information expect its keys.
        info = {key: set() for key in ("missing_keys", "unexpected_keys", "mismatched_keys")} | {"error_msgs": []}
        return (model.eval(), info) if output_loading_info else model.eval()

    @classmethod
    def _assemble(
        cls,
        config: MiniGPT3DConfig,
        opened: Mapping[str, PreTrainedModel],
        attention_of: Mapping[PreTrainedModel, str | None],
        dtype: torch.dtype,
    ) -> MiniGPT3DPreTrainedModel:
        """Build a model around loaded parts; those that are not in `opened` are randomly initialized."""
        model = cls(config, opened.get("point_encoder"), None, opened.get("language_model"))
        for part, implementation in attention_of.items():
            # Nesting a config in another one resets the attention implementation that its model was built with.
            part.config._attn_implementation = implementation
        blip2 = opened.get("qformer")
        if blip2 is not None:
            bridge = model.base_model.bridge
            weights = dict(blip2.qformer.named_parameters())
            with torch.no_grad():
                # Layers with LoRA have their weights under other names than BLIP-2's.
                for name, path in names_in(bridge.qformer, weights).items():
                    bridge.qformer.get_parameter(path).copy_(weights[name])
                for queries in bridge.experts.queries:
                    queries.copy_(blip2.query_tokens[0])
        body = model.base_model
        # A quantized language model cannot be cast, so the others are cast one by one.
        if is_quantized(body.language_model):
            body.point_encoder.to(dtype)
            body.bridge.to(dtype)
        else:
            model.to(dtype)
        # After the cast, as changes are found by the bytes of weights.
        for name, path in body._part_paths.items():
            if config.part(name).is_elsewhere:
                remember_weights(body.get_submodule(path), {own.name: own.tensor for own in body.part_tensors(name)})
        return model


class MiniGPT3DModel(MiniGPT3DPreTrainedModel):
    """Point encoder, bridge and language model, without scores of tokens.

    As in BLIP-2, the language model keeps its head, which is applied by `MiniGPT3DForConditionalGeneration`: some
    language models scale or cap the scores.

    `input_ids` contain `num_query_tokens` times `point_token_id` for each cloud; clouds are matched to these
    placeholders in order, sample by sample. Models that are not given are randomly initialized.
    """

    _part_paths = {"point_encoder": "point_encoder", "qformer": "bridge.qformer", "language_model": "language_model"}

    def __init__(
        self,
        config: MiniGPT3DConfig,
        point_encoder: PreTrainedModel | None = None,
        qformer: Blip2QFormerModel | None = None,
        language_model: PreTrainedModel | None = None,
    ):
        super().__init__(config)
        self.point_encoder = AutoModel.from_config(config.point_config) if point_encoder is None else point_encoder
        self.bridge = Bridge(config, qformer)
        if language_model is None:
            language_model = AutoModelForCausalLM.from_config(config.text_config)
        self.language_model = language_model
        check_word_vectors(language_model, self.bridge.projector.fc2.out_features)
        for lora, part in ((config.qformer_lora, self.bridge.qformer), (config.text_lora, self.language_model)):
            if lora is not None:
                add_low_rank(part, lora)
        self.point_encoder.requires_grad_(False)
        self.post_init()

    def train(self, mode: bool = True) -> MiniGPT3DModel:
        """Set the mode; a frozen point encoder and the Q-Former, except for its LoRA, stay in eval mode."""
        super().train(mode)
        # After the superclass, which sets the mode of every module.
        if not self._point_encoder_trains():
            self.point_encoder.eval()
        self.bridge.qformer.eval()
        for layer in self.bridge.qformer.modules():
            if isinstance(layer, GradientCheckpointingLayer):
                layer.training = mode  # required for gradient checkpointing; its submodules keep their modes
        for layer in self.bridge.qformer.modules():
            if isinstance(layer, LowRankLinear):
                layer.low_rank_dropout.train(mode or self.config.qformer_lora_dropout_at_inference)
            elif "base_layer" in layer._modules:  # of an adapter, which trains as any other
                layer.training = mode
                for name, inside in layer.named_children():
                    inside.train(mode and name != "base_layer")
        return self

    def encode(self, points: Clouds) -> torch.Tensor:
        """Encode clouds to tokens, `(clouds, 1 + groups, point width)`; clouds of equal size run as one batch.

        Clouds are `(clouds, points, channels)`, or a list of `(points, channels)` with any numbers of points. An
        encoder of voxels gives each cloud as many tokens as it has voxels, filled up with zeros to the longest.
        """
        return self._encode(points)[0]

    def _encode(self, points: Clouds) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Return the tokens of `encode`, and which of them are of a cloud, `(clouds, tokens)`; None for all."""
        # `set_grad_enabled(True)` alone would undo a caller's `no_grad`.
        with torch.set_grad_enabled(torch.is_grad_enabled() and self._point_encoder_trains()):
            if getattr(self.config.point_config, "flat_tokens", False):
                return padded_tokens(self.point_encoder(points, return_dict=True))
            if isinstance(points, torch.Tensor):
                return self.point_encoder(points, return_dict=True).last_hidden_state, None
            # One batch per size: points that fill up a cloud would be sampled and grouped like its own.
            same_size: dict[torch.Size, list[int]] = {}
            for number, cloud in enumerate(points):
                # In the order of the first cloud of each size
                same_size.setdefault(cloud.shape, []).append(number)
            runs = [
                self.point_encoder(
                    torch.stack([points[number] for number in group]), return_dict=True
                ).last_hidden_state
                for group in same_size.values()
            ]
            # Back from the order of the sizes to that of the clouds.
            numbers = [number for group in same_size.values() for number in group]
            tokens = dict(zip(numbers, torch.cat(runs), strict=True))
            return torch.stack([tokens[number] for number in range(len(points))]), None

    def get_point_features(self, points: Clouds) -> torch.Tensor:
        """Compute the language model's tokens for clouds, `(clouds, num_query_tokens, text hidden)`.

        They depend on the cloud only, so they can be reused in a conversation: `forward` and `generate` take them as
        `point_features` in place of `points`.
        """
        return self._bridge(points).tokens

    def encode_clouds(self, points: Clouds) -> tuple[torch.Tensor, Routing | None]:
        """Return the tokens of `get_point_features`, and the query sets that were used; None if only the first was."""
        bridged = self._bridge(points)
        return bridged.tokens, bridged.routing

    @strict_forward
    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        points: Clouds | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.LongTensor | None = None,
        inputs_embeds: torch.Tensor | None = None,
        point_features: torch.Tensor | None = None,
        mm_encoder_outputs: dict[str, EncodedClouds] | None = None,
        use_cache: bool | None = None,
        **kwargs: Any,
    ) -> MiniGPT3DModelOutput:
        """Compute features of tokens."""
        # Without its head, which the model around this one applies.
        text = self.language_model.base_model
        keywords = self.text_keywords(text, kwargs)
        embedded = self.embed(input_ids, inputs_embeds, point_features, mm_encoder_outputs, points=points)
        output = text(
            inputs_embeds=embedded.inputs_embeds,
            attention_mask=attention_mask,
            position_ids=position_ids,
            use_cache=use_cache,
            **keywords,
        )
        return MiniGPT3DModelOutput(
            **fields_of(output, BaseModelOutputWithPast),
            point_features=embedded.point_features,
            router_logits=None if embedded.routing is None else embedded.routing.logits,
        )

    def _bridge(self, points: Clouds) -> Bridged:
        if self.config.qformer_lora_dropout_at_inference and not self.training:
            logger.warning_once(
                "qformer_lora_dropout_at_inference=True: tokens of clouds are random, as in the released program; "
                "set it to False for reproducible answers"
            )
        tokens, mask = self._encode(points)
        return self.bridge(in_precision_of(self.bridge.projector, tokens), mask)

    def _point_encoder_trains(self) -> bool:
        return any(parameter.requires_grad for parameter in self.point_encoder.parameters())

    def part_tensors(self, name: str) -> list[OwnTensor]:
        """Return a part's tensors except those that the training stages change; see `LibraryModelMixin`."""
        trained = set(self.trained_by_stages())
        path = self._part_paths[name]
        return [own for own in super().part_tensors(name) if f"{path}.{own.path}" not in trained]

    def reopened_state(self, name: str) -> dict[str, torch.Tensor]:
        """Load the recorded weights of a part again; see `LibraryModelMixin`."""
        # The config may have more than the repository's, such as another number of patches.
        configs = {"point_encoder": self.config.point_config, "language_model": self.config.text_config}
        opened, _ = open_part(name, self.config.part(name), config=copy.deepcopy(configs.get(name)))
        return own_state(opened.qformer if name == "qformer" else opened)


class MiniGPT3DForConditionalGeneration(CloudGenerationMixin, MiniGPT3DPreTrainedModel, GenerationMixin):
    """`MiniGPT3DModel` with the scores of the next tokens: answers questions about clouds.

    Example:
        ```python
        import torch
        from hf_any3d import MiniGPT3DConfig, MiniGPT3DForConditionalGeneration

        small = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
        parts = {"point_config": {"model_type": "act3d", "in_channels": 6, **small}, "qformer_config": small}
        text = {"model_type": "llama", "vocab_size": 40, **small}
        config = MiniGPT3DConfig(**parts, text_config=text, point_token_id=39, num_query_tokens=4)
        model = MiniGPT3DForConditionalGeneration(config)
        question = torch.tensor([[1, 39, 39, 39, 39, 5]])  # as MiniGPT3DProcessor makes it
        model(input_ids=question, points=torch.rand(1, 1024, 6)).logits.shape  # (1, 6, 40)
        ```
    """

    def __init__(
        self,
        config: MiniGPT3DConfig,
        point_encoder: PreTrainedModel | None = None,
        qformer: Blip2QFormerModel | None = None,
        language_model: PreTrainedModel | None = None,
    ):
        super().__init__(config)
        self.minigpt3d = MiniGPT3DModel(config, point_encoder, qformer, language_model)
        self.post_init()

    @property
    def bridge(self) -> Bridge:
        """The modules between point encoder and language model."""
        return self.minigpt3d.bridge

    def encode(self, points: Clouds) -> torch.Tensor:
        """Encode clouds to tokens, see `MiniGPT3DModel.encode`."""
        return self.minigpt3d.encode(points)

    def get_point_features(self, points: Clouds) -> torch.Tensor:
        """Compute the language model's tokens for clouds, see `MiniGPT3DModel.get_point_features`."""
        return self.minigpt3d.get_point_features(points)

    @torch.no_grad()
    def prompt_embeddings(
        self,
        input_ids: torch.LongTensor,
        points: Clouds | None = None,
        attention_mask: torch.Tensor | None = None,
        point_features: torch.Tensor | None = None,
    ) -> list[torch.Tensor]:
        """Embed prompts for a program that runs the language model alone, such as vLLM with `prompt_embeds`.

        Hidden tokens are left out: no other token attends to them, and positions do not count them. A dict from the
        processor is passed as `**inputs`. Returns `(tokens, text hidden)` for each prompt, in the order of the batch.
        """
        embedded = self.minigpt3d.embed(input_ids, point_features=point_features, points=points).inputs_embeds
        if attention_mask is None:
            return list(embedded)
        # Rows differ in length afterwards, hence a list.
        return [row[mask.bool()] for row, mask in zip(embedded, attention_mask, strict=True)]

    @strict_forward
    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        points: Clouds | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.LongTensor | None = None,
        inputs_embeds: torch.Tensor | None = None,
        labels: torch.LongTensor | None = None,
        point_features: torch.Tensor | None = None,
        mm_encoder_outputs: dict[str, EncodedClouds] | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | torch.Tensor = 0,
        **kwargs: Any,
    ) -> MiniGPT3DOutput:
        """Predict the next tokens."""
        keywords = self.text_keywords(self.language_model, kwargs)
        embedded = self.minigpt3d.embed(input_ids, inputs_embeds, point_features, mm_encoder_outputs, points=points)
        # The share of the balancing loss needs the same targets as the language model's loss.
        targets = keywords.get("shift_labels")
        if targets is not None:
            labels = targets  # the loss reads them in place of labels, and without labels there is none
        elif labels is not None:
            # The loss compares each position with the next token.
            targets = labels[:, 1:]
        output = self.language_model(
            inputs_embeds=embedded.inputs_embeds,
            attention_mask=attention_mask,
            position_ids=position_ids,
            labels=labels,
            use_cache=use_cache,
            logits_to_keep=logits_to_keep,
            **keywords,
        )
        loss = output.loss
        routing = embedded.routing
        if loss is not None and routing is not None and self.config.load_balancing_weight:
            # Losses of the parts of a batch are sums over their tokens, divided by those of the full batch, and are
            # added up. The balancing loss is a mean of its own and counts by the part's share of the tokens.
            share = 1.0
            tokens = keywords.get("num_items_in_batch")
            if tokens is not None:  # this batch is a part of a larger one
                share = (targets != keywords.get("ignore_index", -100)).sum() / tokens
            loss = loss + share * self.config.load_balancing_weight * routing.load_balancing_loss()
        return MiniGPT3DOutput(
            **fields_of(output, CausalLMOutputWithPast) | {"loss": loss},
            point_features=embedded.point_features,
            router_logits=None if routing is None else routing.logits,
        )


def check_word_vectors(language_model: PreTrainedModel, width: int) -> None:
    """Refuse a language model in whose word vectors' place tokens of clouds cannot stand."""
    name = language_model.config.model_type
    if getattr(language_model.config.get_text_config(), "hidden_size_per_layer_input", None):
        raise ValueError(f"text_config: layers of '{name}' read the ids of words, and tokens of a cloud have none")
    if name == "git":
        raise ValueError("text_config: 'git' reads an image in front of its words; expected a language model of words")
    if "shared_kv_states" in inspect.signature(language_model.forward).parameters:
        raise ValueError(f"text_config: '{name}' drafts words for another model, whose keys and values it reads")
    text = language_model.config.get_text_config(decoder=True)
    # The name of the setting by which a type looks back alone, if it has one
    setting = next((name for name in ("is_decoder", "causal") if hasattr(text, name)), None)
    is_causal = setting is not None and getattr(text, setting)
    if not is_causal and (setting == "causal" or attends_to_later_words(text)):
        expected = "a causal language model" if setting is None else f"{setting}=True"
        raise ValueError(
            f"text_config: words of '{name}' attend to later ones, so that its answers would depend on the cache; "
            f"expected {expected}"
        )
    words = language_model.get_input_embeddings().weight.shape[-1]
    if words != width:
        raise ValueError(f"text_config: word vectors of '{name}' have {words} channels; expected {width}")


def build_from_parts(
    point_encoder: Part,
    qformer: Part | None,
    language_model: Part,
    dtype: torch.dtype | None = None,
    *,
    revisions: Mapping[str, str | None] | None = None,
    quantization_config: Any = None,
    **config: Any,
) -> MiniGPT3DForConditionalGeneration:
    """Build a model from pretrained parts, with randomly initialized modules between them.

    Its LoRA, norms and projector have learned nothing from images (`config.image_priors`), other than those that the
    paper's training starts from. Parts given by name are recorded in `config.parts`, with commit and checksum: the
    model is saved without them, unless `store_parts()` is called.

    Args:
        point_encoder: A model that `AutoModel` loads, or its name or folder.
        qformer: A BLIP-2 model, whose query tokens initialize every query set, or its name or folder; None for a
            randomly initialized Q-Former.
        language_model: A model that `AutoModelForCausalLM` loads, or its name or folder.
        dtype: Dtype of the full model; by default that of the language model.
        revisions: Branch, tag or commit of parts given by name, with keys such as "point_encoder".
        quantization_config: Quantization of a language model given by name.
        **config: Further fields of `MiniGPT3DConfig`. `num_query_tokens` is that of the BLIP-2 model.

    Source: MiniGPT-3D, Sec. 3.3.
    """
    parts = {"point_encoder": point_encoder, "qformer": qformer, "language_model": language_model}
    check_revisions(revisions, [name for name, part in parts.items() if isinstance(part, (str, os.PathLike))])
    quantized = {} if quantization_config is None else {"quantization_config": quantization_config}
    named: dict[str, PretrainedPart] = {}

    def opened(name: str, part: Part, **loading: Any) -> PreTrainedModel:
        if isinstance(part, PreTrainedModel):
            return part
        recorded = PretrainedPart(os.fspath(part), (revisions or {}).get(name))
        model, named[name] = open_part(name, recorded, dtype=dtype, **loading)
        return model

    models = {"point_encoder": opened("point_encoder", point_encoder)}
    models["language_model"] = text_model = opened("language_model", language_model, **quantized)
    # Noted before the configs are nested in another one, which resets it.
    attention_of = {model: model.config._attn_implementation for model in models.values()}
    settings = {"point_config": models["point_encoder"].config, "text_config": text_model.config}
    if qformer is not None:
        models["qformer"] = blip2 = opened("qformer", qformer)
        # BLIP-2's config has dropout, with which the Q-Former would be built.
        no_dropout = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
        settings["qformer_config"] = blip2.qformer.config.to_dict() | no_dropout
        settings["num_query_tokens"] = blip2.query_tokens.shape[1]
    settings["parts"] = {part: recorded.to_dict() for part, recorded in named.items()} or None
    dtype = text_model.dtype if dtype is None else dtype
    model = MiniGPT3DForConditionalGeneration._assemble(
        MiniGPT3DConfig(**{"image_priors": False} | settings | config), models, attention_of, dtype
    )
    # Its end tokens are those of the language model.
    model.generation_config = text_model.generation_config
    return model.eval()


def open_part(
    part: str,
    recorded: PretrainedPart,
    config: PreTrainedConfig | None = None,
    dtype: torch.dtype | None = None,
    model: str | os.PathLike | None = None,
    **loading: Any,
) -> tuple[PreTrainedModel, PretrainedPart]:
    """Load a pretrained part, one of `PART_CLASSES`, and record its name, commit and checksum.

    Config and dtype are by default the stored ones; without a recorded checksum any weights are accepted. `model` is
    the directory of the model that the part belongs to, the base of relative paths.
    """
    source = open_recorded(recorded, model)
    if config is not None:
        loading["config"] = config
    if dtype is not None:
        loading["dtype"] = dtype
    opened, info = PART_CLASSES[part].from_pretrained(source.path, output_loading_info=True, **loading)
    missing = sorted(info["missing_keys"])
    if missing:
        raise ValueError(f"{part} {source.name!r} lacks weights that its config requires: {', '.join(missing[:8])}")
    set_quantization(opened)
    return opened, record_source(recorded.name_or_path, source)


def read_stored(name: str, hub: dict[str, Any]) -> dict[str, torch.Tensor]:
    """Load the tensors in a directory or repository to the CPU."""
    # One file, or an index of several
    file = cached_file(name, SAFE_WEIGHTS_NAME, _raise_exceptions_for_missing_entries=False, **hub)
    if file is not None:
        return load_state_dict(file)
    index = cached_file(name, SAFE_WEIGHTS_INDEX_NAME, **hub)
    shards, _ = get_checkpoint_shard_files(name, index, **hub)
    return {key: tensor for shard in shards for key, tensor in load_state_dict(shard).items()}


def _forget_earlier_names(model: MiniGPT3DPreTrainedModel) -> None:
    """Let a model of an earlier version be saved under the names of today; transformers would restore those."""
    conversions = getattr(model, "_weight_conversions", None) or []
    others = [each for each in conversions if not EARLIER_PATTERNS.keys() & set(each.source_patterns)]
    model._weight_conversions = others or None  # pyright: ignore[reportAttributeAccessIssue]


def _load_stored(model: MiniGPT3DPreTrainedModel, name: str, stored: dict[str, torch.Tensor]) -> None:
    own = model.state_dict()
    stored = {name_of_today(key): tensor for key, tensor in stored.items()}
    prefix = f"{model.base_model_prefix}."
    if not any(key.startswith(prefix) for key in own):  # the body alone
        stored = {key.removeprefix(prefix): tensor for key, tensor in stored.items()}
    elif not any(key.startswith(prefix) for key in stored):  # the body's, as conversions write them
        stored = {prefix + key: tensor for key, tensor in stored.items()}
    # Tied weights are in the file once, under their other name.
    tied = set(model.all_tied_weights_keys)
    wrong = [f"{key} is missing" for key in own.keys() - stored.keys() - model.names_stored_elsewhere() - tied]
    wrong += [f"{key} is not the model's" for key in stored.keys() - own.keys()]
    wrong += [
        f"{key} has shape {tuple(tensor.shape)}, expected {tuple(own[key].shape)}"
        for key, tensor in stored.items()
        if key in own and own[key].shape != tensor.shape
    ]
    if wrong:
        raise ValueError(f"{name}: {listed(sorted(wrong), separator='; ')}")
    # Not strict for what is tied or kept elsewhere; everything else was checked above.
    model.load_state_dict(stored, strict=False)
    model.tie_weights()


def padded_tokens(output: ModelOutput) -> tuple[torch.Tensor, torch.Tensor]:
    """Fill up the flat tokens of clouds to one length, after the feature of the cloud in place of a class token.

    `output` has `last_hidden_state (tokens, width)`, `offsets (clouds,)` and `pooler_output (clouds, width)`. Returns
    `(clouds, 1 + tokens, width)`, and which of them are of a cloud, `(clouds, 1 + tokens)`.
    """
    offsets = output.offsets.tolist()
    # The first list is one longer: offsets are where clouds end.
    counts = [end - start for start, end in zip([0, *offsets], offsets, strict=False)]
    rows = zip(output.pooler_output, output.last_hidden_state.split(counts), strict=True)
    # (B, 1 + G, width)
    tokens = nn.utils.rnn.pad_sequence([torch.cat([first[None], own]) for first, own in rows], batch_first=True)
    # One more for the feature in place of a class token.
    lengths = torch.tensor(counts, device=tokens.device) + 1
    # (1 + G,) < (B, 1) broadcasts to (B, 1 + G).
    return tokens, torch.arange(tokens.shape[1], device=tokens.device) < lengths[:, None]
