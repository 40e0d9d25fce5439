"""The language model that MiniGPT-3D was released with: Phi with more norms and a joint query, key, value layer.

hidden states ─► norm ─┬─► joint query, key, value ─► norms, rotary positions ─► attention ─► norm ─┐
                 │     └─► MLP ─────────────────────────────────────────────────────────────────────┤
                 └────────────────────────────────────────────────────────── residual ──────────────┴─► sum
"""

from typing import Any, ClassVar

import torch
from torch import nn
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.models.phi.modeling_phi import (
    PhiAttention,
    PhiDecoderLayer,
    PhiForCausalLM,
    PhiMLP,
    PhiModel,
    PhiPreTrainedModel,
    PhiRotaryEmbedding,
    apply_rotary_pos_emb,
    eager_attention_forward,
)

from hf_any3d.modeling.hooks import LibraryModelHook
from hf_any3d.modeling.layers.forward_contract import CACHE, rejects_unknown_keywords
from hf_any3d.modeling.minigpt3d.configuration_normed_phi import NormedPhiConfig
from hf_any3d.modeling.pretrained_parts.loading import keep_in_full


class NormedPhiAttention(PhiAttention):
    """Phi's attention with one layer for the queries, keys and values of all heads.

    Rows of `query_key_value` are ordered as `(head, query | key | value, channel)`. A LoRA on it has one A for all
    three; on separate layers it would have three.
    """

    def __init__(self, config: NormedPhiConfig, layer_idx: int):
        super().__init__(config, layer_idx)
        # The superclass has made layers of its own for the three.
        del self.q_proj, self.k_proj, self.v_proj
        self.query_key_value = nn.Linear(config.hidden_size, 3 * config.num_attention_heads * self.head_dim)

    def forward(
        self,
        hidden_states: torch.Tensor,
        position_embeddings: tuple[torch.Tensor, torch.Tensor],
        attention_mask: torch.Tensor | None,
        **kwargs: Any,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Attend as `PhiAttention` does: `(batch, tokens, hidden)` to the same, and the weights if available."""
        batch, tokens, _ = hidden_states.shape
        # Rows of the layer are ordered by head, then query, key and value.
        fused = self.query_key_value(hidden_states).view(batch, tokens, -1, 3, self.head_dim)
        query, key, value = fused.transpose(1, 2).unbind(dim=3)  # (batch, heads, tokens, head_dim) each
        # One norm for the channels of all heads, before the rotation, as released; Phi itself has the option.
        query = self.q_layernorm(query)
        key = self.k_layernorm(key)

        # The first channels of each head have rotary positions; the others have none.
        rotated = self.rotary_ndims
        rotated_query, rotated_key = apply_rotary_pos_emb(
            query[..., :rotated], key[..., :rotated], *position_embeddings
        )
        query = torch.cat((rotated_query, query[..., rotated:]), dim=-1)
        key = torch.cat((rotated_key, key[..., rotated:]), dim=-1)

        cache = kwargs.pop(CACHE, None)
        if cache is not None:
            key, value = cache.update(key, value, self.layer_idx)
        attend = ALL_ATTENTION_FUNCTIONS.get_interface(self.config._attn_implementation, eager_attention_forward)
        dropout = self.attention_dropout if self.training else 0.0
        mixed, weights = attend(
            self, query, key, value, attention_mask, dropout=dropout, scaling=self.scaling, **kwargs
        )
        return self.dense(mixed.reshape(batch, tokens, -1)), weights


class NormedPhiDecoderLayer(PhiDecoderLayer):
    """Attention followed by a norm, in parallel with the MLP on the same normed input, and a residual connection."""

    def __init__(self, config: NormedPhiConfig, layer_idx: int):
        # Skips PhiDecoderLayer, which would build its own attention.
        super(PhiDecoderLayer, self).__init__()
        self.self_attn = NormedPhiAttention(config, layer_idx)
        self.mlp = PhiMLP(config)
        self.input_layernorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.post_layernorm = nn.RMSNorm(config.hidden_size, eps=config.post_norm_eps)
        self.resid_dropout = nn.Dropout(config.resid_pdrop)

    def forward(self, hidden_states: torch.Tensor, **kwargs: Any) -> torch.Tensor:
        """Run on `(batch, tokens, hidden)`; the other arguments are those of `NormedPhiAttention.forward`."""
        normed = self.input_layernorm(hidden_states)
        attended, _ = self.self_attn(hidden_states=normed, **kwargs)
        # The norm after the attention is the released model's addition to Phi.
        attended = self.resid_dropout(self.post_layernorm(attended))
        return attended + self.resid_dropout(self.mlp(normed)) + hidden_states


class NormedPhiPreTrainedModel(LibraryModelHook, PhiPreTrainedModel):
    """Base class of the models with this language model."""

    config: NormedPhiConfig
    config_class = NormedPhiConfig
    _no_split_modules: ClassVar[list[str]] = ["NormedPhiDecoderLayer"]
    _can_record_outputs: ClassVar[dict[str, type[nn.Module]]] = {
        "hidden_states": NormedPhiDecoderLayer,
        "attentions": NormedPhiAttention,
    }


class NormedPhiModel(NormedPhiPreTrainedModel, PhiModel):
    """The model without a head: token ids or embeddings to hidden states."""

    def __init__(self, config: NormedPhiConfig):
        # Skips PhiModel, which would build its own layers.
        PhiPreTrainedModel.__init__(self, config)
        self.padding_idx = config.pad_token_id
        self.vocab_size = config.vocab_size
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size, self.padding_idx)
        self.embed_dropout = nn.Dropout(config.embd_pdrop)
        self.layers = nn.ModuleList(NormedPhiDecoderLayer(config, index) for index in range(config.num_hidden_layers))
        self.rotary_emb = PhiRotaryEmbedding(config=config)
        self.final_layernorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.gradient_checkpointing = False
        self.post_init()

    forward = rejects_unknown_keywords(PhiModel.forward)


class NormedPhiForCausalLM(NormedPhiPreTrainedModel, PhiForCausalLM):
    """The model with a language modeling head."""

    def __init__(self, config: NormedPhiConfig):
        # Skips PhiForCausalLM, which would build its own model.
        PhiPreTrainedModel.__init__(self, config)
        self.model = NormedPhiModel(config)
        self.vocab_size = config.vocab_size
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size)
        self.post_init()

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: Any, *args: Any, **kwargs: Any) -> Any:
        """Load a model as transformers does; a `quantization_config` leaves the head in full precision."""
        kwargs = keep_in_full(kwargs, "lm_head")
        return super().from_pretrained(pretrained_model_name_or_path, *args, **kwargs)

    forward = rejects_unknown_keywords(PhiForCausalLM.forward)
