"""Text encoders and language models that turn queries and keys by their places."""

from __future__ import annotations

from hf_any3d.modeling.encoders.families.parts import free_line
from hf_any3d.modeling.encoders.registry import EncoderFamily, register_family
from hf_any3d.modeling.encoders.rotary import masked_rotary_line_inputs, rotary_line_inputs

# name, model_type, branch, final norm, norm before the first layer
_ROTARY = (
    ("ModernBERT", "modernbert", "mlp", "final_norm", "embeddings.norm"),
    ("EuroBERT", "eurobert", "mlp", "norm", None),
    ("Nomic BERT", "nomic_bert", "mlp", None, "embeddings.LayerNorm"),
    ("LLaMA", "llama", "mlp", "norm", None),
    ("Mistral", "mistral", "mlp", "norm", None),
    ("Qwen2", "qwen2", "mlp", "norm", None),
    ("Qwen3", "qwen3", "mlp", "norm", None),
    ("SmolLM3", "smollm3", "mlp", "norm", None),
    ("StarCoder2", "starcoder2", "mlp", "norm", None),
    ("StableLM", "stablelm", "mlp", "norm", None),
    ("Gemma", "gemma", "mlp", "norm", None),
    # These norm each branch once more before they add it.
    ("Gemma 2", "gemma2", "post_feedforward_layernorm", "norm", None),
    ("Gemma 3 text", "gemma3_text", "post_feedforward_layernorm", "norm", None),
    ("OLMo 2", "olmo2", "post_feedforward_layernorm", "norm", None),
    ("Phi", "phi", "mlp", "final_layernorm", None),
    ("Phi-3", "phi3", "mlp", "norm", None),
    ("GPT-NeoX, Pythia", "gpt_neox", "mlp", "final_layer_norm", None),
)
for name, model_type, branch, final_norm, input_norm in _ROTARY:
    register_family(
        EncoderFamily(
            name=name,
            model_types=(model_type,),
            tower="text",
            layers="layers",
            branch=branch,
            positions=free_line,
            kind="rotary, on a line",
            reached="rotations at the places themselves, views combined by `rotary_views`",
            final_norm=final_norm,
            input_norm=input_norm,
            layer_inputs=masked_rotary_line_inputs if model_type == "stablelm" else rotary_line_inputs,
        )
    )
