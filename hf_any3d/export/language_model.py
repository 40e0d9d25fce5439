"""Write the language model of a chat model as a stock causal language model, for engines such as vLLM."""

from __future__ import annotations

import base64
import copy
import io
import os
from typing import Any

import torch
from peft.tuners.lora import LoraLayer
from torch import nn
from transformers import AutoModelForCausalLM, GenerationConfig, PreTrainedModel

from hf_any3d.modeling.layers.modes import evaluation_mode
from hf_any3d.modeling.minigpt3d import MiniGPT3DForConditionalGeneration
from hf_any3d.modeling.minigpt3d.lora import merge_low_rank
from hf_any3d.utils.atomic_files import new_directory

_TOKENS = 7  # of the comparison
# Relative to the largest logit; merging changes the order of sums, in bfloat16 more.
_TOLERANCES = {torch.float32: 1e-4, torch.float16: 2e-2, torch.bfloat16: 6e-2}


def export_language_model(
    model: MiniGPT3DForConditionalGeneration, folder: str | os.PathLike, tokenizer: Any = None
) -> float:
    """Write the language model, with its LoRA merged, so that transformers and vLLM open it without this package.

    It continues what `model.prompt_embeddings` returns. Its generation config suppresses the token that stands for
    clouds, if the vocabulary has it.

    Args:
        model: The chat model; it is not changed.
        folder: Folder to write; it must not exist, or be empty.
        tokenizer: Tokenizer to write beside it.

    Returns:
        The largest difference of logits between the model and the opened copy.
    """
    language_model: Any = model.language_model
    kind = type(language_model)
    if not kind.__module__.startswith("transformers.models."):
        raise ValueError(f"a {kind.__name__} of {kind.__module__}; expected a language model of transformers")
    merged: Any = copy.deepcopy(language_model)
    for name, layer in list(merged.named_modules()):
        if isinstance(layer, LoraLayer):
            # An error for weights with NaN, instead of a merged model that has them everywhere.
            layer.merge(safe_merge=True)
            parent, _, child = name.rpartition(".")
            base: nn.Module = layer.get_base_layer()
            setattr(merged.get_submodule(parent), child, base)
    # Adapters first, which are on the layers inside.
    merge_low_rank(merged)
    # Otherwise `save_pretrained` would write only adapters.
    merged._hf_peft_config_loaded = False
    generation: GenerationConfig = copy.deepcopy(model.generation_config)  # pyright: ignore[reportAssignmentType]
    if model.config.point_token_id < merged.config.vocab_size:
        # The model's own generation never writes this token, and other engines have to be told.
        suppressed = {*(generation.suppress_tokens or ()), model.config.point_token_id}
        generation.suppress_tokens = sorted(suppressed)
    merged.generation_config = generation
    with new_directory(folder) as unfinished:
        merged.save_pretrained(unfinished)
        if tokenizer is not None:
            tokenizer.save_pretrained(unfinished)
        # Read back from the files, since they are what others open; they get their name only if they agree.
        return _compare(model, AutoModelForCausalLM.from_pretrained(unfinished, dtype=merged.dtype))


def encode_prompt_embeds(embedded: torch.Tensor) -> str:
    """Encode an embedded prompt `(tokens, hidden)` as vLLM's HTTP API takes it: `torch.save` in base64."""
    file = io.BytesIO()
    # Cloned, since `torch.save` writes all of the storage that a view is part of.
    torch.save(embedded.detach().cpu().contiguous().clone(), file)
    return base64.b64encode(file.getvalue()).decode("ascii")


@torch.no_grad()
def _compare(model: MiniGPT3DForConditionalGeneration, copied: PreTrainedModel) -> float:
    vocabulary = copied.config.vocab_size
    # Spread over the vocabulary.
    ids = torch.arange(_TOKENS)[None] * (vocabulary // _TOKENS)
    embedded = model.get_input_embeddings()(ids.to(model.device))
    with evaluation_mode(model):
        expected = model(inputs_embeds=embedded).logits.float().cpu()
    found = copied.eval()(inputs_embeds=embedded.to("cpu", copied.dtype)).logits.float()
    difference = float((found - expected).abs().max())
    allowed = _TOLERANCES.get(copied.dtype, 1e-4) * float(expected.abs().max())
    # Not `>`, which NaN would pass.
    if not difference <= allowed:
        raise ValueError(f"the written language model's logits differ by {difference:.1e}, more than {allowed:.1e}")
    return difference
