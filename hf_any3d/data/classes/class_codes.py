"""Codes that files have for the classes of a model, such as 6 for buildings in LAS."""

from collections.abc import Mapping, Sequence
from typing import Any

from hf_any3d.data.classes.las_classes import ASPRS_CLASSES, UNCLASSIFIED
from hf_any3d.registry import NOISE, NONE_OF_THESE
from hf_any3d.utils.messages import listed

# Of what the model knows nothing about, and of what was looked at and is of no class.
_NEVER_CLASSIFIED, _OF_NO_CLASS = UNCLASSIFIED
# What answers may have behind the classes of a config, and no config lists
_BEHIND = {NONE_OF_THESE: _NEVER_CLASSIFIED, NOISE: 7}
_OTHERS = "*"
_MOST_NAMED = 8


def class_codes(
    names: Sequence[str],
    config: Any = None,
    classes: Mapping[str, int] | str | None = None,
    *,
    are_asprs: bool = False,
) -> list[int] | None:
    """Return the code of each class of a model in files, or None where files get the numbers of the classes.

    Args:
        names: Names of the classes by their numbers.
        config: Configuration of the model; its `class_codes`, a list with the code of each class, count.
        classes: Codes by the names of classes, which count first; "*" stands for all others. Also as text, such as
            "ground=2,building=6,*=1".
        are_asprs: Whether codes are those of ASPRS. Then classes that have their names need no others, and "none" is
            unclassified.

    Raises:
        ValueError: A class has no code, or a code belongs to no class.
    """
    if classes is not None:
        if isinstance(classes, str):
            classes = parse_classes(classes)
        strange = [name for name in classes if name not in names and name != _OTHERS]
        if strange:
            raise ValueError(f"classes has {_listed(strange)}; the model's classes are {_listed(names)}")
        without_code = [name for name in names if name not in classes and _OTHERS not in classes]
        if without_code:
            raise ValueError(
                f"classes has no code for {_listed(without_code)}; give each one, or '*=1' for all others"
            )
        return [int(classes[name] if name in classes else classes[_OTHERS]) for name in names]
    stored = getattr(config, "class_codes", None)
    learned = [] if stored is None else [config.id2label[number] for number in range(config.num_labels)]
    behind = [*names[len(learned) :]]
    # A pipeline with names of a call has classes of its own.
    if stored is not None and [*names[: len(learned)]] == learned and all(name in _BEHIND for name in behind):
        if len(stored) != len(learned):
            raise ValueError(f"class_codes of the model's config has {len(stored)} codes for {len(learned)} classes")
        return [int(code) for code in stored] + [_BEHIND[name] for name in behind]
    if not are_asprs:
        return None
    codes = {_plain(name): code for code, name in ASPRS_CLASSES.items()}
    codes |= {"none": _OF_NO_CLASS, NONE_OF_THESE: _NEVER_CLASSIFIED}
    missing = [name for name in names if _plain(name) not in codes]
    if missing:
        raise ValueError(
            f"classes: no code of LAS is known for {_listed(missing)}; give each class one, such as "
            f"--classes '{missing[0]}=64,*=1', or write the numbers of classes to a dimension: --field NAME"
        )
    return [codes[_plain(name)] for name in names]


def parse_classes(text: str) -> dict[str, int]:
    """Parse codes by the names of classes, such as "ground=2,building=6"."""
    codes: dict[str, int] = {}
    for part in filter(None, map(str.strip, text.split(","))):
        # By the last sign, as names may have one of their own
        name, _, code = part.rpartition("=")
        if not name.strip() or not code.strip().isdecimal():
            raise ValueError(f"classes has {part!r}; expected a name and a code, such as 'ground=2,building=6'")
        codes[name.strip()] = int(code)
    return codes


def _plain(name: str) -> str:
    return name.strip().lower().replace("_", " ").replace("-", " ")


def _listed(names: Sequence[str]) -> str:
    return listed([repr(name) for name in names], _MOST_NAMED)
