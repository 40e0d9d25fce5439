"""What people read in a terminal: text that cannot steer it, and errors in one line.

Names of classes and files, words of models and texts of errors come from strangers. All that commands and programs
print goes through here.
"""

from __future__ import annotations

import json
import re
import sys
import unicodedata
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

_LONGEST_REASON = 500
# Marks that turn the direction of what is behind them, so that a text reads other than it is.
_TURNS = frozenset("\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")


def printable(text: object, keep: str = "") -> str:
    r"""Text with control characters, lone surrogates and marks of direction as `\u001b`, which JSON reads too.

    Args:
        text: Anything that has a text.
        keep: Characters to leave as they are, such as line breaks of an answer.
    """
    return "".join(char if char in keep or _is_harmless(char) else f"\\u{ord(char):04x}" for char in str(text))


_LONGEST = 1200  # characters of a message


def one_line(error: object) -> str:
    """The text of an error in one line, or its kind where it has none; very long ones are cut in the middle."""
    text = " ".join(line.strip() for line in str(error).splitlines() if line.strip())
    text = text if len(text) <= _LONGEST else f"{text[: _LONGEST // 2]} … {text[-_LONGEST // 2 :]}"
    return printable(text) or type(error).__name__


def say(text: object = "", is_error: bool = False) -> None:
    """Print one line; a line break inside it is shown, not made."""
    # Characters that the terminal has no way to write must not end a program.
    stream = sys.stderr if is_error else sys.stdout
    line = printable(text)
    encoding = getattr(stream, "encoding", None) or "utf-8"
    print(line.encode(encoding, errors="backslashreplace").decode(encoding), file=stream, flush=True)


def say_json(value: Any) -> None:
    """Print JSON for people to read too."""
    for line in json.dumps(value, indent=2, ensure_ascii=False).split("\n"):
        say(line)


@contextmanager
def opened(model: object, failure: str = "cannot be opened") -> Iterator[None]:
    """Give one kind of error for all that can be wrong with a model's directory or repository.

    Transformers, torch, PEFT and safetensors raise a dozen kinds, few of which name the directory. Settings that fit
    the weights but not each other are found when the model first answers.

    Args:
        model: Its name, for the message.
        failure: What it then cannot do.

    Raises:
        ValueError: Names the model and says what is wrong. Errors that commands tell anyway, ValueError, OSError and
            ImportError, stay where they do both.
    """
    try:
        yield
    except (ValueError, OSError, ImportError) as error:
        text = str(error)
        # Where no class opens a model, `pipeline` tells all tracebacks; the last line of the first says why.
        told = text.partition("while loading with")[2].partition("while loading with")[0]
        reasons = re.findall(r"^(?:\w+\.)*\w+(?:Error|Exception): .*", told, re.MULTILINE)
        if reasons:
            reason = reasons[-1].partition(": ")[2] if f" {model}: " in reasons[-1] else f"{model}: {reasons[-1]}"
            raise ValueError(_brief(reason)) from error
        # A list of all that transformers knows tells nobody anything.
        if isinstance(error, ValueError) and (str(model) not in text or len(text) > 3 * _LONGEST_REASON):
            raise ValueError(f"{model}: {_brief(error)}") from error
        raise
    except Exception as error:
        raise ValueError(f"{model}: this model {failure} ({type(error).__name__}: {_brief(error)})") from error


def _brief(error: object) -> str:
    text = one_line(error)
    return text if len(text) <= _LONGEST_REASON else f"{text[: _LONGEST_REASON - 3]}..."


def _is_harmless(char: str) -> bool:
    return char.isprintable() or (unicodedata.category(char) in ("Cf", "Zs", "Co", "Cn") and char not in _TURNS)
