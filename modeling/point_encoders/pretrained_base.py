"""Load and save point transformers under adapters; used by ACT and the encoders that are aligned with texts."""

from __future__ import annotations

import copy
import math
import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import torch
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.initialization import no_init_weights
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.utils import ModelOutput, find_adapter_config_file, logging

from hf_any3d.modeling.config_checks import check_layers
from hf_any3d.modeling.encoders import LayerStack
from hf_any3d.modeling.encoders.loading import FrozenModulesMixin
from hf_any3d.modeling.layers.adapted_layers import asks_of
from hf_any3d.modeling.layers.forward_contract import AttentionRecorder, requested_outputs
from hf_any3d.modeling.point_encoders.point_transformer import GRIDS, PointAttention, PointBlocks, TokenGrids
from hf_any3d.modeling.pretrained_parts.loading import is_quantized, keep_in_full, unused_weights_expected
from hf_any3d.modeling.pretrained_parts.mixin import LibraryModelMixin
from hf_any3d.modeling.pretrained_parts.record import PretrainedPart
from hf_any3d.modeling.pretrained_parts.sources import EncoderMismatchError, opened_source
from hf_any3d.modeling.pretrained_parts.tensors import (
    changed_since_loading,
    differing,
    own_modules,
    own_state,
    remember_weights,
    tensors_checksum,
)


