"""ImageBind's audio encoder as a transformers model (arXiv 2305.05665).

input_values (B, 1, mel bins, frames) ─► convolution into patches ─► class token, + learned positions
    │  pre-norm layers; attention has one extra learned key and value
    ▼
hidden states (B, 1 + patches, H) ─► norm ─► class token

Shapes: B recordings, G tokens, H width of a token.
"""

from contextlib import nullcontext
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel, initialization as init
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import BaseModelOutputWithPooling
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.models.clip.modeling_clip import CLIPMLP, eager_attention_forward

from hf_any3d.modeling.hooks import LibraryModelHook
from hf_any3d.modeling.imagebind_audio.configuration_imagebind_audio import ImageBindAudioConfig
from hf_any3d.modeling.layers.direct_weights import keep_unpacked
from hf_any3d.modeling.layers.forward_contract import (
    AttentionRecorder,
    PointTokensMixin,
    requested_outputs,
    strict_forward,
)
from hf_any3d.modeling.pretrained_parts.mixin import LibraryModelMixin


class ImageBindAudioEmbeddings(nn.Module):
    """Embed overlapping patches of a spectrogram after a class token, with learned positions."""

    def __init__(self, config: ImageBindAudioConfig):
        super().__init__()
        rows, columns = config.patch_grid
        self.expected = torch.Size([1, config.num_mel_bins, config.num_frames])
        self.cls_token = nn.Parameter(torch.zeros(1, 1, config.hidden_size))
        self.position_embeddings = nn.Parameter(torch.zeros(1, 1 + rows * columns, config.hidden_size))
        # Patches overlap: the stride is smaller than they are.
        self.projection = nn.Conv2d(1, config.hidden_size, config.patch_size, config.stride, bias=False)
        self.norm = nn.LayerNorm(config.hidden_size, eps=config.patch_norm_eps)

    def forward(self, input_values: torch.Tensor) -> torch.Tensor:
        """Embed `(batch, 1, mel, frames)` into `(batch, 1 + patches, hidden)`, rows of mel first."""
        # Exchanged, mel bins and frames may have as many patches.
        if input_values.shape[1:] != self.expected:
            raise ValueError(
                f"input_values has shape {tuple(input_values.shape)}; expected (batch, *{tuple(self.expected)})"
            )
        patches = self.projection(input_values.to(self.projection.weight.dtype))
        # Without positions yet; these are added to the normed patches, as in the released model.
        patches = self.norm(patches.flatten(2).transpose(1, 2))  # (B, patches, H)
        # (B, 1, H), in front, as the first row of the positions is its own.
        class_token = self.cls_token.expand(len(patches), -1, -1)
        return torch.cat([class_token, patches], dim=1) + self.position_embeddings


