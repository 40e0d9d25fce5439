"""Write the files of a Space on the hub: a page on which visitors try a model."""

from __future__ import annotations

import importlib.metadata
import json
import os
from pathlib import Path

from hf_any3d.utils.atomic_files import write_text
from hf_any3d.version import __version__

_APP = '''\
"""Page of {model}: upload a cloud and look at the answer."""

from hf_any3d.cli import app

app(["demo", {model!r}, "--host", "0.0.0.0", "--port", "7860"])
'''
_SPACE_NEEDS = "hf-any3d[demo]>={version}\ntorch>=2.10\n"
_SPACE_CARD = """\
---
title: {quoted_title}
emoji: 🪑
colorFrom: blue
colorTo: gray
sdk: gradio
sdk_version: {gradio}
app_file: app.py
models:
- {model}
tags:
- point-cloud
- 3d
---

# {title}

Upload a point cloud or a mesh, or choose an example; the page answers with \
[{model}](https://huggingface.co/{model}), {kind} of the library hf_any3d.

The same on your machine: `pip install 'hf-any3d[demo]'`, then `hf-any3d demo {model}`.
"""


def write_space(folder: str | os.PathLike, model: str, kind: str, title: str) -> list[str]:
    """Write app.py, requirements.txt and README.md of a Space with the demo of a model, and return their names.

    Args:
        folder: A folder without files of these names.
        model: Hub name of the model.
        kind: What it is, such as "a classifier".
        title: Title of the page.

    Raises:
        FileExistsError: One of the files exists.
    """
    folder = Path(folder)
    files = {"app.py": _APP, "requirements.txt": _SPACE_NEEDS, "README.md": _SPACE_CARD}
    if existing := [file for file in files if (folder / file).exists()]:
        raise FileExistsError(f"{folder / existing[0]} exists; give a new folder")
    # The card has to name a version: that of this machine, or a fixed one where there is none.
    try:
        gradio = importlib.metadata.version("gradio")
    except importlib.metadata.PackageNotFoundError:
        gradio = "6.0.0"
    values = {"model": model, "title": title, "gradio": gradio, "kind": kind, "version": __version__}
    for file, text in files.items():
        # The title of the card as JSON, which is YAML too: it may have colons and quotes.
        write_text(folder / file, text.format(**values, quoted_title=json.dumps(title, ensure_ascii=False)))
    return list(files)
