"""Errors by what they name: a test of a refusal asks for the culprit, not for the wording around it."""

import re
from contextlib import AbstractContextManager
from typing import Any

import pytest


def raises(error: type[BaseException] | tuple[type[BaseException], ...], naming: str) -> AbstractContextManager[Any]:
    """Expect an error whose message has these words: a file, an argument, an option, or what is wrong with it."""
    return pytest.raises(error, match=re.escape(naming))
