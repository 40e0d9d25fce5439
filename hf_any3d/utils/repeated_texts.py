"""Fold repeated warnings and errors of many files into one line each."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

# A sign may also join two words.
_NUMBER = re.compile(r"\d[\d,.]*(?:e[-+]?\d+)?")
# The beginning of a warning about a batch, whose files are not told apart.
_BATCH = re.compile(r"^one of .*?: ")


@dataclass
class _Kind:
    """Repeated texts: the first file, its text, and the text without the file's name."""

    file: str
    text: str
    said: str
    count: int = 0
    is_same: bool = True

    def line(self) -> str:
        """Return one line for all files."""
        if self.count == 1:
            return self.text
        if self.is_same:
            return f"{self.count:,} files, such as {self.file}: {self.said}"
        return f"{self.text} (and {self.count - 1:,} more like it)"


class RepeatedTexts:
    """Warnings and errors of many files, with repeated ones folded into one line.

    Texts that differ in the name of the file and in numbers alone are of one kind.
    """

    def __init__(self) -> None:
        self.kinds: dict[tuple[str, str], _Kind] = {}

    def add(self, level: str, file: str, texts: Iterable[str]) -> None:
        """Add the texts of a file; `level` is "warning" or "error"."""
        for text in texts:
            said = text.removeprefix(f"{file}: ")
            # What texts of one kind share: no name of a file, no numbers, and no list of the files of a batch.
            what = _NUMBER.sub("#", _BATCH.sub("", said).replace(file, "").replace(os.path.basename(file), ""))
            kind = self.kinds.setdefault((level, what), _Kind(file, text, said))
            kind.count += 1
            kind.is_same &= said == kind.said

    def lines(self) -> Iterator[str]:
        """Yield a line for each kind of text, with its level."""
        for (level, _), kind in self.kinds.items():
            yield f"{level}: {kind.line()}"
