"""The page docs/command_line.md: its examples run, each in a process of its own, and print what the page says."""

from __future__ import annotations

import os
import re
import shlex
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import typer.main

from hf_any3d.cli import app
from tests.cli.conftest import FILES, save
from tests.doors.conftest import Shell
from tests.tiny_encoders import saved_encoder

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "command_line.md"
_EXAMPLE = re.compile(r"```bash\n((?:(?!```).)*)```\n\n```text\n(.*?)```", re.DOTALL)
KINDS = ("classifier", "zero-shot", "parts", "chat", "autoencoder", "detector")
EXAMPLES = _EXAMPLE.findall(PAGE.read_text(encoding="utf-8"))


def build(place: Path) -> None:
    """Make the folder that the examples run in."""
    (place / "scans" / "inner").mkdir(parents=True)
    shutil.copy(FILES / "chair.ply", place / "scans")
    shutil.copy(FILES / "lamp.stl", place / "scans" / "inner")
    (place / "scans" / "bad.ply").write_bytes((FILES / "chair.ply").read_bytes()[:400])
    (place / "scans" / "notes.txt").write_text("The chair is from the kitchen.\n")
    points = np.random.default_rng(0).normal(size=(100, 3))
    points[7] = np.nan
    np.save(place / "scans" / "holes.npy", points)
    for label, scale in (("ball", 1), ("stick", (1, 9, 1))):
        (place / "things" / label).mkdir(parents=True)
        for number in range(5):
            cloud = np.random.default_rng(number).normal(size=(80, 3)) * scale
            np.save(place / "things" / label / f"{number}.npy", cloud.astype(np.float32))
    for kind in KINDS:
        save(kind, place / "models" / kind)
    os.symlink(saved_encoder("bert"), place / "models" / "encoder")


def printed(shell: Shell, lines: str) -> str:
    """Run the commands of a block and return what they print: results, then remarks."""
    text = ""
    for line in lines.splitlines():
        if line.startswith("# needs "):  # it is in this folder
            continue
        assert "hf-any3d " in line
        done = shell(line, code=None)
        assert done.code in (0, 2), done.err
        text += done.out + "".join(f"{part}\n" for part in map(ours, done.err.splitlines()) if part)
    text = re.sub(r"\S*/tiny-encoders/\S+", "models/encoder", text).replace(f"{shell.folder}/", "")
    return text.replace(shell.environment["HF_ENDPOINT"], "https://huggingface.co")


def ours(line: str) -> str:
    """Return what of a line of standard error is of our commands: no log of another library, nor a bar before it."""
    part = re.search(r"(error: |warning: |left out ).*|^\S+: \d+ (?:point )?(clouds?|files?)\b.*", line)
    return part[0] if part else ""


def plain(text: str) -> str:
    """Replace numbers and checksums, and join spaces."""
    text = re.sub(r"tensors-sha256:\w+", "X", text)
    return re.sub(r"[ \t]+", " ", re.sub(r"\d[\d,.]*(e-?\d+)?", "N", text)).strip()


def commands(node: typer.main.TyperGroup, prefix: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    for name, inner in node.commands.items():
        yield from commands(inner, (*prefix, name)) if hasattr(inner, "commands") else [(*prefix, name)]


@pytest.fixture(scope="module")
def place(open_shell, hub) -> Shell:
    shell = open_shell(hub.url)
    build(shell.folder)
    return shell


# One after the other: a model that one example trains is evaluated by another.
@pytest.mark.slow
@pytest.mark.parametrize("lines, expected", EXAMPLES, ids=[lines.split("\n")[-2] for lines, _ in EXAMPLES])
def test_an_example_prints_what_the_page_says(lines, expected, place):
    assert plain(printed(place, lines)) == plain(expected)


def test_the_page_has_a_section_for_every_command_and_all_examples_parse():
    text = PAGE.read_text(encoding="utf-8")
    group = typer.main.get_command(app)
    names = list(commands(group))
    sections = re.findall(r"^## ([a-z-]+)$", text, re.MULTILINE)
    assert set(sections) == {name[0] for name in names}
    blocks = "\n".join(re.findall(r"```bash\n(.*?)```", text, re.DOTALL))
    for line in re.findall(r"(?:^|\| )hf-any3d (.*)$", blocks, re.MULTILINE):
        node, words = group, shlex.split(line)
        while hasattr(node, "commands"):
            name = words.pop(0) if words[0] in node.commands else "classifier"
            node = node.commands[name]
        node.make_context(name, words)  # raises an error for an unknown option
    for name in {name for name in names if name[0] in ("data", "convert")}:
        assert " ".join(name) in text or f"`{name[-1]}`" in text, name