class PretrainedBaseMixin(FrozenModulesMixin, LibraryModelMixin):
    """For models whose base model is the pretrained part that adapters are trained on, the part "base".

    The config stored with an adapter names the repository or directory that the base model was loaded from. Its
    checkpoint may hold more, such as a head. A subclass defines `base_class`.
    """

    _adapted_part = "base"
    _bases_are_parts = True
    _has_single_dtype = True

    @classmethod
    def base_class(cls) -> type[PreTrainedModel]:
        """Class of the base model."""
        raise NotImplementedError

    @classmethod
    def config_of_base(cls, config: PreTrainedConfig) -> PreTrainedConfig:
        """Return a copy of a config for the base model alone."""
        return copy.deepcopy(config)

    @property
    def adapted_part(self) -> PreTrainedModel:
        """The point transformer."""
        return self.base_model

    @classmethod
    def open_part(cls, config: PreTrainedConfig, hub: dict[str, Any], **loading: Any) -> PreTrainedModel:
        """Load the point transformer that the config names, in full precision, and check its weights.

        With a `quantization_config`, it is loaded again after they were checked.
        """
        part = config.part("base")
        quantization = loading.pop("quantization_config", None)
        pinned = {} if part.revision is None else {"revision": part.revision}
        # Checksums are of full weights, so these are opened first, whatever is used afterwards.
        base = cls.open_stored_part(part.name_or_path, config, hub | pinned, **loading)
        if part.checksum is not None and (checksum := tensors_checksum(own_state(base))) != part.checksum:
            raise EncoderMismatchError(
                f"{part.name_or_path}: the pretrained weights have checksum {checksum}; expected {part.checksum}, "
                "that of the weights that the adapter was trained with"
            )
        if quantization is None:
            return base
        loading["quantization_config"] = quantization
        return cls.open_stored_part(part.name_or_path, config, hub | pinned, **loading)

    @classmethod
    def open_stored_part(
        cls,
        name: str,
        config: PreTrainedConfig,
        hub: dict[str, Any],
        attn_implementation: str | None = None,
        quantization_config: Any = None,
        **_: Any,
    ) -> PreTrainedModel:
        """Load a point transformer from any checkpoint that contains one, in full precision or quantized."""
        if attn_implementation is not None:
            # Part of the config, which the base model is built from.
            config._attn_implementation = attn_implementation
        # transformers would put that adapter into the base model without a word.
        if find_adapter_config_file(name, **hub):
            raise ValueError(
                f"{name} holds an adapter (adapter_config.json) with the pretrained weights; expected weights only"
            )
        config = cls.config_of_base(config)
        quantized = {} if quantization_config is None else {"quantization_config": quantization_config}
        quantized = keep_in_full(quantized, inside=(cls.base_model_prefix,))
        bars = logging.is_progress_bar_enabled()
        logging.disable_progress_bar()
        try:
            with unused_weights_expected():  # heads, a decoder or a class token
                base, report = cls.base_class().from_pretrained(
                    name, config=config, dtype=torch.float32, output_loading_info=True, **quantized, **hub
                )
        finally:
            if bars:
                logging.enable_progress_bar()
        missing = sorted(report["missing_keys"])
        if missing:
            raise ValueError(f"{name} lacks weights of the point transformer: {', '.join(missing[:8])}")
        return base

    @classmethod
    def build_around(cls, part: PreTrainedModel, config: PreTrainedConfig) -> PreTrainedModel:
        """Build the model around a point transformer."""
        # A base model is its own pretrained part.
        if issubclass(cls, cls.base_class()):
            return part
        with no_init_weights():
            model = cls(config)
        setattr(model, model.base_model_prefix, part)
        model.initialize_weights()  # those of the head: the part has its own
        # PEFT chooses its layers by these, which it reads from the full model.
        for name in ("hf_quantizer", "is_loaded_in_8bit", "is_loaded_in_4bit", "is_quantized", "quantization_method"):
            if name in vars(part):
                setattr(model, name, getattr(part, name))
        return model

    def find_source(self) -> PretrainedPart:
        """Return the record of a repository or directory with the weights of this model; an empty one if none has."""
        # Whatever was done to this model, only its present weights say where they are from.
        adapted = self.adapted_part
        ours = own_state(adapted)
        # Without its checksum, which would refuse other weights: here they are compared one by one.
        recorded = replace(self.config.part("base"), checksum=None)
        opened = [model._opened_from for model in (self, self.adapted_part) if "_opened_from" in vars(model)]
        # The recorded source comes first, since only it was pinned on purpose.
        for part in (recorded, *opened):
            if not part.is_elsewhere:
                continue
            # Opened as a user of the adapter would, by a config that names this source.
            config = self.config_to_store()
            config.set_part("base", part)
            try:
                stored = own_state(self.open_part(config, {}))
            except (OSError, ValueError, RuntimeError):
                continue  # gone, or another model
            if is_quantized(adapted):
                # Quantized weights equal no file's; that nothing has changed since they were read is known of each
                # tensor.
                is_source = changed_since_loading(adapted) == []
            else:
                is_source = ours.keys() == stored.keys() and not differing(ours, stored)
            if is_source:
                return replace(part, checksum=tensors_checksum(stored))
        return PretrainedPart()

    def save_part(self, state: dict[str, torch.Tensor], folder: Path) -> None:
        """Save the point transformer as a checkpoint of its own, without a model card."""
        config = self.config_to_store()
        config.set_part("base", None)
        # Without heads and adapters, whatever this model has around it.
        base = self.base_class()(config)
        base.load_state_dict(state)
        PreTrainedModel.save_pretrained(base, folder)

    @classmethod
    def _from_full_repository(cls, name: str | os.PathLike | None, *args: Any, **kwargs: Any) -> Any:
        quantizes = kwargs.get("quantization_config") is not None
        if quantizes and not issubclass(cls, cls.base_class()):
            # What is trained together with an adapter stays in full precision: integers have no gradient.
            kwargs = keep_in_full(kwargs, rf"(?!{cls.base_model_prefix}\.).*")
        opened = super()._from_full_repository(name, *args, **kwargs)
        model = opened[0] if isinstance(opened, tuple) else opened
        if hasattr(model, "hf_quantizer"):
            remember_weights(model.base_model)
        if name is not None and not kwargs.get("subfolder"):
            model._opened_from = opened_source(name, model.config, kwargs.get("revision"), kwargs.get("cache_dir"))
        return opened


class AdaptedBaseMixin:
    """For the base model itself: how it trains with adapters."""

    holds_statistics_below_adapters = True
    input_tokens: torch.nn.Module

    def train(self, mode: bool = True) -> PreTrainedModel:
        """Set train mode; with adapters, the original modules stay in eval mode.

        An adapter is stored without the norms' running statistics, and is loaded into a model in eval mode.
        """
        super().train(mode)
        if not mode:
            return self
        own = own_modules(self)
        # More modules than its own are those of adapters.
        if len(own) < sum(1 for _ in self.modules()):
            for *_, module in own:
                # Train mode only enables gradient checkpointing in a block, and noise (NEFTune) in the token input.
                if not isinstance(module, GradientCheckpointingLayer) and module is not self.input_tokens:
                    module.training = False
        return self


