"""Tiny saved models of every kind, a folder of scans, and a function that runs a command in this process."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch
import typer
from peft import get_peft_model
from typer.testing import CliRunner

from hf_any3d import GuidedAdapterConfig, PointCloudProcessor
from hf_any3d.cli import app
from tests.chat.tiny_chat_model import tiny_chat_pipeline
from tests.tiny_autoencoders import tiny_autoencoder
from tests.tiny_detr3d import BOX_FRAME, answering_detector
from tests.tiny_encoders import tiny_model, tiny_part_model, tiny_scene_model
from tests.tiny_text_towers import adapted_zero_shot_model

FILES = Path(__file__).parents[1] / "files"
LABELS = ["bottle", "chair", "lamp"]
PARTS = ["table top", "table legs", "lamp foot", "lamp pole", "lamp shade"]


class Result(NamedTuple):
    """Output of a command, and its exit code."""

    code: int
    out: str
    err: str


def run(*words: object, stdin: bytes | str | None = None, program: typer.Typer = app) -> Result:
    """Run a command line in this process; no exception may leave it."""
    result = CliRunner().invoke(program, [str(word) for word in words], input=stdin)
    assert result.exception is None or isinstance(result.exception, SystemExit), repr(result.exception)
    return Result(result.exit_code, result.stdout, result.stderr)


def save(kind: str, folder: Path) -> None:
    """Save a tiny model of a kind."""
    torch.manual_seed(0)
    if kind == "chat":
        tiny_chat_pipeline().save_pretrained(folder)
        return
    if kind == "classifier":
        model = tiny_model(id2label=dict(enumerate(LABELS)))
        # Make logits of an untrained head differ.
        torch.nn.init.normal_(model.classifier.out.weight, std=2.0)
        get_peft_model(model, GuidedAdapterConfig()).save_pretrained(folder)
    elif kind == "zero-shot":
        adapted_zero_shot_model().save_pretrained(folder)
    else:
        build = {
            "parts": tiny_part_model,
            "scenes": tiny_scene_model,
            "autoencoder": lambda **_: tiny_autoencoder(None),
            "detector": answering_detector,
        }
        build[kind](**({"id2label": dict(enumerate(PARTS))} if kind == "parts" else {})).save_pretrained(folder)
    settings = {"scenes": {"scale": None, "block_size": 1.2}, "detector": BOX_FRAME}.get(kind, {})
    PointCloudProcessor(num_points=48, **settings).save_pretrained(folder)


@pytest.fixture(scope="session")
def models(tmp_path_factory) -> Callable[[str], str]:
    """A function from a kind of model to the directory of a tiny one."""

    @cache
    def saved(kind: str) -> str:
        folder = tmp_path_factory.mktemp("models") / kind
        save(kind, folder)
        return str(folder)

    return saved


@pytest.fixture
def scans(tmp_path) -> Path:
    """A folder with two good files, one with invalid points, a damaged one, prose, and a file of another type."""
    folder = tmp_path / "scans"
    (folder / "inner").mkdir(parents=True)
    shutil.copy(FILES / "chair.ply", folder / "chair.ply")
    shutil.copy(FILES / "lamp.stl", folder / "inner" / "lamp.STL")
    points = np.random.default_rng(0).normal(size=(100, 3))
    points[[3, 5], 1] = np.nan, np.inf
    np.save(folder / "holes.npy", points)
    (folder / "bad.ply").write_bytes((FILES / "chair.ply").read_bytes()[:400])
    (folder / "notes.txt").write_text(
        "These are scans of 3 pieces of furniture.\nThe lamp is in a folder of its own.\n"
    )
    (folder / "README.md").write_text("# Scans\n")
    return folder
