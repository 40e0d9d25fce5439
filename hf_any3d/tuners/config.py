"""Base configurations of this package's PEFT methods, their names in PEFT's enum, and checks of untrusted patterns."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar

from peft import PeftConfig, PeftType

from hf_any3d.modeling.config_checks import LAYERS, Ranges, check_numbers

_MAX_PATTERN_LENGTH = 10_000
_MAX_REPEATS = 4


def extend_peft_type(name: str) -> PeftType:
    """Add a member to PEFT's enum of methods, or return the existing one.

    PEFT refuses methods whose name is not a member, and an enum can neither be subclassed nor extended by public
    means, so the member is written to the enum's own tables.
    """
    if name in PeftType.__members__:
        return PeftType[name]
    member = str.__new__(PeftType, name)
    member._name_ = member._value_ = name
    member._sort_order_ = len(PeftType._member_names_)
    PeftType._member_names_.append(name)
    PeftType._member_map_[name] = member
    PeftType._value2member_map_[name] = member
    type.__setattr__(PeftType, name, member)
    return member


@dataclass
class EncoderTunerConfig(PeftConfig):
    """Configuration of a method that adapts modules in the layers of a frozen encoder.

    By default tokenizer, class token, output norm and head are trained and saved with the adapter.
    """

    target_modules: list[str] | str | None = field(
        default=None, metadata={"help": "Regular expression or names of the modules to adapt; None for the default."}
    )
    exclude_modules: list[str] | str | None = field(default=None, metadata={"help": "Modules to leave out."})
    modules_to_save: list[str] | None = field(
        default=None,
        metadata={"help": "Modules trained in full and saved; None for tokenizer, class token, output norm and head."},
    )

    def __post_init__(self):
        super().__post_init__()
        check_patterns(self)
        if isinstance(self.target_modules, list):
            self.target_modules = set(self.target_modules)


@dataclass
class EncoderLayersConfig(EncoderTunerConfig):
    """Configuration of a method that adapts complete layers of a frozen encoder, by default all of them.

    Raises:
        ValueError: If both `target_modules` and `layers_to_transform` are given.
    """

    ranges: ClassVar[Ranges] = {"layers_to_transform": (-LAYERS[1], LAYERS[1])}

    layers_to_transform: list[int] | int | None = field(
        default=None, metadata={"help": "Numbers of the layers to adapt; None for all."}
    )

    def __post_init__(self):
        super().__post_init__()
        check_numbers(self, self.ranges)
        if self.target_modules is not None and self.layers_to_transform is not None:
            raise ValueError("give target_modules or layers_to_transform, not both")


def check_patterns(config: PeftConfig) -> None:
    """Check that the regular expressions of a PEFT configuration can be matched quickly.

    Adapters may be untrusted, and PEFT matches their expressions against the name of every module.

    Raises:
        ValueError: If an expression is invalid, repeats a group that contains repeats or choices, or has many repeats.
    """
    patterns = [getattr(config, name, None) for name in ("target_modules", "exclude_modules", "layers_pattern")]
    for name in ("rank_pattern", "alpha_pattern"):
        given = getattr(config, name, None)
        patterns += list(given) if isinstance(given, Mapping) else []
    for name in ("modules_to_save", "layers_pattern"):
        given = getattr(config, name, None)
        # PEFT matches each name as an expression too, with anything before and after it.
        patterns += [f".*{entry}.*" for entry in given] if isinstance(given, (list, tuple, set)) else []
    for pattern in patterns:
        if isinstance(pattern, str):
            _check_pattern(pattern)


def _check_pattern(pattern: str) -> None:
    shown = pattern if len(pattern) <= 100 else f"{pattern[:97]}..."
    if len(pattern) > _MAX_PATTERN_LENGTH:
        raise ValueError(f"pattern {shown!r}: {len(pattern):,} characters; expected at most {_MAX_PATTERN_LENGTH:,}")
    try:
        re.compile(pattern)
    except (re.error, RecursionError, OverflowError) as error:
        raise ValueError(f"pattern {shown!r}: not a regular expression ({error})") from error
    # For the matching time, escaped characters and sets count as one character.
    plain = re.sub(r"\\.", "a", pattern)
    plain = re.sub(r"\[\^?\]?[^\]]*\]", "a", plain)
    if re.search(r"\\[1-9]|\(\?P=|\(\?\(", pattern):
        raise ValueError(f"pattern {shown!r}: refers back to a group; expected a plain expression")
    if len(re.findall(r"[*+]|\{\d*,\d*\}", plain)) > _MAX_REPEATS:
        raise ValueError(f"pattern {shown!r}: repeats more than {_MAX_REPEATS} times; name the modules instead")
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