@dataclass
class PointTransformerOutput(ModelOutput):
    """Token features of point clouds.

    Args:
        last_hidden_state: `(batch, 1 + groups, hidden)`, the class token first where there is one, after the final
            norm.
        pooler_output: `(batch, features)`, the input of a head.
        centers: `(batch, groups, 3)`, positions of the tokens in the units of the input.
        center_index: `(batch, groups)`, indices of the centers among the input points.
        layer_outputs: Output of each requested block, `(batch, 1 + groups, hidden)`, before any norm.
        hidden_states: On request, the input of the first block, without positions that each block adds, and the
            output of each block, before any norm: `num_hidden_layers + 1` times `(batch, 1 + groups, hidden)`.
        attentions: On request, the weights of each block, `(batch, heads, 1 + groups, 1 + groups)`; prompts that an
            adapter adds are among the tokens.
    """

    last_hidden_state: torch.Tensor | None = None
    pooler_output: torch.Tensor | None = None
    centers: torch.Tensor | None = None
    center_index: torch.Tensor | None = None
    layer_outputs: tuple[torch.Tensor, ...] | None = None
    hidden_states: tuple[torch.Tensor, ...] | None = None
    attentions: tuple[torch.Tensor, ...] | None = None


class Encoded(NamedTuple):
    """Output of the transformer blocks; see `PointTransformerOutput`.

    Args:
        added: By the number of a block, the tokens that adapters leave behind its output, before any norm.
    """

    last_hidden_state: torch.Tensor
    layer_outputs: tuple[torch.Tensor, ...] = ()
    hidden_states: tuple[torch.Tensor, ...] | None = None
    attentions: tuple[torch.Tensor, ...] | None = None
    added: Mapping[int, torch.Tensor] = MappingProxyType({})


class PointTransformerMixin(AdaptedBaseMixin):
    """For base models with `input_tokens`, `blocks` of type `PointBlocks` and a final `norm`."""

    blocks: PointBlocks
    norm: torch.nn.Module
    final_norm = "norm"
    """Name of the norm after the last block."""

    @property
    def layer_stack(self) -> LayerStack:
        """The blocks and their properties for adapters; all of this model is pretrained."""
        return LayerStack(
            layers=self.blocks.layers,
            path="blocks.layers",
            branch="mlp",
            hidden_size=self.config.hidden_size,
            views=GRIDS,
            is_open=True,
            pretrained=tuple(self._modules),
            final_norm=self.final_norm,
        )

    def normed(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """Norm tokens `(…, hidden)` behind any block as those behind the last one."""
        return self.get_submodule(self.final_norm)(hidden_states)

    def run_blocks(
        self,
        tokens: torch.Tensor,
        positions: torch.Tensor | None,
        centers: torch.Tensor,
        output_layers: Sequence[int] = (),
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
        embed_patches: Callable[[int, int], tuple[torch.Tensor, torch.Tensor]] | None = None,
        attention_mask: torch.Tensor | None = None,
    ) -> Encoded:
        """Run the blocks and the final norm on tokens `(batch, tokens, hidden)`.

        Positions of the same shape are added before every block; `centers (batch, groups, 3)` are those of the tokens
        behind a class token. `embed_patches` embeds other patches of the clouds, for adapters that read them.
        `attention_mask (tokens, tokens)` is added to the scores of the attention.
        """
        config = self.config
        layers = self.blocks.layers
        return_hidden, return_attentions = requested_outputs(
            config, output_hidden_states, output_attentions, config._attn_implementation
        )
        if output_layers:
            check_layers("output_layers", output_layers, len(layers))
        tokens = self.input_tokens(tokens)
        geometry = None
        # Cells take time to compute, and nothing but an adapter around a block reads them.
        if any(asks_of(layer).takes_geometry for layer in layers):
            # Cell size in radii: about six patches per cell, whatever their number.
            geometry = TokenGrids.around(centers, 4 / math.sqrt(config.num_groups), tokens.shape[1] - centers.shape[1])
            geometry.embed_patches = embed_patches
        recorder = AttentionRecorder(layers, {PointAttention: 1}, config.model_type) if return_attentions else None
        # All blocks come after the requested ones, whose number divides the outputs again.
        requested = (*output_layers, *range(len(layers))) if return_hidden else output_layers
        added: dict[int, torch.Tensor] = {}
        with recorder or nullcontext():
            hidden_states, outputs = self.blocks(tokens, positions, requested, geometry, added, attention_mask)
            attentions = recorder.weights if recorder is not None else None
        count = len(output_layers)
        states = (tokens, *outputs[count:]) if return_hidden else None
        normed = self.get_submodule(self.final_norm)(hidden_states)
        return Encoded(normed, outputs[:count], states, attentions, added)
