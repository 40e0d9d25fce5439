"""Move settings of stored configs into their groups: `python -m hf_any3d.conversions.stored_settings DIR …`.

For directories that were saved before a setting became part of a group, such as `released` or `unknown`. Files that
have nothing to move stay as they are.
"""

import json
import sys
from pathlib import Path
from typing import Any

from transformers import CONFIG_MAPPING

from hf_any3d.modeling.setting_groups import SettingGroupsMixin
from hf_any3d.utils.atomic_files import write_text

# Settings that are none any more: they had one value, or are an argument of training.
_DROPPED = {
    "any2point": ("tokenizer_alpha", "tokenizer_beta", "tokenizer_bottlenecks", "encoder_weights"),
    "point_tokenizer": ("tokenizer_alpha", "tokenizer_beta", "tokenizer_bottlenecks"),
}
_RENAMED = {"random_places_seed": "seed"}


def grouped(settings: dict[str, Any]) -> dict[str, Any]:
    """Return the settings of a stored config, and of those inside it, with groups."""
    moved = dict(settings)
    for name, value in settings.items():
        if isinstance(value, dict):
            moved[name] = grouped(value)
    model_type = settings.get("model_type")
    if model_type not in CONFIG_MAPPING or not issubclass(CONFIG_MAPPING[model_type], SettingGroupsMixin):
        return moved
    for name in _DROPPED.get(model_type, ()):
        moved.pop(name, None)
    for group, kind in CONFIG_MAPPING[model_type].setting_groups().items():
        inside = dict(moved.pop(group, None) or {})
        for name in list(moved):
            own = _RENAMED.get(name, name).removeprefix(f"{group}_")
            if own in kind.names():
                inside[own] = moved.pop(name)
        moved[group] = dict(sorted(kind.of(inside, group).to_dict().items()))
    return dict(sorted(moved.items()))


def main(folders: list[str]) -> None:
    """Convert the `config.json` of directories in place."""
    for folder in folders:
        for path in sorted(Path(folder).rglob("config.json")):
            stored = json.loads(path.read_text(encoding="utf-8"))
            converted = grouped(stored)
            if converted != stored:
                write_text(path, json.dumps(converted, indent=2) + "\n")
                sys.stdout.write(f"{path}\n")


if __name__ == "__main__":
    main(sys.argv[1:])