class ImageBindAudioAttention(nn.Module):
    """Self-attention with an additional learned key and value."""

    def __init__(self, config: ImageBindAudioConfig):
        super().__init__()
        self.config = config
        self.head_dim = config.hidden_size // config.num_attention_heads
        self.scaling = self.head_dim**-0.5
        self.is_causal = False
        # Apart, as layers of transformers are; the released weights have them in one matrix.
        self.q_proj, self.k_proj, self.v_proj, self.o_proj = (
            nn.Linear(config.hidden_size, config.hidden_size) for _ in range(4)
        )
        shape = (config.num_attention_heads, 1, self.head_dim)
        # One key and value for each head, the same for all clips
        self.bias_k = nn.Parameter(torch.zeros(shape)) if config.add_bias_kv else None
        self.bias_v = nn.Parameter(torch.zeros(shape)) if config.add_bias_kv else None
        self.attention_dropout = config.attention_dropout

    def forward(
        self, hidden_states: torch.Tensor, attention_mask: torch.Tensor | None = None, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Attend: `(batch, tokens, hidden)` to the same, and the weights if available."""
        shape = (*hidden_states.shape[:-1], -1, self.head_dim)
        query, key, value = (
            project(hidden_states).view(shape).transpose(1, 2) for project in (self.q_proj, self.k_proj, self.v_proj)
        )  # each (B, heads, G, head width)
        # Every token may attend to this pair instead of to any other.
        if self.bias_k is not None:
            key, value = (
                # Appended at the end, as in torch's MultiheadAttention with add_bias_kv, which the released model
                # uses.
                torch.cat([tokens, bias.expand(len(tokens), -1, -1, -1)], dim=2)
                for tokens, bias in ((key, self.bias_k), (value, self.bias_v))
            )
            if attention_mask is not None:
                # A boolean mask is True for visible keys, an additive one is 0.
                allowed = attention_mask.dtype == torch.bool
                attention_mask = nn.functional.pad(attention_mask, (0, 1), value=allowed)
        attend = ALL_ATTENTION_FUNCTIONS.get_interface(self.config._attn_implementation, eager_attention_forward)
        mixed, weights = attend(
            self,
            query,
            key,
            value,
            attention_mask,
            dropout=self.attention_dropout if self.training else 0.0,
            scaling=self.scaling,
            **kwargs,
        )
        return self.o_proj(mixed.reshape(hidden_states.shape).contiguous()), weights


class ImageBindAudioLayer(GradientCheckpointingLayer):
    """A pre-norm transformer layer."""

    def __init__(self, config: ImageBindAudioConfig):
        super().__init__()
        self.norm1 = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.attention = ImageBindAudioAttention(config)
        self.norm2 = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.mlp = CLIPMLP(config)

    def forward(
        self, hidden_states: torch.Tensor, attention_mask: torch.Tensor | None = None, **kwargs: Any
    ) -> torch.Tensor:
        """Map `(batch, tokens, hidden)` to the same shape."""
        # Weights, the second output, are read by a recorder around the attention.
        hidden_states = hidden_states + self.attention(self.norm1(hidden_states), attention_mask, **kwargs)[0]
        return hidden_states + self.mlp(self.norm2(hidden_states))


class ImageBindAudioPreTrainedModel(LibraryModelHook, PointTokensMixin, PreTrainedModel):
    """Base class: config, initialization and supported features."""

    config_class = ImageBindAudioConfig
    config: ImageBindAudioConfig
    base_model_prefix = "imagebind_audio"
    _input_embed_layer = "embeddings"
    main_input_name = "input_values"
    input_modalities = ("audio",)
    is_gradient_checkpointing = LibraryModelMixin.is_gradient_checkpointing
    _no_split_modules = ["ImageBindAudioLayer"]
    _can_record_outputs = {"hidden_states": ImageBindAudioLayer, "attentions": ImageBindAudioAttention}

    def _initialize_missing_keys(self, is_quantized: bool) -> None:
        super()._initialize_missing_keys(is_quantized)
        if is_quantized:
            keep_unpacked(self)

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        std = self.config.initializer_range
        if isinstance(module, ImageBindAudioEmbeddings):
            init.trunc_normal_(module.position_embeddings, std=std)
            init.trunc_normal_(module.cls_token, std=std)
        elif isinstance(module, ImageBindAudioAttention) and module.bias_k is not None:
            init.normal_(module.bias_k, std=std)
            init.normal_(module.bias_v, std=std)


class ImageBindAudioModel(ImageBindAudioPreTrainedModel):
    """ImageBind's audio encoder; `pooler_output` is the class token after the final norm."""

    def __init__(self, config: ImageBindAudioConfig):
        super().__init__(config)
        self.embeddings = ImageBindAudioEmbeddings(config)
        self.layers = nn.ModuleList(ImageBindAudioLayer(config) for _ in range(config.num_hidden_layers))
        self.layernorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.post_init()

    @strict_forward
    def forward(
        self,
        input_values: torch.Tensor,
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
    ) -> BaseModelOutputWithPooling:
        """Encode spectrograms: log mel energies `(batch, 1, num_mel_bins, num_frames)`, normalized as in training."""
        config = self.config
        return_hidden, return_attentions = requested_outputs(
            config, output_hidden_states, output_attentions, config._attn_implementation
        )
        hidden_states = self.embeddings(input_values)
        states = [hidden_states]
        kinds = {ImageBindAudioAttention: 1}
        recorder = AttentionRecorder(self.layers, kinds, config.model_type) if return_attentions else None
        with recorder or nullcontext():
            for layer in self.layers:
                hidden_states = layer(hidden_states)
                if return_hidden:
                    states.append(hidden_states)
            attentions = recorder.weights if return_attentions else None
        # Layers have their norms before attention and MLP, so that the last sum has none yet.
        hidden_states = self.layernorm(hidden_states)
        return BaseModelOutputWithPooling(
            last_hidden_state=hidden_states,
            pooler_output=hidden_states[:, 0],
            hidden_states=tuple(states) if return_hidden else None,
            attentions=attentions,
        )
