"""Search a folder of 3D shapes by words, files or points.

    python examples/search_shapes.py index SHAPES --model DIR_OF_A_CONVERTED_UNI3D --output outputs/shape_index
    python examples/search_shapes.py search outputs/shape_index "a wooden chair" lamp.ply --top-k 5

The model may be any that compares clouds with texts (`AutoModelForZeroShotPointCloudClassification`). An index holds a
unit vector for each file and finds those with the largest cosine, by faiss: `pip install 'hf-any3d[search]'`. It is
written in portions, so that an interrupted run continues where it stopped, and files that were changed, added or
removed are the only work of a later one. In Python `search` also takes points.
"""

from __future__ import annotations

import hf_any3d  # noqa: F401  before torch, whose threads it lets sleep while they wait

# isort: split
import argparse
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file
from tqdm.auto import tqdm

from hf_any3d import AutoModelForZeroShotPointCloudClassification, PointCloudProcessor
from hf_any3d.cli.inputs import files_of_folder
from hf_any3d.data.files.input_files import FILE_ERRORS, InputFile
from hf_any3d.utils.atomic_files import atomic_write, read_json, write_json
from hf_any3d.utils.messages import one_line

PORTION = 256
"""Files whose features are written together."""
SETTINGS, FILES, INDEX, PORTIONS = "settings.json", "files.json", "shapes.faiss", "portion-{:05d}.safetensors"


def import_faiss() -> Any:
    """Import faiss.

    Raises:
        ImportError: If it is not installed.
    """
    try:
        import faiss
    except ImportError as error:
        raise ImportError("the search needs faiss: pip install 'hf-any3d[search]'") from error
    return faiss


class Encoder:
    """A model and its processor, which turn clouds and words into unit vectors of one space.

    Args:
        model: Directory or hub name of a model that compares clouds with texts.
        device: Device of the model.
    """

    def __init__(self, model: str, device: str = "cpu"):
        self.name = model
        self.model = AutoModelForZeroShotPointCloudClassification.from_pretrained(model).to(device).eval()
        self.processor = PointCloudProcessor.from_pretrained(model)

    @torch.no_grad()
    def of_clouds(self, clouds: Sequence[Any]) -> np.ndarray:
        """Return vectors `(clouds, width)` of clouds, in any form that the processor takes."""
        points = self.processor(list(clouds))["points"].to(self.model.device)
        return self.model.get_point_features(points).float().cpu().numpy()

    @torch.no_grad()
    def of_words(self, words: Sequence[str]) -> np.ndarray:
        """Return vectors `(texts, width)` of texts."""
        # A text is compared as it is; the templates of the config are for names of classes.
        return self.model.encode_labels(list(words), templates=["{}"]).float().cpu().numpy()


def state_of(path: Path) -> list[int]:
    """Return what changes when a file does: its size and the time of its last change."""
    state = path.stat()
    return [state.st_size, state.st_mtime_ns]


def read_portions(directory: Path) -> dict[str, tuple[list[int], np.ndarray]]:
    """Read the vectors that are stored, with the state that each file had; damaged portions are left out."""
    found: dict[str, tuple[list[int], np.ndarray]] = {}
    for path in sorted(directory.glob(PORTIONS.format(0).replace("00000", "*"))):
        try:
            with safe_open(path, "np") as portion:
                files = json.loads(portion.metadata()["files"])
                found |= dict(
                    zip(files, zip(files.values(), portion.get_tensor("features"), strict=True), strict=True)
                )
        except (SafetensorError, KeyError, TypeError, ValueError):
            path.unlink()
    return found


def build_index(
    folder: str | os.PathLike, encoder: Encoder, output: str | os.PathLike, batch_size: int = 8
) -> dict[str, str]:
    """Index the shapes of a folder and its subfolders, or bring an index up to date.

    Args:
        folder: Folder of point files and meshes.
        encoder: Turns them into vectors.
        output: Directory of the index.
        batch_size: Clouds per batch.

    Returns:
        The errors of files that are not in the index, by file.

    Raises:
        ValueError: If the directory has an index of another model.
        FileNotFoundError: If there are no such files.
        ImportError: If faiss is missing.
    """
    import_faiss()
    output = Path(output)
    output.mkdir(parents=True, exist_ok=True)
    settings = {"model": encoder.name, "processor": json.loads(json.dumps(encoder.processor.to_dict()))}
    if (stored := read_json(output / SETTINGS)) not in (None, settings):
        raise ValueError(
            f"{output}: is the index of {stored.get('model')} with other settings; expected another directory"
        )
    write_json(output / SETTINGS, settings)
    files = {str(path.resolve()): state_of(path) for path in files_of_folder(Path(folder))}
    known = {name: pair for name, pair in read_portions(output).items() if files.get(name) == pair[0]}
    missing, errors = [name for name in files if name not in known], {}
    for start in tqdm(range(0, len(missing), PORTION), desc="portions", disable=len(missing) <= PORTION):
        names = missing[start : start + PORTION]
        made = encode_files(names, encoder, batch_size, errors)
        number = 1 + max((int(path.stem[-5:]) for path in output.glob("portion-*")), default=-1)
        write_portion(output / PORTIONS.format(number), {name: (files[name], made[name]) for name in made})
        known |= {name: (files[name], vector) for name, vector in made.items()}
    if not known:
        raise ValueError(f"{folder}: no file could be read; the first error: {next(iter(errors.values()))}")
    write_index(output, {name: known[name][1] for name in sorted(known)})
    return errors


