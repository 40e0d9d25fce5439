"""Run programs of the documentation in one process: `python -m tests.docs.run_programs FILE`.

FILE is a JSON object of names and programs. They run one after the other in the current folder, which gets the models
that the pages name, tiny and random. Every failure is printed, and the exit code is 1.
"""

from __future__ import annotations

import json
import shutil
import sys
import time
import traceback
from pathlib import Path

import torch
import trimesh
from peft import get_peft_model

from hf_any3d import (
    Any2PointForPointCloudClassification,
    Any2PointForZeroShotPointCloudClassification,
    GuidedAdapterConfig,
    PointCloudProcessor,
    load_point_dataset,
)
from tests.chat.tiny_chat_model import tiny_chat_pipeline
from tests.tiny_aligned import tiny_parts_by_name
from tests.tiny_autoencoders import tiny_autoencoder

ENCODER = "sentence-transformers/all-MiniLM-L6-v2"


def write_models() -> None:
    """Save the models that programs of the documentation open."""
    small = {"num_tokens": 8, "tokenizer_neighbors": 4}
    names = load_point_dataset("shapes", split="test").features["label"].names
    classifier = Any2PointForPointCloudClassification.from_encoder_pretrained(
        ENCODER, id2label=dict(enumerate(names)), **small
    )
    get_peft_model(classifier, GuidedAdapterConfig()).save_pretrained("outputs/quickstart/model")
    Any2PointForZeroShotPointCloudClassification.from_encoder_pretrained(ENCODER, **small).save_pretrained(
        "outputs/zero-shot"
    )
    tiny_parts_by_name().save_pretrained("outputs/parts-by-name")
    tiny_autoencoder(None).save_pretrained("outputs/teacher")
    for saved in ("quickstart/model", "zero-shot", "parts-by-name", "teacher"):
        PointCloudProcessor(num_points=64).save_pretrained(f"outputs/{saved}")
    chat = tiny_chat_pipeline(max_position_embeddings=2048)
    chat.model.generation_config.max_new_tokens = 6
    chat.save_pretrained("outputs/chat_shapes/seed-0/stage_4/model")
    # Folders with the names of repositories.
    shutil.copytree("outputs/teacher", "me/act-autoencoder")


def write_files() -> None:
    """Write the files that programs of the documentation read, as named there."""
    for file in Path("examples/data").glob("*.ply"):
        shutil.copy(file, file.name)
    trimesh.creation.box().export("lamp.stl")


def main(programs: dict[str, str]) -> int:
    """Run all programs; returns the number of failures."""
    torch.set_num_threads(1)
    write_models()
    write_files()
    failures = 0
    for name, program in programs.items():
        start = time.perf_counter()
        try:
            exec(compile(program, name, "exec"), {"__name__": "__main__"})
            print(f"{name}: {time.perf_counter() - start:.1f} s", flush=True)
        except BaseException:
            failures += 1
            print(f"{name} FAILED\n{traceback.format_exc()}", flush=True)
    return failures


if __name__ == "__main__":
    sys.exit(min(1, main(json.loads(Path(sys.argv[1]).read_text(encoding="utf-8")))))
