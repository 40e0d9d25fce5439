"""What model cards of converted checkpoints say about files and encoders."""

from __future__ import annotations

import hashlib
from pathlib import Path


def encoder_whereabouts(name: str | None, on_hub: bool) -> str:
    """Where the frozen encoder of a converted model is, as the second half of a sentence.

    Args:
        name: Directory or repository that the config names; None where the encoder is stored with the model.
        on_hub: Whether that is a repository on the hub.
    """
    if name is None:
        return "the frozen encoder lies beside them in `encoder/`."
    if on_hub:
        return f"the frozen encoder is loaded from `{name}` and checked against a checksum."
    return (
        "the frozen encoder is loaded from a directory of the machine that this was converted on; before sharing, "
        "convert with `--store-encoder`, or name a repository on the hub."
    )


def file_digest(file: Path) -> str:
    """SHA-256 of a file, in hexadecimal digits."""
    digest = hashlib.sha256()
    with file.open("rb") as stream:
        while chunk := stream.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()
