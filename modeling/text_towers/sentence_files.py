"""What the files of a sentence encoder say about how its words become a sentence."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from transformers.utils import cached_file

from hf_any3d.modeling.encoders import UnsupportedEncoder
from hf_any3d.modeling.encoders.sources import EncoderSource

POOLINGS = ("mean", "cls", "max")
# Parts that change nothing which we do not do ourselves.
_UNDERSTOOD = {"transformer", "pooling", "normalize"}
_OLD_NAMES = {
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_cls_token": "cls",
    "pooling_mode_max_tokens": "max",
}


def sentence_pooling(source: EncoderSource) -> str:
    """How the words of a text become one vector, as the repository's own files have it.

    Args:
        source: Where the encoder's files are.

    Returns:
        One of `POOLINGS`.

    Raises:
        UnsupportedEncoder: If the files say nothing, or something that is not supported.
    """
    modules = _read(source, "modules.json")
    kinds = [str(part.get("type", "")).rsplit(".", 1)[-1].lower() for part in modules or []]
    if unknown := [kind for kind in kinds if kind not in _UNDERSTOOD]:
        raise UnsupportedEncoder(
            f"{source.name}: its sentences pass a module {unknown[0]!r}; expected transformer, pooling and normalize"
        )
    folder = next((part["path"] for part, kind in zip(modules or [], kinds, strict=True) if kind == "pooling"), None)
    settings = _read(source, f"{folder or '1_Pooling'}/config.json")
    if settings is None:
        raise UnsupportedEncoder(
            f"{source.name}: nothing in its files (1_Pooling/config.json) says that it embeds sentences; if it was "
            f"trained to, give text_pooling, one of {', '.join(map(repr, POOLINGS))}"
        )
    named = settings.get("pooling_mode")
    chosen = [named] if named else [way for key, way in _OLD_NAMES.items() if settings.get(key)]
    others = [key for key, on in settings.items() if key.startswith("pooling_mode_") and on and key not in _OLD_NAMES]
    if len(chosen) != 1 or chosen[0] not in POOLINGS or others:
        raise UnsupportedEncoder(
            f"{source.name}: pools words by {[*chosen, *others]}; expected one of {', '.join(map(repr, POOLINGS))}"
        )
    return chosen[0]


def _read(source: EncoderSource, file: str) -> Any:
    if source.revision is None:
        path = Path(source.path) / file
    else:
        found = cached_file(
            source.name,
            file,
            revision=source.revision,
            _raise_exceptions_for_missing_entries=False,
            _raise_exceptions_for_connection_errors=False,
        )
        path = None if found is None else Path(found)
    if path is None or not path.is_file():
        return None
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UnsupportedEncoder(f"{path}: not JSON ({error})") from error
