"""Tiny trees in the layouts of PointLLM and MiniGPT-3D: clouds of 8,192 points, annotations as JSON arrays."""

import json
from pathlib import Path

import numpy as np

from hf_any3d.data.catalog.objaverse_captions import BROKEN_COLORS

TRAIN = [f"{number:032x}" for number in (1, 2, 3)]
RESERVED = [f"{number:032x}" for number in (101, 102, 103)]
TEST = RESERVED[1:2]
BROKEN = sorted(BROKEN_COLORS)


def cloud(object_id: str) -> np.ndarray:
    """x, y, z and red, green, blue of an object, (8192, 6)."""
    generator = np.random.default_rng(sum(map(ord, object_id)))
    return np.concatenate([generator.normal(size=(8192, 3)), generator.random((8192, 3))], axis=1).astype(np.float32)


def brief(object_id: str) -> dict:
    """An entry as published, without its type."""
    question = {"from": "human", "value": "<point>\nSummarize the 3D point cloud object briefly."}
    return {"object_id": object_id, "conversations": [question, {"from": "gpt", "value": caption(object_id)}]}


def caption(object_id: str) -> str:
    return f'A red "toy" café, number {int(object_id, 16)}.'


def talk(object_id: str, kind: str, rounds: int = 1) -> dict:
    turns = []
    for number in range(rounds):
        turns += [
            {"from": "human", "value": ("<point>\n" if not number else "") + f"Question {number}?"},
            {"from": "gpt", "value": f"Answer {number}."},
        ]
    return {"object_id": object_id, "conversation_type": kind, "conversations": turns}


COMPLEX = [
    talk(TRAIN[0], "detailed_description"),
    talk(TRAIN[0], "single_round"),
    talk(TRAIN[0], "single_round"),
    talk(TRAIN[2], "multi_round", rounds=3),
    talk(TRAIN[1], "single_round"),
]


def write_annotations(folder: Path, minigpt: bool = False) -> Path:
    """Write the files; MiniGPT-3D lists the reserved objects instead of repeating their captions."""
    folder.mkdir(parents=True, exist_ok=True)
    files = {
        "brief_description_660K_filtered": [brief(name) for name in [BROKEN[0], *TRAIN, BROKEN[1]]],
        "complex_instruction_70K": COMPLEX,
        "brief_description_val_200_GT": [brief(name) for name in TEST],
    }
    if minigpt:
        objects = [RESERVED[2], *TRAIN, *RESERVED[:2], *BROKEN]
        files["brief_description_660K"] = [brief(name) for name in objects]
        (folder / "val_object_ids_3000.txt").write_text("\n".join(RESERVED))
    else:
        files["brief_description_val_3000_GT"] = [brief(name) for name in RESERVED]
    for name, entries in files.items():
        # Some files are indented, some are one line, and some have non-ASCII letters.
        style = {"ensure_ascii": name.endswith("GT"), "indent": 2 if "660K" in name else None}
        (folder / f"PointLLM_{name}.json").write_text(json.dumps(entries, **style), encoding="utf-8")
    return folder


def write_pointllm(root: Path) -> Path:
    """`8192_npy` and `anno_data` side by side."""
    clouds = root / "8192_npy"
    clouds.mkdir(parents=True)
    for name in TRAIN + RESERVED + BROKEN:
        table = cloud(name)
        np.save(clouds / f"{name}_8192.npy", np.full_like(table, np.nan) if name in BROKEN else table)
    write_annotations(root / "anno_data")
    return root


def write_minigpt(root: Path) -> Path:
    """`data/objaverse_data` and `data/anno_data`."""
    write_pointllm(root / "data")
    (root / "data" / "8192_npy").rename(root / "data" / "objaverse_data")
    for file in (root / "data" / "anno_data").iterdir():
        file.unlink()
    write_annotations(root / "data" / "anno_data", minigpt=True)
    return root


def write_texts(root: Path) -> Path:
    """The annotations of MiniGPT-3D with clouds that are there and empty, for loading that does not read them."""
    clouds = root / "objaverse_data"
    clouds.mkdir(parents=True)
    for name in TRAIN + RESERVED:
        (clouds / f"{name}_8192.npy").touch()
    write_annotations(root, minigpt=True)
    return root
