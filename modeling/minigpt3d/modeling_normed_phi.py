"""The language model that MiniGPT-3D was released with: Phi with more norms, and LoRA's sites as published."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import nn
from transformers import Cache
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

from hf_any3d.modeling.forward_contract import rejects_unknown_keywords
from hf_any3d.modeling.minigpt3d.configuration_normed_phi import NormedPhiConfig


class NormedPhiAttention(PhiAttention):
    """Phi's attention, with the queries, keys and values of all heads from one layer.

    Rows of `query_key_value` lie as `(head, query | key | value, channel)`. A LoRA on it has one A for all three,
    which one on three layers would have three times.
    """

    def __init__(self, config: NormedPhiConfig, layer_idx: int):
        super().__init__(config, layer_idx)
        del self.q_proj, self.k_proj, self.v_proj
        self.query_key_value = nn.Linear(config.hidden_size, 3 * config.num_attention_heads * self.head_dim)

    def forward(
        self,
        hidden_states: torch.Tensor,
        position_embeddings: tuple[torch.Tensor, torch.Tensor],
        attention_mask: torch.Tensor | None,
        past_key_values: Cache | None = None,
        **kwargs: Any,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Attend as `PhiAttention` does: `(batch, tokens, hidden)` to the same, and the weights if there are some."""
        batch, tokens, _ = hidden_states.shape
        fused = self.query_key_value(hidden_states).view(batch, tokens, -1, 3, self.head_dim)
        query, key, value = fused.transpose(1, 2).unbind(dim=3)  # (batch, heads, tokens, head_dim) each
        query, key = self.q_layernorm(query), self.k_layernorm(key)

        turned = self.rotary_ndims
        turned_query, turned_key = apply_rotary_pos_emb(query[..., :turned], key[..., :turned], *position_embeddings)
        query = torch.cat((turned_query, query[..., turned:]), dim=-1)
        key = torch.cat((turned_key, key[..., turned:]), dim=-1)

        if past_key_values is not None:
            key, value = past_key_values.update(key, value, self.layer_idx)
        attend = ALL_ATTENTION_FUNCTIONS.get_interface(self.config._attn_implementation, eager_attention_forward)
        dropout = self.attention_dropout if self.training else 0.0
        mixed, weights = attend(
            self, query, key, value, attention_mask, dropout=dropout, scaling=self.scaling, **kwargs
        )
        return self.dense(mixed.reshape(batch, tokens, -1)), weights


class NormedPhiDecoderLayer(PhiDecoderLayer):
    """Attention, then a norm, beside the MLP; both read the same normed input and are summed with what entered."""

    def __init__(self, config: NormedPhiConfig, layer_idx: int):
        # Past PhiDecoderLayer, which would build an attention of its own.
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
        attended = self.resid_dropout(self.post_layernorm(attended))
        return attended + self.resid_dropout(self.mlp(normed)) + hidden_states


class NormedPhiPreTrainedModel(PhiPreTrainedModel):
    """What all models with this body share."""

    config: NormedPhiConfig
    config_class = NormedPhiConfig
    _no_split_modules: ClassVar[list[str]] = ["NormedPhiDecoderLayer"]
    _can_record_outputs: ClassVar[dict[str, type[nn.Module]]] = {
        "hidden_states": NormedPhiDecoderLayer,
        "attentions": NormedPhiAttention,
    }


class NormedPhiModel(NormedPhiPreTrainedModel, PhiModel):
    """The body: token ids or embeddings to hidden states."""

    def __init__(self, config: NormedPhiConfig):
        # Past PhiModel, which would build layers of its own.
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
    """The body with a layer that tells the next token."""

    def __init__(self, config: NormedPhiConfig):
        # Past PhiForCausalLM, which would build a body of its own.
        PhiPreTrainedModel.__init__(self, config)
        self.model = NormedPhiModel(config)
        self.vocab_size = config.vocab_size
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size)
        self.post_init()

    forward = rejects_unknown_keywords(PhiForCausalLM.forward)