def encode_files(
    names: Sequence[str], encoder: Encoder, batch_size: int, errors: dict[str, str]
) -> dict[str, np.ndarray]:
    """Compute the vectors of files by name; those that cannot be used are added to `errors`."""
    made: dict[str, np.ndarray] = {}
    for start in range(0, len(names), batch_size):
        clouds = {}
        for name in names[start : start + batch_size]:
            try:
                clouds[name] = InputFile(name).read().data
            except FILE_ERRORS as error:
                errors[name] = one_line(error)
        try:
            made |= dict(zip(clouds, encoder.of_clouds(list(clouds.values())), strict=True)) if clouds else {}
        except ValueError:
            for name, cloud in clouds.items():
                try:
                    made[name] = encoder.of_clouds([cloud])[0]
                except ValueError as error:
                    errors[name] = one_line(error)
    for name in [name for name, vector in made.items() if not np.isfinite(vector).all()]:
        del made[name]
        errors[name] = f"{name}: its features are not finite"
    return made


def write_portion(path: Path, vectors: dict[str, tuple[list[int], np.ndarray]]) -> None:
    """Write vectors and states of files; nothing for none."""
    if vectors:
        states = {name: state for name, (state, _) in vectors.items()}
        features = np.stack([vector for _, vector in vectors.values()]).astype(np.float32)
        with atomic_write(path) as unfinished:
            save_file({"features": features}, unfinished, metadata={"files": json.dumps(states)})


def write_index(directory: Path, vectors: dict[str, np.ndarray]) -> None:
    """Write faiss' index of the vectors, which compares with all of them, and their files in its order."""
    faiss = import_faiss()
    features = np.ascontiguousarray(np.stack(list(vectors.values())), dtype=np.float32)
    index = faiss.IndexFlatIP(features.shape[1])
    index.add(features)
    with atomic_write(directory / INDEX) as unfinished:
        faiss.write_index(index, str(unfinished))
    write_json(directory / FILES, list(vectors))


def search(
    directory: str | os.PathLike, queries: Sequence[Any], encoder: Encoder | None = None, top_k: int = 5
) -> list[list[dict[str, Any]]]:
    """Find the shapes of an index that are most similar to each query.

    Args:
        directory: Directory of the index.
        queries: Words, paths of files, arrays `(points, channels)`, or whatever else the processor takes. A text is a
            path if there is such a file.
        encoder: The model of the index; by default it is opened.
        top_k: Number of shapes for each query.

    Returns:
        For each query, the best first, `file` and `score`, the cosine of the features.

    Raises:
        FileNotFoundError: If the directory has no complete index.
        ValueError: If index and files do not fit, or `encoder` is another model.
        ImportError: If faiss is missing.
    """
    faiss = import_faiss()
    directory = Path(directory)
    settings, files = read_json(directory / SETTINGS), read_json(directory / FILES)
    if settings is None or files is None or not (directory / INDEX).is_file():
        raise FileNotFoundError(
            f"{directory}: no complete index; make one by: search_shapes.py index FOLDER --model …"
        )
    if encoder is not None and encoder.name != settings["model"]:
        raise ValueError(f"encoder is {encoder.name}; expected {settings['model']}, the model of the index")
    encoder = Encoder(settings["model"]) if encoder is None else encoder
    index = faiss.read_index(str(directory / INDEX))
    if index.ntotal != len(files):
        raise ValueError(f"{directory}: {index.ntotal} vectors of {len(files)} files; index the folder again")
    vectors = []
    for query in queries:
        if isinstance(query, str) and not Path(query).is_file():
            vectors.append(encoder.of_words([query])[0])
        else:
            is_path = isinstance(query, (str, os.PathLike))
            vectors.append(encoder.of_clouds([InputFile(os.fspath(query)).read().data if is_path else query])[0])
    scores, numbers = index.search(np.stack(vectors).astype(np.float32), min(top_k, len(files)))
    return [
        [{"file": files[number], "score": float(score)} for number, score in zip(*row, strict=True)]
        for row in zip(numbers, scores, strict=True)
    ]


def main(arguments: list[str] | None = None) -> None:
    """Build an index, or search one."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    index = commands.add_parser("index", help="index a folder, or bring its index up to date")
    index.add_argument("folder", type=Path)
    index.add_argument(
        "--model", required=True, help="directory or hub name of a model that compares clouds with texts"
    )
    index.add_argument("--output", type=Path, default=Path("outputs/shape_index"))
    index.add_argument("--batch-size", type=int, default=8)
    index.add_argument("--device", default="cpu")
    ask = commands.add_parser("search", help="find the shapes that are most similar to words or files")
    ask.add_argument("index", type=Path)
    ask.add_argument("queries", nargs="+", help="words, or files")
    ask.add_argument("--top-k", type=int, default=5)
    options = parser.parse_args(arguments)
    if options.command == "index":
        errors = build_index(
            options.folder, Encoder(options.model, options.device), options.output, options.batch_size
        )
        count = len(read_json(options.output / FILES) or [])
        print(f"{count} shapes in {options.output}" + (f"; {len(errors)} files could not be read:" if errors else ""))
        print("".join(f"    {error}\n" for error in errors.values()), end="")
        return
    for query, found in zip(options.queries, search(options.index, options.queries, top_k=options.top_k), strict=True):
        print(query)
        print("".join(f"    {one['score']:6.3f}  {one['file']}\n" for one in found), end="")


if __name__ == "__main__":
    main()
