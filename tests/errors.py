"""Errors by what they name: a test of a refusal asks for the culprit, not for the wording around it."""

import re
from contextlib import AbstractContextManager
from typing import Any

import pytest


def refusal(error: type[BaseException] | tuple[type[BaseException], ...], culprit: str) -> AbstractContextManager[Any]:
    """Expect an error whose message names a file, argument, option or value."""
    return pytest.raises(error, match=re.escape(culprit))
