"""Untrusted folders: any names, links, depths and metadata."""

import json
import os
from pathlib import Path

import numpy as np

from hf_any3d.data.catalog import folder as folders
from tests.data.clouds import points
from tests.data.files.builders import npy, ply_square
from tests.fuzz.damage import mutate
from tests.fuzz.target import Target

NAMES = [b"cup", b"mug", b"train", b"test", b"val", b"a", b"b.npy", b"c.ply", b"d.txt", b".hidden", b"metadata.csv"]
NAMES += [
    b"\xff\xfe",
    b"new\nline",
    b"\x1b[31mred",
    b"a" * 200,
    b"metadata.jsonl",
    b" ",
    b"-rf",
    b"e.npz",
    b"\xe2\x80\xae",
]


class StrangeFolders(Target):
    """A refusal names the folder in printable UTF-8, and nothing outside of it is read."""

    name = "strange folders"
    refusals = (ValueError, FileNotFoundError)
    inputs = 40

    def prepare(self, folder: Path) -> None:  # noqa: D102
        self.contents = [npy(points()), npy(points()), ply_square("ascii"), b"", b"1 2 3\n"]
        (folder / "scans" / "cup").mkdir(parents=True)
        (folder / "scans" / "cup" / "a.npy").write_bytes(self.contents[0])
        (folder / "scans" / "metadata.csv").write_text("file_name,label\ncup/a.npy,cup\n")
        list(folders.load(folder / "scans", streaming=True)["train"])

    def make(self, generator: np.random.Generator, folder: Path) -> dict:  # noqa: D102
        def name() -> bytes:
            tame = 9 if generator.random() < 0.8 else len(NAMES)
            return NAMES[int(generator.integers(tame))]

        entries, depth = [], int(generator.integers(1, 4))
        for _ in range(int(generator.integers(1, 8))):
            parts = [name() for _ in range(depth if generator.random() < 0.7 else int(generator.integers(1, 6)))]
            place = b"/".join(parts)
            if generator.random() < 0.7 and not place.endswith((b".npy", b".ply", b".txt", b".npz", b"csv", b"jsonl")):
                place += b".npy"
            kind = str(generator.choice(["file", "file", "file", "file", "damaged", "link", "folder"]))
            target = [
                b"..",
                b".",
                b"../..",
                b"/etc/passwd",
                b"cup",
                b"a.npy",
                os.fsencode(folder) + b"/outside/secret.npy",
            ]
            content = self.contents[int(generator.integers(len(self.contents)))]
            if kind == "damaged":
                content = mutate(content, generator)
            entries.append((place, kind, target[int(generator.integers(len(target)))] if kind == "link" else content))
        if generator.random() < 0.4:
            known = [os.fsdecode(place) for place, *_ in entries] + [
                "../outside/secret.npy",
                "/etc/passwd",
                None,
                "",
                5,
            ]
            rows = [
                {"file_name": known[int(generator.integers(len(known)))], "label": str(number)} for number in range(3)
            ]
            text = "\n".join(map(json.dumps, rows)).encode()
            entries.append((b"metadata.jsonl", "file", mutate(text, generator) if generator.random() < 0.3 else text))
        options = {"drop_labels": [None, None, True, False][int(generator.integers(4))]}
        return {"entries": entries, **options}

    def attempt(self, case: dict, folder: Path) -> None:  # noqa: D102
        (folder / "outside").mkdir()
        secret = points() + 1000
        np.save(folder / "outside" / "secret.npy", secret)
        root = os.fsencode(folder / "scans")
        os.mkdir(root)
        for place, kind, content in case["entries"]:
            path = os.path.join(root, place)
            try:
                os.makedirs(path if kind == "folder" else os.path.dirname(path), exist_ok=True)
                if kind == "link":
                    os.symlink(content, path)
                elif kind != "folder":
                    with open(path, "xb") as file:
                        file.write(content)
            except OSError:
                continue  # two entries of one name
        rows = folders.load(folder / "scans", drop_labels=case["drop_labels"], streaming=True)
        for split in rows.values():
            for row in split:
                assert not np.array_equal(row["points"], secret), "read from outside of the folder"
                str(row["file"]).encode()

    def check_refusal(self, error: BaseException, case: dict, folder: Path) -> None:  # noqa: D102
        text = str(error)
        assert str(folder / "scans") in text
        text.encode()


TARGETS = [StrangeFolders()]
