"""Commands that answer with labels or numbers of whole clouds: predict, zero-shot, features and reconstruct."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Annotated, Any

import numpy as np

from hf_any3d.cli.ask import Output, ask
from hf_any3d.cli.inputs import Files, Inputs
from hf_any3d.cli.opening import FoundModel
from hf_any3d.cli.options import BatchSize, Classifier, Device, Embedder, FileOptions, Model, option, output_option
from hf_any3d.cli.outputs import CLOUDS, DATA, VIEWS
from hf_any3d.cli.runs import RunOptions
from hf_any3d.cli.task_options import options_of
from hf_any3d.tasks.asking import Asked
from hf_any3d.tasks.classification.about import TASK as CLASSIFICATION
from hf_any3d.tasks.features.about import TASK as FEATURES
from hf_any3d.tasks.reconstruction.about import TASK as RECONSTRUCTION
from hf_any3d.tasks.zero_shot_classification.about import TASK as ZERO_SHOT
from hf_any3d.utils.atomic_files import write_bytes
from hf_any3d.utils.messages import as_text, print_line

_ZeroShotOptions = options_of(ZERO_SHOT.settings, labels="-l")
ClassificationOptions = Annotated[Any, options_of(CLASSIFICATION.settings)]
ZeroShotOptions = Annotated[Any, _ZeroShotOptions]
FeatureOptions = Annotated[Any, options_of(FEATURES.settings)]
ReconstructionOptions = Annotated[Any, options_of(RECONSTRUCTION.settings)]


def predict(
    files: Files,
    asked: ClassificationOptions,
    options: FileOptions,
    runs: RunOptions,
    model: Classifier = None,
    labels: Annotated[
        str | None, option("For zero-shot models: candidate labels, separated by commas.", "--labels", "-l")
    ] = None,
    text_features: Annotated[
        Path | None,
        option("For zero-shot models: precomputed text features of the labels, .npy of shape (labels, channels)."),
    ] = None,
    output: Output = None,
    batch_size: BatchSize = None,
    device: Device = None,
) -> None:
    """Classify point clouds and meshes.

    Searches folders recursively for supported files. If some files cannot be read, reports them, classifies the rest
    and exits with code 2.
    """
    # Contradictions are refused before a model is looked for.
    if labels is None and text_features is not None:
        raise ValueError(f"--text-features {text_features} needs --labels, whose vectors they are")
    if labels is not None and asked.votes is not None:
        raise ValueError(f"--votes {asked.votes} cannot be combined with --labels; leave out one of them")
    if labels is not None:
        shared = {name: getattr(asked, name) for name in ("top_k", "up_axis", "estimate_normals")}
        words = _ZeroShotOptions(labels=labels, text_features=text_features, **shared)
        zero_shot(files, words, options, runs, model, output, batch_size, device)
        return
    ask(CLASSIFICATION.name, files, model, asked.values(), options, runs, output, batch_size, device)


def zero_shot(
    files: Files,
    asked: ZeroShotOptions,
    options: FileOptions,
    runs: RunOptions,
    model: Model = None,
    output: Output = None,
    batch_size: BatchSize = None,
    device: Device = None,
) -> None:
    """Classify point clouds and meshes with your own labels (zero-shot)."""
    if asked.labels is None:
        raise ValueError(
            "--labels is missing; expected labels to choose from, separated by commas: 'chair, lamp, car'"
        )

    def check(found: FoundModel, *_: Any) -> None:
        # Before the model is loaded, which may take minutes.
        config = found.config
        if (
            asked.text_features is None
            and config.get("aligned_with")
            and "text_tower" not in (config.get("parts") or {})
        ):
            raise ValueError(
                f"{found.name}: its labels are encoded by {config['aligned_with']}, which cannot be opened here; give "
                "features of them that were computed with it as --text-features FILE.npy"
            )

    ask(ZERO_SHOT.name, files, model, asked.values(), options, runs, output, batch_size, device, check=check)


def features(
    files: Files,
    asked: FeatureOptions,
    options: FileOptions,
    runs: RunOptions,
    model: Embedder = None,
    output: Annotated[
        Path | None,
        output_option(
            "Also write arrays (.npz, .npy), a table (.json, .csv; resumable runs also .jsonl, .parquet), or a 2D "
            "map by similarity (.html, .png)."
        ),
    ] = None,
    batch_size: BatchSize = None,
    device: Device = None,
) -> None:
    """Extract a feature vector from each file, for search, clustering or your own head."""

    def check(_: FoundModel, inputs: Inputs, suffix: str) -> None:
        # The map is projected by t-SNE, which needs a few neighbors for each point.
        if suffix in VIEWS and len(inputs) < 4:
            raise ValueError(f"--output: {output} for {len(inputs)} files; a map needs at least 4")

    def write(answered: Asked, results: dict[str, Any], _: Inputs, __: str) -> None:
        _write_features(Path(str(output)), answered, results)

    types = (".npz", ".npy", *VIEWS, *DATA)
    ask(
        FEATURES.name,
        files,
        model,
        asked.values(),
        options,
        runs,
        output,
        batch_size,
        device,
        types,
        check,
        write,
    )


def _write_features(output: Path, asked: Asked, results: dict[str, Any]) -> None:
    """Write features, by the names of their files, as arrays or as a map."""
    names = list(results)
    # Of tables, whose numbers have six digits
    values = np.array([asked.answers.row(result)["features"] for result in results.values()], np.float32)
    if output.suffix.lower() in VIEWS:
        from hf_any3d.visualization.show import project_features, write_feature_map

        # t-SNE needs more clouds than three times the perplexity.
        places = project_features(values, perplexity=min(25.0, (len(names) - 1) / 3))
        texts = [Path(name).name for name in names]
        # Colored by folder, which is the class where files are sorted by class.
        folders = [as_text(Path(name).parent.name or ".") for name in names]
        classes = sorted(set(folders))
        labels = np.array([classes.index(folder) for folder in folders])
        heading = "features; nearby clouds are similar"
        write_feature_map(output, places, labels, classes, texts=texts, heading=heading)
    else:
        # In memory, since numpy ends without an error on a disk that is full
        content = io.BytesIO()
        if output.suffix.lower() == ".npz":
            # Names that are no UTF-8 as other tables have them
            np.savez(content, files=np.array([as_text(name) for name in names]), features=values)
        else:
            np.save(content, values)
        write_bytes(output, content.getvalue())
    print_line(f"{output}: {values.shape[0]} × {values.shape[1]}")


def reconstruct(
    files: Files,
    asked: ReconstructionOptions,
    options: FileOptions,
    model: Model = None,
    output: Annotated[
        Path | None,
        output_option(
            "An HTML page or image, the points of one file, a table, or a folder with points and a page for each file."
        ),
    ] = None,
    batch_size: BatchSize = None,
    device: Device = None,
) -> None:
    """Encode point clouds and meshes as discrete codes, decode them, and measure the reconstruction error.

    Distances refer to processed coordinates, usually scaled to the unit sphere.
    """

    def write(answered: Asked, results: dict[str, Any], inputs: Inputs, suffix: str) -> None:
        _write_reconstructions(Path(str(output)), answered, results, inputs, suffix)

    ask(
        RECONSTRUCTION.name,
        files,
        model,
        asked.values(),
        options,
        RunOptions(),
        output,
        batch_size,
        device,
        (*CLOUDS, *VIEWS, *DATA, ""),
        write=write,
    )


def _write_reconstructions(output: Path, asked: Asked, results: dict[str, Any], inputs: Inputs, suffix: str) -> None:
    """Write reconstructions, by their files' names: a page or picture of all, the points of one, or a folder."""
    from hf_any3d.data.files import write_point_cloud
    from hf_any3d.tasks.reconstruction.pipeline import colored_by_patch
    from hf_any3d.visualization.reconstruction import write_reconstructions

    up_axis = asked.answers.up_axis
    # A page or picture shows all clouds, and needs no folder.
    if suffix in VIEWS:
        titles = [Path(name).name for name in results]
        write_reconstructions(output, list(results.values()), titles, up_axis=up_axis)
        return
    places = inputs.places()
    for name, result in results.items():
        # Not `with_suffix`, which would cut off the end of a name with a dot.
        path = output
        if not suffix:
            path = output / places[name].with_name(f"{places[name].name}.ply")
        path.parent.mkdir(parents=True, exist_ok=True)
        write_point_cloud(path, colored_by_patch(result))
        if not suffix:
            write_reconstructions(path.with_suffix(".html"), [result], [places[name].name], up_axis=up_axis)
