"""The page docs/command_line.md: its examples run and print what it says.

`python -c 'from tests import conftest; from tests.cli.test_page import main; main()'` writes what they print.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import typer.main

from hf_any3d.cli import app
from tests.cli.conftest import FILES, run, save
from tests.tiny_encoders import saved_encoder

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "command_line.md"
_EXAMPLE = re.compile(r"```bash\n((?:(?!```).)*)```\n\n```text\n(.*?)```", re.DOTALL)
# Commands that another page describes.
ELSEWHERE = {"reproduce": "recipes.md", "sweep": "recipes.md"}
KINDS = ("classifier", "zero-shot", "parts", "chat", "autoencoder")


def build(place: Path) -> None:
    """Make the folder that the examples run in."""
    (place / "scans" / "inner").mkdir(parents=True)
    shutil.copy(ROOT / "examples" / "data" / "chair.ply", place)
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


def printed(lines: str) -> str:
    """Run the commands of a block and return what they print: results, then remarks."""
    text = ""
    for line in lines.splitlines():
        echo, _, command = line.rpartition(" | ")
        words = shlex.split(command)
        assert words[0] == "hf-any3d"
        result = run(*words[1:], stdin=shlex.split(echo)[1] + "\n" if echo else None)
        kept = [row for row in result.err.splitlines() if is_ours(row)]
        text += result.out + "".join(f"{row}\n" for row in kept)
    text = re.sub(r"\S*/tiny-encoders/\S+", "models/encoder", text)
    return text.replace(os.environ["HF_ENDPOINT"], "https://huggingface.co")


def is_ours(line: str) -> bool:
    """Return whether a line of standard error is of our commands, not a log or bar of another library."""
    return bool(re.match(r"error: |warning: |left out |\S+: \d+ (clouds?|files?)\b", line))


def plain(text: str) -> str:
    """Replace numbers and checksums, and join spaces."""
    text = re.sub(r"tensors-sha256:\w+", "X", text)
    return re.sub(r"[ \t]+", " ", re.sub(r"\d[\d,.]*(e-?\d+)?", "N", text)).strip()


def commands(node: typer.main.TyperGroup, prefix: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    for name, inner in node.commands.items():
        yield from commands(inner, (*prefix, name)) if hasattr(inner, "commands") else [(*prefix, name)]


@pytest.mark.usefixtures("libraries_as_they_were")
def test_examples_print_what_the_page_says(tmp_path, monkeypatch, hub):
    build(tmp_path)
    monkeypatch.chdir(tmp_path)
    examples = _EXAMPLE.findall(PAGE.read_text(encoding="utf-8"))
    assert len(examples) > 15
    for lines, expected in examples:
        assert plain(printed(lines)) == plain(expected), lines


def test_the_page_has_a_section_for_every_command_and_all_examples_parse():
    text = PAGE.read_text(encoding="utf-8")
    group = typer.main.get_command(app)
    names = list(commands(group))
    sections = re.findall(r"^## ([a-z-]+)$", text, re.MULTILINE)
    assert set(sections) == {name[0] for name in names} - set(ELSEWHERE)
    blocks = "\n".join(re.findall(r"```bash\n(.*?)```", text, re.DOTALL))
    for line in re.findall(r"(?:^|\| )hf-any3d (.*)$", blocks, re.MULTILINE):
        node, words = group, shlex.split(line)
        while hasattr(node, "commands"):
            name = words.pop(0) if words[0] in node.commands else "classifier"
            node = node.commands[name]
        node.make_context(name, words)  # raises an error for an unknown option
    for name in {name for name in names if name[0] in ("batch", "data", "convert")}:
        assert " ".join(name) in text or f"`{name[-1]}`" in text, name


def main() -> None:
    """Write what the examples print into the page."""
    text, place = PAGE.read_text(encoding="utf-8"), Path(tempfile.mkdtemp())
    build(place)
    os.chdir(place)
    for lines, old in _EXAMPLE.findall(text):
        new = printed(lines)
        new = new.replace(f"{place}/", "")
        text = text.replace(f"```bash\n{lines}```\n\n```text\n{old}```", f"```bash\n{lines}```\n\n```text\n{new}```")
    PAGE.write_text(text, encoding="utf-8")
