"""Classes of labeled points: their codes in files, their names, what is left out, and what is merged."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from hf_any3d.data.las_classes import ASPRS_CLASSES
from hf_any3d.modeling.layers.losses import IGNORED

SAYS_NOTHING = (0, 1, 7, 18)
"""ASPRS codes of points that nobody has classified, and of noise."""
_FIRST_OF_USERS = 64


@dataclass(frozen=True)
class ClassRule:
    """Rule by which codes of files become classes.

    Attributes:
        ignored: Codes that are neither learned nor judged; None for those that say nothing in LAS.
        merged: Name -> codes that are one class.
    """

    ignored: frozenset[int] | None = None
    merged: Mapping[str, tuple[int, ...]] | None = None

    @classmethod
    def parse(cls, ignore: str | None, merge: Sequence[str] | None) -> ClassRule:
        """Read the rule from words such as "0,1" and "vegetation=3,4,5"."""
        merged: dict[str, tuple[int, ...]] = {}
        for text in merge or ():
            # The name may be any text, codes follow the first equals sign.
            name, _, codes = text.partition("=")
            merged[name.strip()] = _codes(codes, f"--merge {text!r}")
            if not name.strip():
                raise ValueError(f"--merge {text!r}; expected a name and codes, such as vegetation=3,4,5")
        every = [code for codes in merged.values() for code in codes]
        # A point cannot be of two classes.
        if twice := sorted({code for code in every if every.count(code) > 1}):
            raise ValueError(f"--merge has code {twice[0]} in two classes; expected each code once")
        return cls(None if ignore is None else frozenset(_codes(ignore, f"--ignore {ignore!r}")), merged)

    def is_ignored(self, code: int, is_las: bool) -> bool:
        """Return whether points of a code are left out."""
        # Given codes replace the default for LAS: --ignore 18 learns what nobody has classified, too.
        if self.ignored is not None:
            return code in self.ignored
        # The usual mark of "no label" outside of LAS
        if code < 0:
            return True
        return is_las and (code in SAYS_NOTHING or code >= _FIRST_OF_USERS)

    def class_of(self, code: int, is_las: bool) -> tuple[str, int]:
        """Return the name of the class of a code, and the code that files get for it: of merged ones the last."""
        for name, codes in (self.merged or {}).items():
            # The last code is the one that files get, so that the user chooses it by the order.
            if code in codes:
                return name, codes[-1]
        # Codes of other formats are numbers of their own.
        name = ASPRS_CLASSES.get(code) if is_las else None
        return name or f"class {code}", code


@dataclass(frozen=True)
class Classes:
    """The classes that are learned, in the order of their codes.

    Attributes:
        names: Name of each.
        codes: Code that files get for each.
        numbers: Code in files -> number of its class; codes that are left out are missing.
    """

    names: list[str]
    codes: list[int]
    numbers: Mapping[int, int]

    def members(self, rule: ClassRule) -> list[list[int]]:
        """Return the codes that files may have for each class, those of merged ones whether or not they occurred."""
        found: list[list[int]] = [[] for _ in self.names]
        for code, number in self.numbers.items():
            found[number].append(code)
        merged = rule.merged or {}
        return [sorted({*codes, *merged.get(name, ())}) for name, codes in zip(self.names, found, strict=True)]

    @classmethod
    def among(cls, counts: Mapping[int, int], rule: ClassRule, is_las: bool, least: int) -> tuple[Classes, list[str]]:
        """Choose the classes of codes with so many points each; also returns those with fewer than `least`."""
        found: dict[str, tuple[int, int, list[int]]] = {}
        for code in sorted(counts):
            # In the order of codes, so that the numbers of classes do not depend on the order of files.
            if counts[code] and not rule.is_ignored(code, is_las):
                name, written = rule.class_of(code, is_las)
                _, points, codes = found.get(name, (written, 0, []))
                found[name] = (written, points + counts[code], [*codes, code])
        kept = {name: values for name, values in found.items() if values[1] >= least}
        numbers = {code: number for number, (_, _, codes) in enumerate(kept.values()) for code in codes}
        rare = [f"{name} ({points})" for name, (_, points, _) in found.items() if name not in kept]
        return cls(list(kept), [written for written, _, _ in kept.values()], numbers), rare

    def number(self, codes: np.ndarray) -> np.ndarray:
        """Return the class of each point (points,) by its code, -100 where none is learned."""
        # Few codes and many points: each code is looked up once.
        present, place = np.unique(codes, return_inverse=True)
        return np.array([self.numbers.get(int(code), IGNORED) for code in present])[place.reshape(-1)]


def _codes(text: str, option: str) -> tuple[int, ...]:
    words = [word for word in text.replace(",", " ").split() if word]
    if not words or not all(word.lstrip("-").isdecimal() for word in words):
        raise ValueError(f"{option}; expected codes of classes, such as 3,4,5")
    return tuple(map(int, words))
