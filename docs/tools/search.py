"""Questions to the search of the built site: `python -m docs.tools.search` asks them.

The first page that the site's own search names must be one of those that answer the question. Node runs the script
that answers in a browser; without Node nothing is asked, and the command says so.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

from docs.tools.site import ROOT

QUESTIONS: dict[str, tuple[str, ...]] = {
    "train on my own data": ("few_scans", "fine_tune", "few_tiles"),
    "load a ply file": ("formats", "data", "classify"),
    "out of memory": ("troubleshooting",),
    "push to hub": ("share",),
    "save model": ("share", "fine_tune"),
    "up axis": ("data", "few_scans", "classify", "troubleshooting"),
    "none of these": ("few_scans", "few_tiles"),
    "how many scans": ("few_scans",),
    "batch many files": ("scale",),
    "colors": ("formats", "data", "visuals"),
    "docker": ("container",),
    "install": ("install",),
    "install without gpu": ("install",),
    "classify a mesh": ("classify", "first_minute"),
    "label my laz": ("label_your_laz",),
    "ground vegetation building": ("label_your_laz", "few_tiles"),
    "segment a room": ("segmentation", "scenes"),
    "detect objects": ("detection",),
    "chat about a cloud": ("chat",),
    "commercial license": ("which_model", "open_encoders", "published"),
    "export onnx": ("export",),
    "http service": ("serve",),
    "lora": ("adapters", "fine_tune"),
    "fine-tune": ("fine_tune",),
    "zero-shot": ("zero_shot", "open_encoders"),
    "which model": ("which_model",),
    "too slow": ("troubleshooting",),
    "file too large": ("troubleshooting",),
    "multiple gpus": ("scale",),
    "resume training": ("fine_tune", "scale", "troubleshooting"),
    "gaussian splats": ("data", "formats"),
    "teeth": ("label_your_meshes",),
    "embeddings": ("point_features",),
    "bounding boxes": ("detection",),
    "viewer": ("visuals",),
    "wandb": ("tracking",),
    "model card": ("model_cards",),
    "add a model": ("extending",),
    "datasets": ("datasets", "dataset_licenses"),
    "command line": ("command_line",),
    "classify drone point cloud": ("label_your_laz", "few_tiles"),
    "keep coordinate reference system": ("label_your_laz", "few_tiles", "formats", "data"),
    "power lines from lidar": ("label_your_laz", "few_tiles"),
    "convert e57 to laz": ("formats", "command_line", "data"),
    "accuracy on an unseen area": ("few_tiles", "label_your_laz"),
    "rgbd depth images": ("data", "formats"),
    "pcd file from ros": ("formats", "other_programs", "data"),
    "tensorrt jetson": ("export",),
    "farthest point sampling": ("glossary", "concepts/tokenizer"),
    "download modelnet40": ("datasets", "dataset_licenses"),
    "reproduce paper results": ("reproduce", "published_tables"),
    "automodel from_pretrained": ("share", "classify", "models", "which_model", "fine_tune"),
    "load in 4bit": ("quantization",),
    "peft target modules": ("adapters",),
    "caption 3d objects": ("chat",),
    "find similar shapes": ("zero_shot", "point_features"),
    "anomaly detection": ("few_scans", "point_features"),
    "rotation augmentation": ("fine_tune", "data", "recipes", "few_scans"),
    "tooth segmentation stl": ("label_your_meshes",),
    "floorplan from scan": ("spatiallm",),
    # A beginning, as while somebody types, and a misspelled word.
    "quanti": ("quantization",),
    "tensorbord": ("tracking",),
}
"""What people type, and the pages that answer it."""


def first_pages(site: Path, questions: list[str] | None = None) -> dict[str, str]:
    """Return for each question the page that the search of a built site names first, without its ending.

    Args:
        site: The folder of the site.
        questions: What to ask, by default `QUESTIONS`.
    """
    asked = list(QUESTIONS) if questions is None else questions
    command = ["node", str(Path(__file__).with_name("ask_search.js")), str(site), json.dumps(asked)]
    answered = subprocess.run(command, capture_output=True, text=True, check=True)
    pages = json.loads(answered.stdout)
    return {question: (pages[question] or ["no page"])[0].removesuffix(".html") for question in asked}


def main() -> int:
    """Ask all questions, and print those that find another page first."""
    if shutil.which("node") is None:
        print("no node, so the search of the site was not asked")
        return 0
    pages = first_pages(ROOT / "build" / "site")
    missed = {question: page for question, page in pages.items() if page not in QUESTIONS[question]}
    for question, page in missed.items():
        print(f"{question!r} finds {page} first; expected {' or '.join(QUESTIONS[question])}")
    print(f"search: {len(pages) - len(missed)} of {len(pages)} questions find a page that answers them first")
    return int(bool(missed))


if __name__ == "__main__":
    sys.exit(main())
