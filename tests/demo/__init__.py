"""Tests of the pages of `hf-any3d demo`."""

import importlib
from typing import Any


class Later:
    """A module that is imported when it is first used.

    gradio takes seconds, and each process of a run collects all tests but runs few of these.

    Args:
        name: Its name.
    """

    def __init__(self, name: str):
        self._name = name

    def __getattr__(self, name: str) -> Any:
        if name.startswith(("_", "pytest")):  # what pytest asks of everything in a file of tests
            raise AttributeError(name)
        return getattr(importlib.import_module(self._name), name)


gr = Later("gradio")
page = Later("hf_any3d.demo.page")
task_pages = Later("hf_any3d.demo.task_pages")
