"""A judge without a language model: it looks for the names of the classes."""

from __future__ import annotations

import re
from collections.abc import Sequence

VERSION = "1"


class ClassNameJudge:
    """Replies as judges do with the class that an answer names first, of several at one place with the longest.

    Names stand between borders of words, in either case; a blank in them may be blanks, a hyphen or an underscore.
    Other words for a class, plurals among them, are not found, so figures are lower than a language model's: a bound
    that needs no network, the same today and in ten years.

    Args:
        classes: Names of the classes, in words.

    Raises:
        ValueError: There are no names, or one is empty or there twice.
    """

    name = "class names"
    reads_prompt = False
    kinds = ("class",)
    at_once = 1

    def __init__(self, classes: Sequence[str]):
        names = [" ".join(name.lower().replace("_", " ").split()) for name in classes]
        if not names or not all(names) or len(set(names)) < len(names):
            raise ValueError(f"classes are {list(classes)}; expected different names")
        self.numbers = {name: number for number, name in enumerate(names)}
        longest_first = sorted(names, key=len, reverse=True)
        patterns = [r"[\s_-]+".join(map(re.escape, name.split())) for name in longest_first]
        self.pattern = re.compile(rf"(?<![^\W_])(?:{'|'.join(patterns)})(?![^\W_])", re.IGNORECASE)
        self.settings = {"classes": len(names)}
        self.revisions = {VERSION}

    def __call__(self, text: str) -> str:
        """The class that an answer names, as `number#class#reason`."""
        found = self.pattern.search(text)
        if found is None:
            return "-1#NA#names no class"
        name = re.sub(r"[\s_-]+", " ", found.group().lower())
        return f"{self.numbers[name]}#{name}#named at character {found.start()}"
