"""Load a stored adapter of any PEFT method into a model, and account for every tensor."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from peft import PeftConfig, PeftModel
from peft.utils import get_peft_model_state_dict, load_peft_weights
from transformers import PreTrainedModel

from hf_any3d.modeling.config_checks import check_sizes
from hf_any3d.modeling.pretrained_parts.loading_checks import listed

_LONGEST_PATTERN = 10_000
_MOST_REPEATS = 4
# Ranks and the like, by the names that PEFT's methods have for them.
_WIDTHS = ("r", "num_virtual_tokens", "num_prompts", "oft_block_size", "boft_block_size", "n_frequency", "adapter_len")
_WIDEST = 16_384


def load_adapter_into(
    model: PreTrainedModel, name: str, hub: dict[str, Any], ignore_mismatched_sizes: bool = False
) -> dict[str, list[Any]]:
    """Load the adapter of a directory or hub repository into a model, in place, for inference.

    Not by `model.load_adapter`: transformers' own way in knows fewer methods than PEFT (neither VeRA nor the vectors
    of DoRA).

    Args:
        model: The model to adapt; its layers are wrapped.
        name: Directory or repository with `adapter_config.json`.
        hub: `revision`, `token`, `cache_dir` and the like.
        ignore_mismatched_sizes: Leave tensors of another size, such as a head for other labels, as they start.

    Returns:
        `missing_keys`, `unexpected_keys` and `mismatched_keys` (name, stored size, size in the model), as transformers
        gives them; the last alone may have any.

    Raises:
        ValueError: If its settings are none that an adapter can have, or it lacks tensors of the model or has others.
        RuntimeError: If sizes differ and `ignore_mismatched_sizes` is False.
    """
    config = PeftConfig.from_pretrained(name, **hub)
    check_adapter_config(config)
    config.inference_mode = True
    adapted = PeftModel(model, config)
    stored = {key: tensor.shape for key, tensor in load_peft_weights(name, device="cpu", **hub).items()}
    state = get_peft_model_state_dict(adapted, save_embedding_layers=False)
    expected = {key: tensor.shape for key, tensor in state.items()}
    if missing := sorted(expected.keys() - stored.keys()):
        raise ValueError(f"{name}: the adapter lacks {listed(missing)}")
    if unexpected := sorted(stored.keys() - expected.keys()):
        raise ValueError(f"{name}: the adapter has {listed(unexpected)}, for which the model has no place")
    mismatched = sorted((key, shape, expected[key]) for key, shape in stored.items() if shape != expected[key])
    if mismatched and not ignore_mismatched_sizes:
        sizes = [f"{key} has shape {tuple(theirs)}, expected {tuple(ours)}" for key, theirs, ours in mismatched]
        raise RuntimeError(f"{name}: {listed(sizes)}; ignore_mismatched_sizes=True starts them fresh")
    adapted.load_adapter(name, "default", ignore_mismatched_sizes=ignore_mismatched_sizes, **hub)
    return {"missing_keys": [], "unexpected_keys": [], "mismatched_keys": mismatched}


def check_adapter_config(config: PeftConfig) -> None:
    """Make sure that the settings of a stored adapter, of any method of PEFT, are none that take for ever.

    Raises:
        ValueError: A number is NaN, infinite or larger than any adapter has it, a regular expression is one that could
            be matched for hours, or the settings are those of Megatron.
    """
    if getattr(config, "megatron_config", None) is not None:
        # PEFT would import Megatron, which is seldom there; other modules than that it refuses by itself.
        raise ValueError("megatron_config is set; expected None, as layers of Megatron are not in our models")
    check_sizes(vars(config))
    widths = {name: getattr(config, name, None) for name in _WIDTHS}
    ranks = getattr(config, "rank_pattern", None)
    widths |= {f"rank_pattern[{name!r}]": rank for name, rank in ranks.items()} if isinstance(ranks, Mapping) else {}
    for name, width in widths.items():
        if width is not None and not (isinstance(width, int) and 0 <= width <= _WIDEST):
            raise ValueError(f"{name}={width!r}; expected a whole number from 0 to {_WIDEST:,}")
    check_patterns(config)


def check_patterns(config: PeftConfig) -> None:
    """Make sure that the regular expressions of a PEFT configuration are matched in no time.

    Adapters come from strangers, and PEFT holds their expressions against the name of every module.

    Raises:
        ValueError: If one is no regular expression, repeats what has repeats or choices in it, or has many repeats.
    """
    patterns = [getattr(config, name, None) for name in ("target_modules", "exclude_modules", "layers_pattern")]
    for name in ("rank_pattern", "alpha_pattern"):
        given = getattr(config, name, None)
        patterns += list(given) if isinstance(given, Mapping) else []
    for name in ("modules_to_save", "layers_pattern"):
        given = getattr(config, name, None)
        # PEFT matches each name as an expression too, with anything in front of it and behind it.
        patterns += [f".*{entry}.*" for entry in given] if isinstance(given, (list, tuple, set)) else []
    for pattern in patterns:
        if isinstance(pattern, str):
            _check_pattern(pattern)


def _check_pattern(pattern: str) -> None:
    shown = pattern if len(pattern) <= 100 else f"{pattern[:97]}..."
    if len(pattern) > _LONGEST_PATTERN:
        raise ValueError(f"pattern {shown!r}: {len(pattern):,} characters; expected at most {_LONGEST_PATTERN:,}")
    try:
        re.compile(pattern)
    except (re.error, RecursionError, OverflowError) as error:
        raise ValueError(f"pattern {shown!r}: no regular expression ({error})") from error
    # Escaped characters and sets stand for one character each, as far as time goes.
    plain = re.sub(r"\\.", "a", pattern)
    plain = re.sub(r"\[\^?\]?[^\]]*\]", "a", plain)
    if re.search(r"\\[1-9]|\(\?P=|\(\?\(", pattern):
        raise ValueError(f"pattern {shown!r}: refers back to a group; expected a plain expression")
    if len(re.findall(r"[*+]|\{\d*,\d*\}", plain)) > _MOST_REPEATS:
        raise ValueError(f"pattern {shown!r}: repeats more than {_MOST_REPEATS} times; name the modules instead")
    while match := re.search(
        r"\((\?(:|=|!|<=|<!|>|P<\w+>|[a-zA-Z-]+:?))?(?P<inside>[^()]*)\)(?P<again>[*+{]?)", plain
    ):
        inside, again = match["inside"], match["again"]
        if again and re.search(r"[*+{|?]", inside):
            raise ValueError(f"pattern {shown!r}: repeats a group that has repeats or choices in it")
        plain = (
            plain[: match.start()]
            + ("a*" if re.search(r"[*+{|?]", inside) else "a")
            + plain[match.end("inside") + 1 :]
        )
