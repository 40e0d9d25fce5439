"""Convert a released SpatialLM 1.1 into a directory with model, processor and card, and back."""

import os
from pathlib import Path
from typing import Any

from transformers import GenerationConfig, PreTrainedTokenizerBase
from transformers.utils import CONFIG_NAME, GENERATION_CONFIG_NAME

from hf_any3d.conversions.checkpoints import (
    check_vocabulary,
    errors_about,
    open_tokenizer,
    read_checkpoint,
    read_json,
    read_weights,
)
from hf_any3d.conversions.origin import record_terms
from hf_any3d.conversions.saving import dtype_of, save_converted
from hf_any3d.conversions.spatiallm.names import (
    convert_spatiallm_state_dict,
    spatiallm_config,
)
from hf_any3d.modeling.spatiallm import SpatialLMForConditionalGeneration
from hf_any3d.modeling.spatiallm.about import SYSTEM
from hf_any3d.processing.rooms import END, PLACE, START, TEMPLATE_SHA256, SpatialLMProcessor

# Of the released inference; Llama's chat template gets no system message.
_SYSTEM = {"spatiallm_qwen": "You are a helpful assistant.", "spatiallm_llama": None}
_MOST_TOKENS = 4096
_COMPUTES = (
    "The released program with the settings that its weights were trained with: a number of an answer means the "
    "lower edge of its bin (`lower_edge=True` of the processor), so positions are half a bin, 1.25 cm at 1280 bins, "
    "too low on average; of the points of a cell one is kept (`choice='middle'`); a scan without colors is black; "
    "what lies beyond 32 m falls into the last cells, with a warning. Unlike there, curves of the point encoder are "
    "not shuffled at inference (`shuffle_curves='always'` in `point_config` does), answers are the most likely ones "
    "(the program samples: `do_sample=True, temperature=0.6, top_k=10, top_p=0.95`), the encoder computes in the "
    "model's precision, a line that was cut off or is malformed is left out and reported "
    "(`keep_unclosed` of `decode_layouts` keeps the former), and rows of a batch do not change each other."
)
_WITHOUT_TEMPLATE = (
    "**Every prompt of its training held `code_template.txt` of the authors' program, which is not part of this "
    "repository**: convert with `--code-template FILE`, or set `code_template` of the processor to the text of that "
    "file. Without it, prompts are shorter than those that the model was trained with, and a warning says so."
)
_LICENSE = (
    "The authors publish their program under the Llama 3.2 Community License. The point encoder started from Sonata's "
    "weights, which are under CC BY-NC 4.0 and forbid commercial use; language models have licenses of their own: "
    'Qwen2.5 Apache-2.0, Llama 3.2 its community license, which asks for names that begin with "Llama" and for the '
    'notice "Built with Llama".'
)
_SPECIAL = {"point_start_token_id": START, "point_end_token_id": END, "point_token_id": PLACE}


def convert_spatiallm(
    checkpoint: str | os.PathLike,
    output: str | os.PathLike,
    *,
    tokenizer: str | os.PathLike | None = None,
    dtype: str | None = None,
    code_template: str | os.PathLike | None = None,
) -> dict[str, Any]:
    """Convert a released SpatialLM 1.1, or one that was fine-tuned with the authors' program.

    Args:
        checkpoint: Directory with `config.json`, weights and tokenizer, or the file with the weights in it.
        output: Directory to create.
        tokenizer: Directory or hub name; by default that of the checkpoint.
        dtype: Type to store floats in: "float32", "bfloat16" or "float16"; by default that of the checkpoint.
        code_template: `code_template.txt` of the authors' program, which prompts of the training held.

    Returns:
        Facts by name: `output`, `model`, `parameters`, `bytes`.
    """
    # First, as reading gigabytes only to refuse a word would be a waste.
    chosen_dtype = None if dtype is None else dtype_of(dtype)
    path = Path(checkpoint)
    # Config and tokenizer lie beside the weights.
    folder = path if path.is_dir() else path.parent
    if path.is_dir():
        original, files = read_weights(path)
    else:
        original, files = read_checkpoint(path), [path]
    published = read_json(folder / CONFIG_NAME)
    with errors_about(folder / CONFIG_NAME):
        config = spatiallm_config(published)
    with errors_about(checkpoint):
        state = convert_spatiallm_state_dict(original, config)
    # transformers does not know the type of the released config.
    text: Any = config.text_config
    if tokenizer is None:
        tokenizer = folder
    words = open_tokenizer(tokenizer, text)
    with errors_about(tokenizer):
        for field, token in _SPECIAL.items():
            # The model finds the places of clouds by these numbers; a tokenizer of another checkpoint has other ones.
            number = words.convert_tokens_to_ids(token)
            expected = getattr(config, field)
            if number != expected:
                raise ValueError(f"the tokenizer has {token} as {number}; the config has {field}={expected}")
        check_vocabulary(words, text.vocab_size)
    template = ""
    if code_template is not None:
        template = Path(code_template).read_text(encoding="utf-8")
    processor = SpatialLMProcessor.from_config(
        config,
        words,
        system=_SYSTEM[published["model_type"]],
        # As the released program reads bins.
        lower_edge=True,
        # With another text than that of the training, each prompt warns.
        code_template=template,
        template_sha256=TEMPLATE_SHA256,
    )
    record_terms(config, SYSTEM, files)
    # By default floats stay in the precision of the file, as its largest tensor has it.
    embeddings = state["spatiallm.language_model.model.embed_tokens.weight"]
    sections = {"What it computes": _COMPUTES}
    if not code_template:
        sections["Prompts"] = _WITHOUT_TEMPLATE
    sections["License"] = _LICENSE
    if len(files) == 1:
        sources = {"Model": files[0]}
    else:
        sources = {f"Model, {file.name}": file for file in files}
    return save_converted(
        output,
        SpatialLMForConditionalGeneration,
        config,
        state,
        processor,
        sources,
        f"scans in meters, with z up and walls along the axes, read in cells of {100 * config.grid_size:g} cm.",
        sections,
        dtype=chosen_dtype or embeddings.dtype,
        tied=("spatiallm.language_model.lm_head.weight",) if text.tie_word_embeddings else (),
        generation=_generation(folder, words),
    )


def _generation(folder: Path, tokenizer: PreTrainedTokenizerBase) -> GenerationConfig:
    """Return the settings of greedy answers that end at any end token that the checkpoint names."""
    file = folder / GENERATION_CONFIG_NAME
    named: Any = None
    if file.is_file():
        named = read_json(file).get("eos_token_id")
    ends: list[Any] = []
    if isinstance(named, list):
        ends = named
    elif named is not None:
        ends = [named]
    # Chat templates end a turn with another token than the text's own end.
    ends = list(dict.fromkeys([*ends, tokenizer.eos_token_id]))
    pad = tokenizer.pad_token_id
    if pad is None:
        pad = tokenizer.eos_token_id
    return GenerationConfig(eos_token_id=ends, pad_token_id=pad, max_new_tokens=_MOST_TOKENS)
