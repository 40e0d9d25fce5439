"""A plugin of vLLM for the chat models of hf_any3d; `prompts` and `tower` need hf_any3d alone, `model` needs vLLM."""

from __future__ import annotations

ARCHITECTURE = "MiniGPT3DForConditionalGeneration"


def register() -> None:
    """Register the model with vLLM, which calls this in every process, and in some more than once."""
    from vllm import ModelRegistry

    import hf_any3d  # noqa: F401  registers configuration and processor with transformers

    if ARCHITECTURE not in ModelRegistry.get_supported_archs():
        # A name, not the class, whose import would initialize CUDA before vLLM forks.
        ModelRegistry.register_model(ARCHITECTURE, f"hf_any3d_vllm.model:{ARCHITECTURE}")
