"""A reference of attention over patches of variable length."""

import pytest
import torch
from transformers import AttentionInterface


@pytest.fixture(scope="session")
def varlen():
    """Name of a registered attention that takes boundaries of patches, as flash attention does."""

    def attend(
        module,
        query,
        key,
        value,
        attention_mask,
        scaling,
        dropout,
        is_causal,
        cu_seq_lens_q,
        cu_seq_lens_k,
        max_length_q,
        max_length_k,
    ):
        assert attention_mask is None and query.shape[0] == 1 and dropout == 0 and not is_causal
        own, other = cu_seq_lens_q.diff().tolist(), cu_seq_lens_k.diff().tolist()
        assert max(own) == max_length_q and max(other) == max_length_k
        parts = [
            torch.nn.functional.scaled_dot_product_attention(*patch, scale=scaling)
            for patch in zip(query.split(own, 2), key.split(other, 2), value.split(other, 2), strict=True)
        ]
        return torch.cat(parts, dim=2).transpose(1, 2), None

    AttentionInterface.register("flash_reference", attend)
    return "flash_reference"
