"""The settings that each converter writes beside the weights, where they differ from the defaults of their classes.

After intended changes: `python -m tests.conversions.written` writes those of all converters anew.
"""

from __future__ import annotations

import json
import re
import tempfile
from pathlib import Path
from typing import Any

STORED = Path(__file__).with_suffix(".json")
# What another version of a library, machine or folder changes.
_PASSING = {"transformers_version", "peft_version", "auto_map", "_name_or_path", "dtype", "torch_dtype", "revision"}
_PASSING |= {"checksum", "base_model_name_or_path", "architectures"}


def written_in(folder: Path) -> dict[str, Any]:
    """Return the own settings of each file of them in a directory, by its name."""
    found = {}
    for file in sorted(folder.rglob("*config.json")):
        if file.name != "tokenizer_config.json":
            content = json.loads(file.read_text(encoding="utf-8"))
            found[file.relative_to(folder).as_posix()] = _own(content, _defaults(content))
    return found


def _defaults(content: dict[str, Any]) -> dict[str, Any]:
    # Here, since the file of these settings is read before any library is needed.
    from peft import PEFT_TYPE_TO_CONFIG_MAPPING
    from transformers import AutoConfig, GenerationConfig

    import hf_any3d

    if "model_type" in content:
        made = AutoConfig.for_model(content["model_type"]).to_dict()
    elif "peft_type" in content:
        made = PEFT_TYPE_TO_CONFIG_MAPPING[content["peft_type"]]().to_dict()
    elif kind := content.get("feature_extractor_type"):
        made = getattr(hf_any3d, kind)().to_dict()
    else:
        made = GenerationConfig().to_dict()
    return json.loads(json.dumps(made, default=_listed))


def _listed(value: Any) -> Any:
    return sorted(value) if isinstance(value, (set, frozenset)) else str(value)


def _own(content: dict[str, Any], defaults: dict[str, Any]) -> dict[str, Any]:
    own = {}
    for name, value in content.items():
        is_place = name == "name_or_path" and str(value).startswith((".", "/"))
        is_default = value == defaults.get(name, ...) and name not in ("model_type", "peft_type")
        if not (name in _PASSING or is_place or is_default):
            has_defaults = isinstance(value, dict) and "model_type" in value
            own[name] = _own(value, _defaults(value) if has_defaults else {}) if isinstance(value, dict) else value
    return own


def main() -> None:
    """Convert the small original of every converter, and store the settings."""
    import torch

    from tests.conversions.converters import CONVERTERS

    stored = {}
    for name, converter in CONVERTERS.items():
        with tempfile.TemporaryDirectory() as folder:
            others = Path(folder, "others")
            others.mkdir()
            converter.prepare(others)
            torch.save(converter.content(), Path(folder, "original.pth"))
            converter.convert(Path(folder, "original.pth"), Path(folder, "out"), others)
            stored[name] = written_in(Path(folder, "out"))
    text = json.dumps(stored, indent=1, ensure_ascii=False)
    # A line a list.
    text = re.sub(r"\[\s+([^][{}]*?)\s+\]", lambda match: "[" + re.sub(r",\s+", ", ", match[1]) + "]", text)
    STORED.write_text(f"{text}\n", encoding="utf-8")


if __name__ == "__main__":
    main()
