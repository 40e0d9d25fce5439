"""What the configurations of our methods share: which layers they adapt, and what is trained beside them."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar

from peft import PeftConfig

from hf_any3d.modeling.config_checks import LAYERS, Ranges, check_numbers

_LONGEST_PATTERN = 10_000
_MOST_REPEATS = 4


@dataclass
class EncoderLayersConfig(PeftConfig):
    """Configuration of a method that adapts whole layers of a frozen encoder.

    By default it adapts all layers, and tokenizer, class token, output norm and head are trained and saved with it.

    Raises:
        ValueError: Both `target_modules` and `layers_to_transform`.
    """

    ranges: ClassVar[Ranges] = {"layers_to_transform": (-LAYERS[1], LAYERS[1])}

    layers_to_transform: list[int] | int | None = field(
        default=None, metadata={"help": "Numbers of the layers to adapt; None for all."}
    )
    target_modules: list[str] | str | None = field(
        default=None, metadata={"help": "Regular expression of the layers to adapt; found from the encoder when None."}
    )
    exclude_modules: list[str] | str | None = field(default=None, metadata={"help": "Layers to leave out."})
    modules_to_save: list[str] | None = field(
        default=None,
        metadata={"help": "Modules trained in full and saved; None for tokenizer, class token, output norm and head."},
    )

    def __post_init__(self):
        super().__post_init__()
        check_numbers(self, self.ranges)
        check_patterns(self)
        if self.target_modules is not None and self.layers_to_transform is not None:
            raise ValueError("give target_modules or layers_to_transform, not both")
        if isinstance(self.target_modules, list):
            self.target_modules = set(self.target_modules)


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
