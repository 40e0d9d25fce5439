"""Errors and notes of commands: lines on stderr, in the words of options, and what is wrong with a command line."""

from __future__ import annotations

import re
from contextvars import ContextVar
from typing import Any

from hf_any3d.utils.messages import error_lines, print_line

SOME_FAILED = 2
"""Exit code of a command that could not use some of its files."""

# Whether the command that runs has the option; the others read what the ending of a name says.
HAS_FILE_TYPE: ContextVar[bool] = ContextVar("has_file_type", default=True)


def print_error(error: Exception | str) -> None:
    """Print an error on stderr, and below it its notes, if it has any."""
    first, *notes = error_lines(error)
    for line in (f"error: {in_options(first)}", *notes):
        print_line(line, is_error=True)


def print_note(text: object) -> None:
    """Print a remark on stderr, so that stdout has results alone."""
    print_line(in_options(str(text)), is_error=True)


# How errors of readers name limits: first in Python.
_OF_LIMITS = re.compile(r"\(pass limits=\S+ or (set [^)]*)\)")


def in_options(text: str) -> str:
    """Return the text of an error or warning with options of commands in the place of arguments of Python."""
    text = _OF_LIMITS.sub(r"(set \1)", text)
    text = text.replace("label_field chooses", "--label-field chooses").replace("(label_field)", "(--label-field)")
    if not HAS_FILE_TYPE.get():
        text = re.sub(r"; with file_type also [\w, ]+", "", text)
        text = re.sub(r'\bpass file_type="(\w+)"', r"end its name with .\1", text)
    text = text.replace("; with file_type also ", "; with --file-type also ")
    return re.sub(r'\bfile_type="(\w+)"', r"--file-type \1", text)


# What typer says about a wrong command line -> what is said here.
_USAGE = tuple(
    (re.compile(pattern), text)
    for pattern, text in (
        (r"Value error, ", ""),
        (r"(?<=: )Input should be greater than or equal to ", "expected at least "),
        (r"(?<=: )Input should be less than or equal to ", "expected at most "),
        (r"(?<=: )Input should be greater than ", "expected more than "),
        (r"(?<=: )Input should be less than ", "expected less than "),
        (r"(?<=: )Input should be a valid (integer|number|boolean)\b.*", r"expected a \1"),
        (r"expected a integer$", "expected a whole number"),
        (r"^Invalid value for '([-\w]+)'", r"invalid value for \1"),
        (r"^Invalid value\b", "invalid value"),
        (r"^No such command '(.*?)'", r"no such command \1"),
        (r"^No such option: (\S+)", r"no such option \1"),
        (r"^Missing (argument|option) '(.*?)'", r"missing \1 \2"),
        (r"^Option '(.*?)' requires an argument", r"\1 needs a value"),
        (r"^Option '(.*?)' does not take a value", r"\1 takes no value"),
        (r"^Got unexpected extra argument(?:\(s\)|s)? \((.*)\)", r"unexpected arguments: \1"),
    )
)
# What it suggests, and where names of choices are quoted.
_SUGGESTED = re.compile(r"(?:\.? Did you mean:? (.+?)\?| \((?:Possible options|Did you mean):? (.+?)\??\))$")
_CHOICES = re.compile(r"(?<=is not one of ).+")


def usage_error(error: Any) -> str:
    """Return what is wrong with a command line, by an error of typer."""
    if getattr(error, "option_name", None) == "--version":
        return "no such option --version; for the version of all commands, use hf-any3d --version"
    text = error.format_message().strip().rstrip(".")
    suggested = _SUGGESTED.search(text)
    if suggested is not None:
        text = text[: suggested.start()]
    for pattern, said in _USAGE:
        text = pattern.sub(said, text)
    text = _CHOICES.sub(lambda choices: choices[0].replace("'", ""), text)
    if suggested is None:
        return text
    *names, last = (suggested[1] or suggested[2]).replace("'", "").split(", ")
    before = f"{', '.join(names)} or " if names else ""
    return f"{text}; did you mean {before}{last}?"
