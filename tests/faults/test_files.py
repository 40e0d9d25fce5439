"""Interrupt conversions, shards, answers, verdicts and pushes at each of their writes."""

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import httpx2
import numpy as np
import pytest
import torch
from datasets import Array2D, Dataset, Features, Value, load_dataset
from huggingface_hub import HfApi

from hf_any3d.data.parquet import loading
from hf_any3d.data.parquet.publishing import push_point_dataset
from hf_any3d.evaluation.llm_judge.verdicts import judge_answers
from hf_any3d.evaluation.question_answering import PROTOCOLS, answer_question
from hf_any3d.utils.atomic_files import write_json
from tests.conversions.converters import CONVERTERS
from tests.data.parquet.toy import COUNTS, cloud as toy_cloud, load_toy, write_tree
from tests.errors import raises
from tests.examples.conftest import tiny_shapes
from tests.faults import killing
from tests.faults.killing import ALL, MODES, fill, points, report, run_child


@dataclass
class Program:
    """A program that writes below a folder.

    Args:
        run: Runs it, if necessary several times into the same folder.
        holds: Asserts what must be true of the folder at any time.
        every: Without HF_ANY3D_FAULTS=all, only every n-th file event is tried.
    """

    run: Callable[[Path], None]
    holds: Callable[[Path], None]
    every: int


