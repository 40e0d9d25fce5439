"""Pretrained parts that were opened in 4 or 8 bits."""

from __future__ import annotations

from transformers import PreTrainedModel


def is_quantized(part: PreTrainedModel) -> bool:
    """Whether a part was opened in fewer bits than it is stored in."""
    return getattr(part, "hf_quantizer", None) is not None


def set_quantization(part: PreTrainedModel, stored_so: bool = False) -> None:
    """Let a part that was opened in fewer bits pass gradients on, and its config say nothing of bits.

    Args:
        part: The part; nothing happens to one with full weights.
        stored_so: Whether its checkpoint has few bits already, as its config then must say.
    """
    if not is_quantized(part):
        return
    if not stored_so:
        # How a model was opened, not what it is: the next one to open it has the weights in full.
        del part.config.quantization_config
    for module in part.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            # In eval mode on a CPU, 4-bit layers of bitsandbytes pack their weights and then pass no gradient. Frozen
            # layers are in eval mode at times, and what is below them trains.
            module.support_avx512bf16_for_cpu = False
