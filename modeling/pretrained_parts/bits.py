"""Pretrained parts that were loaded in 4 or 8 bits."""

from __future__ import annotations

from transformers import PreTrainedModel


def is_quantized(part: PreTrainedModel) -> bool:
    """Whether a pretrained part was loaded quantized."""
    return getattr(part, "hf_quantizer", None) is not None


def set_quantization(part: PreTrainedModel, stored_quantized: bool = False) -> None:
    """Let a quantized part pass on gradients, and remove the quantization from its config.

    Args:
        part: The pretrained part; unchanged if it is not quantized.
        stored_quantized: Whether its checkpoint is quantized; the config then keeps the setting.
    """
    if not is_quantized(part):
        return
    if not stored_quantized:
        # A loading option, not a property of the weights: the stored ones are not quantized.
        del part.config.quantization_config
    for module in part.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            # In eval mode on a CPU, 4-bit layers of bitsandbytes pack their weights and then pass no gradient. Frozen
            # layers may be in eval mode while layers before them are trained.
            module.support_avx512bf16_for_cpu = False