def content(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def interrupt_everywhere(
    name: str, program: Program, folder: Path, mode: str, same: Callable[[Path, Path], None]
) -> None:
    """Interrupt a program at each event, every other time twice in a row, and run it to its end.

    Args:
        name: Its name in the report.
        program: The program.
        folder: For its output.
        mode: The kind of interruption, see `killing`.
        same: Compares the result with that of an uninterrupted run.
    """
    whole = folder / "whole"
    ending = run_child(lambda: program.run(whole), whole)
    assert ending.how == "done" and ending.events, ending.output
    program.holds(whole)
    count = len(ending.events)
    for number, at in enumerate(points(count, program.every, mode)):
        place = folder / f"at-{at}"
        ending = run_child(lambda place=place: program.run(place), place, at, mode)
        assert ending.how in {"kill": ["killed"], "tear": ["killed", "done"], "full": ["failed", "done"]}[mode], (
            f"{at}: {ending.output}"
        )
        program.holds(place)
        if number % 2:
            run_child(lambda place=place: program.run(place), place, (at * 7 + 5) % count)
            program.holds(place)
        ending = run_child(lambda place=place: program.run(place), place)
        assert ending.how == "done", f"{at}: {ending.output}"
        program.holds(place)
        same(place, whole)
        shutil.rmtree(place)
    report(name, mode, number + 1, (number + 1) // 2)


def same_content(place: Path, whole: Path) -> None:
    found = content(place)
    found.pop(".out.lock", None)  # left by a killed holder, and not locked
    assert found == content(whole)


# Conversions of released checkpoints


@pytest.fixture(scope="module")
def originals(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("originals")


@pytest.mark.slow
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", list(CONVERTERS) if ALL else ["imagebind-audio"])
def test_an_interrupted_conversion_leaves_a_complete_directory_or_none(originals, name, mode, tmp_path):
    converter, checkpoint, others = CONVERTERS[name], originals / f"{name}.pth", originals / name
    if not checkpoint.exists():
        others.mkdir()
        converter.prepare(others)
        torch.save(converter.content(), checkpoint)
        converter.convert(checkpoint, originals / f"warm-{name}", others)

    def run(folder: Path) -> None:
        # The directory is alone in its folder, so that unfinished files would be seen.
        if not (folder / "out").exists():
            converter.convert(checkpoint, folder / "out", others)

    def holds(folder: Path) -> None:
        if (folder / "out").exists():
            assert list((folder / "out").rglob("config.json")) and list((folder / "out").rglob("*.safetensors"))

    interrupt_everywhere(f"conversion of {name}", Program(run, holds, every=7), tmp_path, mode, same_content)


# Datasets to Arrow


@pytest.mark.slow
@pytest.mark.parametrize("mode", MODES)
def test_every_row_of_a_dataset_is_converted_exactly_once(mode, tmp_path, monkeypatch):
    monkeypatch.setattr(loading, "_LEAST_UNITS", 4)
    tree = write_tree(tmp_path / "toy")
    load_toy(tree, tmp_path / "warm")

    def rows_are_right(folder: Path, other: Path | None = None) -> None:
        read: list[str] = []
        splits = load_toy(tree, folder, read)
        assert read == [] and splits.num_rows == COUNTS
        for split, rows in splits.items():
            for number, row in enumerate(rows.with_format("numpy")):
                np.testing.assert_array_equal(row["points"], toy_cloud(split, number))
                assert row["file"] == f"{split}/{number}.npy"
        assert not list(folder.rglob("*.incomplete"))

    def holds(folder: Path) -> None:
        for piece in folder.rglob("0.0.0"):
            assert {path.suffix for path in piece.iterdir()} == {".arrow", ".json"}

    program = Program(lambda folder: load_toy(tree, folder) and None, holds, every=11)
    interrupt_everywhere("dataset to Arrow", program, tmp_path, mode, rows_are_right)


# Answers and verdicts


class Counting:
    """A judge whose replies depend only on the prompt, and which records its prompts on disk."""

    name, settings, revisions, reads_prompt, kinds, at_once = "counting", {}, {"1"}, False, ("same",), 2

    def __init__(self, notes: Path):
        self.notes = notes

    def __call__(self, text: str) -> str:
        with open(self.notes, "a") as file:
            file.write(text + "\n")
        return f"T#{text}"


@pytest.mark.slow
@pytest.mark.parametrize("mode", MODES)
def test_answers_and_verdicts_are_made_once_and_kept_whole(mode, tmp_path, monkeypatch):
    monkeypatch.setattr("hf_any3d.evaluation.llm_judge.verdicts.SECONDS_BETWEEN_SAVES", -1.0)
    protocol = next(protocol for protocol in PROTOCOLS.values() if protocol.kind == "same")
    cloud = Array2D((4, 3), "float32")
    features = Features(points=cloud, colors=cloud, object_id=Value("string"), caption=Value("string"))
    ones, numbers = np.ones((9, 4, 3), np.float32), [str(number) for number in range(9)]
    columns = {"points": ones, "colors": ones, "object_id": numbers, "caption": numbers}
    rows = Dataset.from_dict(columns, features=features).with_format("numpy")

    def generate(clouds, question, settings):
        drawn = torch.rand(len(clouds))  # other answers for another seed
        return [f"a {float(value):.6f}" for value in drawn]

    def run(folder: Path) -> None:
        answers = answer_question(rows, protocol, generate, folder / "answers.json", {"model": "m"}, batch_size=2)
        notes = folder.with_suffix(".notes")  # outside the folder, so that the disk is full only for results
        judge_answers(answers, "same", Counting(notes), folder / "judged.json")

    def holds(folder: Path) -> None:
        for path in folder.glob("*.json"):
            stored = json.loads(path.read_text())
            assert [entry["object_id"] for entry in stored["results"]] == numbers[: len(stored["results"])]

    interrupt_everywhere("answers and verdicts", Program(run, holds, every=5), tmp_path, mode, same_content)


# Pushes


@pytest.mark.slow
def test_a_killed_push_leaves_complete_rows_and_the_next_push_completes_it(hub, tmp_path):
    """Killed before or after each request of a push, the dataset on the hub is complete or does not exist."""
    shapes = tiny_shapes(points=20)
    send = httpx2.Client.send

    def counted(client, request, **settings):
        killing.note(f"before {request.method}")
        response = send(client, request, **settings)
        killing.note(f"after {request.method}")
        return response

    def push(name: str) -> None:
        httpx2.Client.send = counted
        push_point_dataset(shapes, name, license="mit")

    ending = run_child(lambda: push("me/faults-whole"), tmp_path)
    assert ending.how == "done" and ending.events, ending.output
    expected = hub.files("me/faults-whole", kind="dataset")
    tried = points(len(ending.events), every=6)
    for at in tried:
        name = f"me/faults-{at}"
        # A later push may need fewer requests and finish.
        assert run_child(lambda name=name: push(name), tmp_path, at).how in ("killed", "done")
        is_there = HfApi().repo_exists(name, repo_type="dataset")
        if is_there and any(file.endswith(".parquet") for file in hub.files(name, kind="dataset")):
            opened = load_dataset(name, cache_dir=str(tmp_path / f"cache-{at}"), download_mode="force_redownload")
            assert opened.num_rows == shapes.num_rows
        ending = run_child(lambda name=name: push(name), tmp_path)
        assert ending.how == "done", f"{at}: {ending.output}"
        assert hub.files(name, kind="dataset").keys() == expected.keys()
        for file in expected:
            if file.endswith(".parquet"):
                assert hub.content(name, file, kind="dataset") == hub.content("me/faults-whole", file, kind="dataset")
    report("push of a dataset", "kill", len(tried), 0)


# A really full disk


def test_a_full_disk_is_an_error_and_work_resumes_once_there_is_space(small_disk, tmp_path):
    tree = write_tree(tmp_path / "toy")
    fill(small_disk, but=4 << 10)
    with pytest.raises(OSError, match="No space left on device"):
        load_toy(tree, small_disk / "cache")
    with raises(OSError, naming="report.json"):
        write_json(small_disk / "report.json", ["x" * 100] * 100)
    assert not list(small_disk.rglob(".*.tmp"))
    (small_disk / "ballast").unlink()
    assert load_toy(tree, small_disk / "cache").num_rows == COUNTS
