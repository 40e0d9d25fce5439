"""Write the model cards of converted checkpoints: what the authors released, and how it was converted."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from hf_any3d.model_card.building import build_model_card
from hf_any3d.model_card.saving import FILE, save_card
from hf_any3d.model_card.subject import Subject
from hf_any3d.modeling.pretrained_parts.sources import file_digest
from hf_any3d.utils.markdown import code
from hf_any3d.version import __version__

CONVERTED = f"converted by hf_any3d {__version__}"


def write_card(
    directory: Path, title: str, subject: Subject, remark: str, sections: Mapping[str, str], **metadata: Any
) -> None:
    """Write the card of a converted model into a directory, with a remark and sections, title to text.

    The model may be without weights; its config records the license. `metadata` is for `build_model_card`.
    """
    save_card(build_model_card(subject, title, remark=remark, sections=sections, **metadata), directory / FILE)


def describe_source(what: str, files: Sequence[Path]) -> str:
    """Return a line of a list with the authors' files and their checksums."""
    return f"- {what}: " + ", ".join(f"{code(file.name)} (sha256:{file_digest(file)})" for file in files)
