"""Classes of labeled points: their codes in files, their names, what is left out, and what is merged."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from hf_any3d.data.classes.las_classes import (
    ASPRS_CLASSES,
    CURRENT,
    FAMILIES,
    UNCLASSIFIED,
    Kind,
    kind_of,
    names_object,
)
from hf_any3d.modeling.layers.losses import IGNORED

NO_CODES = "none"
"""Word for `ignore` by which all codes count."""
_OF_NO_CLASS = UNCLASSIFIED[1]
_LARGEST_CODE = 255  # of a byte, in which files have classes


@dataclass(frozen=True)
class ClassRule:
    """Rule by which codes of files become classes.

    What a code means depends on the file that has it: `table` is `PointCloudData.label_codes`, None for numbers whose
    meaning no format knows.

    Attributes:
        ignored: Codes that are neither learned nor judged; None for those that name no object in LAS.
        merged: Name -> codes that are one class.
        written: Name of a merged class -> the code that files get for it, where one was given.
        words: Names of the codes, where files name classes by words.
    """

    ignored: frozenset[int] | None = None
    merged: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    written: Mapping[str, int] = field(default_factory=dict)
    words: Sequence[str] = ()

    @classmethod
    def parse(cls, ignore: str | None, merge: Sequence[str] | None) -> ClassRule:
        """Read the rule from words such as "0,1" and "vegetation=3,4,5", or "other=2,3:64" with the code for files."""
        merged: dict[str, tuple[int, ...]] = {}
        written: dict[str, int] = {}
        for text in merge or ():
            # The name may be any text, codes follow the first equals sign.
            name, _, codes = text.partition("=")
            name = name.strip()
            codes, colon, code = codes.partition(":")
            # A code that stands twice in one class says nothing else.
            own = tuple(dict.fromkeys(_codes(codes)))
            # One code is written, so that two are as wrong as none.
            of_files = _codes(code)
            if not name or not own or (colon and len(of_files) != 1):
                raise ValueError(
                    f"--merge {text!r}; expected NAME=CODES, such as vegetation=3,5, or NAME=CODES:CODE for the code "
                    "in files"
                )
            if name in merged:
                both = ",".join(map(str, dict.fromkeys((*merged[name], *own))))
                raise ValueError(f"--merge has class {name} twice; give its codes at once, as in {name}={both}")
            merged[name] = own
            if colon and not 0 <= of_files[0] <= _LARGEST_CODE:
                raise ValueError(
                    f"--merge {text!r}: files cannot have code {of_files[0]}; expected 0 to {_LARGEST_CODE}"
                )
            if colon:
                written[name] = of_files[0]
        every = [code for codes in merged.values() for code in codes]
        # A point cannot be of two classes.
        twice = sorted({code for code in every if every.count(code) > 1})
        if twice:
            raise ValueError(f"--merge has code {twice[0]} in two classes; expected each code once")
        if ignore is None:
            return cls(None, merged, written)
        ignored = frozenset(_codes(ignore))
        if not ignored and ignore.strip() != NO_CODES:
            raise ValueError(f"--ignore {ignore!r}; expected codes of classes, such as 0,1, or {NO_CODES}")
        both = sorted(ignored & {*every})
        if both:
            raise ValueError(f"--ignore and --merge both have code {both[0]}; leave it out of one of them")
        return cls(ignored, merged, written)

    def check_in_files(self, present: Collection[int], may_lack: Collection[int] = ()) -> None:
        """Raise a ValueError if a code to merge is none of those that the points of all files have.

        Args:
            present: Codes that the points have.
            may_lack: Codes that need not be among them, if another one of their class is.
        """
        for name, codes in self.merged.items():
            kept = [code for code in codes if code in present]
            absent = [code for code in codes if code not in present and not (kept and code in may_lack)]
            if not absent:
                continue
            asked = f"--merge {name}={','.join(map(str, codes))}"
            without = f"no point that counts has class {' or '.join(map(str, absent))}"
            if kept:
                rest = ",".join(str(code) for code in codes if code not in absent)
                raise ValueError(f"{asked}: {without}; use {name}={rest}")
            raise ValueError(f"{asked}: {without}; expected some of {', '.join(map(str, sorted(present)))}")

    def is_ignored(self, code: int, table: str | None) -> bool:
        """Return whether points of a code are left out."""
        # Who names a code wants its points.
        if any(code in codes for codes in self.merged.values()):
            return False
        # Negative numbers are the usual mark of "no label" outside of LAS.
        if code < 0:
            return True
        # Given codes replace those of LAS: --ignore 18 learns what nobody has classified, too.
        if self.ignored is not None:
            return code in self.ignored
        return table is not None and not names_object(code, table)

    def is_own(self, code: int, table: str | None) -> bool:
        """Return whether a code is the user's own in LAS, and neither named to be joined nor to be ignored."""
        is_named = self.ignored is not None or any(code in codes for codes in self.merged.values())
        return table is not None and not is_named and kind_of(code, table) is Kind.OWN

    def class_of(self, code: int, table: str | None) -> tuple[str, int]:
        """Return the name of the class of a code, and the code that files get for it."""
        for name, codes in self.merged.items():
            if code in codes:
                return name, self._code_of_merged(name, codes, table)
        if code < len(self.words):
            return self.words[code], code
        # Codes of other formats are numbers of their own.
        name = ASPRS_CLASSES.get(code) if table is not None else None
        return name or f"class {code}", code

    def joined(self, is_las: bool) -> dict[int, tuple[str, int]]:
        """Return the name and number of the merged class by each of its codes, that of labeled copies among them."""
        found: dict[int, tuple[str, int]] = {}
        for name, codes in self.merged.items():
            number = self.class_of(codes[0], CURRENT if is_las else None)[1]
            # A class may have no code of LAS, and a prediction says of its points that they are unclassified.
            if is_las and number in UNCLASSIFIED:
                number = codes[-1]
            # A labeled copy has the code that the joined class has in files, which need not be one of those that it
            # joins.
            found |= dict.fromkeys((*codes, number), (name, number))
        return found

    def _code_of_merged(self, name: str, codes: tuple[int, ...], table: str | None) -> int:
        """Return the code for a merged class in files, which must not contradict its name."""
        if name in self.written:
            return self.written[name]
        # One code only gets a name; numbers outside of LAS say nothing by themselves.
        if len(codes) == 1 or table is None:
            return codes[-1]
        plain = name.lower().replace("_", " ")
        by_name = {title: code for code, title in ASPRS_CLASSES.items()}
        if plain in by_name:
            return by_name[plain]
        for family, members in FAMILIES.items():
            inside = [code for code in codes if code in members]
            # Any code of a family fits it, and the user chooses one by the order.
            if inside and (plain == family or len(inside) == len(codes)):
                return inside[-1]
        return _OF_NO_CLASS


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
        return [sorted({*codes, *rule.merged.get(name, ())}) for name, codes in zip(self.names, found, strict=True)]

    @classmethod
    def among(
        cls, counts: Mapping[int, int], rule: ClassRule, table: str | None, least: int
    ) -> tuple[Classes, list[str]]:
        """Choose the classes of codes with so many points each; also returns those with fewer than `least`.

        Raises:
            ValueError: Files would get one code for two classes, or a merged class has the name of another one.
        """
        found: dict[str, tuple[int, int, list[int]]] = {}
        for code in sorted(counts):
            # In the order of codes, so that the numbers of classes do not depend on the order of files.
            if counts[code] and not rule.is_ignored(code, table):
                name, written = rule.class_of(code, table)
                members = rule.merged.get(name, (code,))
                if code not in members:
                    joined = ",".join(map(str, members))
                    raise ValueError(
                        f"--merge {name}={joined}: class {code} has this name, too; use {name}={joined},{code} to "
                        "merge it, or another name"
                    )
                _, points, codes = found.get(name, (written, 0, []))
                found[name] = (written, points + counts[code], [*codes, code])
        kept = {name: values for name, values in found.items() if values[1] >= least}
        written_codes = {name: written for name, (written, _, _) in kept.items()}
        for code, count in Counter(written_codes.values()).items():
            if count > 1:
                names = [name for name in written_codes if written_codes[name] == code]
                # The code of a single class is that of its points; a merged one can get another.
                merged = next((name for name in names if name in rule.merged), names[0])
                merged_codes = ",".join(map(str, rule.merged.get(merged, (code,))))
                raise ValueError(
                    f"files would get code {code} for {' and for '.join(names)}; give one of them a code of its own, "
                    f"such as --merge {merged}={merged_codes}:{_free(written_codes)}"
                )
        numbers = {code: number for number, (_, _, codes) in enumerate(kept.values()) for code in codes}
        rare = [f"{name} ({points})" for name, (_, points, _) in found.items() if name not in kept]
        return cls(list(kept), [*written_codes.values()], numbers), rare

    def number(self, codes: np.ndarray, among: Collection[int] | None = None) -> np.ndarray:
        """Return the class of each point (points,) by its code, -100 where none is learned.

        Only the codes `among` those given count: a code may be a class in one file, and mean nothing in another.
        """
        # Few codes and many points: each code is looked up once.
        present, place = np.unique(codes, return_inverse=True)
        counted = self.numbers if among is None else {code: self.numbers.get(code, IGNORED) for code in among}
        return np.array([counted.get(code, IGNORED) for code in present.tolist()])[place.reshape(-1)]


def codes_without_class(classes: Classes, rule: ClassRule) -> list[str]:
    """Return remarks on merged classes of several kinds of things, for which files get the code of none."""
    remarks = []
    for name, code in zip(classes.names, classes.codes, strict=True):
        if name in rule.merged and name not in rule.written and code == _OF_NO_CLASS:
            codes = ",".join(map(str, rule.merged[name]))
            remarks.append(
                f"classes: files get code {code}, unclassified, for {name}, as LAS has none for it; "
                f"--merge {name}={codes}:{_free(dict(zip(classes.names, classes.codes, strict=True)))} gives it one"
            )
    return remarks


def _free(written: Mapping[str, int]) -> int:
    """Return a code that no class has, of those that LAS leaves to the user."""
    return next(code for code in range(64, 256) if code not in written.values())


def _codes(text: str) -> tuple[int, ...]:
    """Return the codes in a text, none if something else is among them."""
    words = text.replace(",", " ").split()
    if not all(word.removeprefix("-").isdecimal() for word in words):
        return ()
    return tuple(map(int, words))
