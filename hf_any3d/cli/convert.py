"""`hf-any3d convert`: original checkpoints into directories that `from_pretrained` opens."""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from hf_any3d.cli.command_line import ModelCommand
from hf_any3d.cli.libraries import load_libraries
from hf_any3d.cli.options import option, output_option
from hf_any3d.cli.progress import status
from hf_any3d.hub.names import is_path_like, no_such, skip_hub_if_offline
from hf_any3d.hub.published_table import SIZE_MARK, download_of
from hf_any3d.registry import FORMATS, RECORDS
from hf_any3d.utils.messages import print_line

_AMBIGUOUS = ("bin", "npz")  # files of points, and of weights, too


def _help(name: str) -> str:
    """Return whose files an option is for and what it is for, by the records of the models."""
    titles: dict[str, list[str]] = {}
    # An option that several converters take in the same sense is explained once, with all their titles.
    for record in RECORDS.values():
        for converter in record.converters.values():
            if name in converter.takes and converter.title not in titles.setdefault(converter.takes[name], []):
                titles[converter.takes[name]].append(converter.title)
    return "; ".join(f"{', '.join(names)}: {text}" for text, names in titles.items()) + "."


def _class_names(text: str) -> tuple[str, ...]:
    """Return class names that are given on the command line, or in the lines of a file."""
    lines = text.split(",")
    # In a file, a name may hold a comma.
    if os.path.isfile(text):
        lines = Path(text).read_text(encoding="utf-8-sig").splitlines()
    names = tuple(line.strip() for line in lines if line.strip())
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"--classes names {twice!r} twice; expected a name of its own for each class")
    return names


def _refuse_scans(files: Sequence[str]) -> None:
    for file in map(Path, files):
        ending = file.suffix[1:].lower()
        if file.is_file() and ending in FORMATS and ending not in _AMBIGUOUS:
            raise ValueError(
                f"{file} is a scan, but convert takes model checkpoints; to convert scans, use: hf-any3d data convert "
                f"{file} --to FORMAT --output FOLDER"
            )


class ConvertCommand(ModelCommand):
    """The command `convert`, which is easily taken for `data convert`."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Say of a scan that it is one, before options that are for scans are refused."""
        try:
            # The parser takes words off the list that it is given.
            return super().parse_args(ctx, [*args])
        except typer.Exit:
            raise
        except Exception as error:
            if type(error).__name__ == "NoSuchOption":
                _refuse_scans(args)
            raise


def convert(
    files: Annotated[
        list[str],
        typer.Argument(
            metavar="FILE…",
            help="The original checkpoint, several files that belong together, or a published name such as "
            "Pointcept/Utonia:base.",
        ),
    ],
    output: Annotated[
        Path | None, output_option("Output directory; by default, published checkpoints go to the cache.")
    ] = None,
    variant: Annotated[str | None, option(_help("variant"))] = None,
    plain_blocks: Annotated[bool, typer.Option("--plain-blocks", help=_help("plain_blocks"))] = False,
    kind: Annotated[str | None, option(_help("kind"))] = None,
    base: Annotated[str | None, option(_help("base"))] = None,
    encoder: Annotated[str | None, option(_help("encoder"))] = None,
    teacher: Annotated[str | None, option(_help("teacher"))] = None,
    revision: Annotated[
        str | None, option("Branch, tag or commit of the encoder, the teacher or the published checkpoint.")
    ] = None,
    store_encoder: Annotated[bool, typer.Option("--store-encoder", help=_help("store_encoder"))] = False,
    dataset: Annotated[str | None, option(_help("dataset"))] = None,
    tokenizer: Annotated[str | None, option(_help("tokenizer"))] = None,
    stage: Annotated[int | None, option(_help("stage"), min=2, max=3)] = None,
    dtype: Annotated[str | None, option(_help("dtype"))] = None,
    code_template: Annotated[Path | None, option(_help("code_template"))] = None,
    preset: Annotated[str | None, option(_help("preset"))] = None,
    trained_with: Annotated[str | None, option(_help("trained_with"))] = None,
    arguments: Annotated[Path | None, option(_help("arguments"))] = None,
    num_groups: Annotated[int | None, option(_help("num_groups"), min=1)] = None,
    group_size: Annotated[int | None, option(_help("group_size"), min=1)] = None,
    group_radius: Annotated[float | None, option(_help("group_radius"), min=0)] = None,
    num_attention_heads: Annotated[int | None, option(_help("num_attention_heads"), min=1)] = None,
    num_neighbors: Annotated[int | None, option(_help("num_neighbors"), min=1)] = None,
    num_points: Annotated[int | None, option(_help("num_points"), min=1)] = None,
    text_weight: Annotated[float | None, option(_help("text_weight"), min=0)] = None,
    pooling: Annotated[str | None, option(_help("pooling"))] = None,
    prompt_layer: Annotated[int | None, option(_help("prompt_layer"), min=0)] = None,
    prompt_groups: Annotated[int | None, option(_help("prompt_groups"), min=1)] = None,
    classes: Annotated[str | None, option(_help("classes"))] = None,
    license: Annotated[str | None, option(_help("license"))] = None,
    size: Annotated[str | None, option("Size of a published checkpoint, such as base; NAME:SIZE also works.")] = None,
) -> None:
    """Convert original checkpoints into directories that `from_pretrained` opens.

    The architecture, task and size are detected from the tensors: {forth}. Use options for settings that the files do
    not contain; the defaults match the published models. Pass all files of one model together, in any order; if you
    pass only parts of a model, each becomes its own directory. The command fails if any tensor is left unused.

    A published checkpoint is downloaded first and can then be opened by name, even offline.
    """
    # First of all, while the arguments are the only local variables.
    given = dict(locals())
    options = {}
    for name, value in given.items():
        # Only those that are there, so that each conversion can refuse what is not its own. 0 is there, too.
        if name not in ("files", "output") and value is not None and value is not False:
            options[name] = value
    if classes is not None:
        options["classes"] = _class_names(classes)
    # A name without a file may be that of a published checkpoint.
    for file in files:
        repository = file.partition(SIZE_MARK)[0]
        # Of several files none can be a published name, each of which stands for a whole model.
        if not Path(file).exists() and (len(files) > 1 or is_path_like(repository, needs_owner=True)):
            raise FileNotFoundError(f"{no_such(file, 'file')}{download_of(Path(file))}")
    _refuse_scans(files)
    # No file of this name: it can only be a published checkpoint.
    is_published = not Path(files[0]).exists()
    if is_published:
        skip_hub_if_offline()
    load_libraries()
    if output is None and not is_published:
        from hf_any3d.conversions.programs import plan_with

        # What cannot be converted needs no directory either.
        with status("looking at the files"):
            plan_with(files, options)
        raise ValueError(f"{files[0]}: give the directory to create with --output")
    with status("converting"):
        if output is None or is_published:
            from hf_any3d.published import published_directory
            from hf_any3d.utils.atomic_files import new_directory

            directory = published_directory(files[0], **options)
            if output is not None:
                # A copy, as the cache keeps the model that opens by its name.
                with new_directory(output) as folder:
                    shutil.copytree(directory, folder, dirs_exist_ok=True)
            lines = [f"{directory if output is None else output}: {files[0]}"]
        else:
            from hf_any3d.conversions.programs import convert_files, summary_lines

            lines = summary_lines(convert_files(files, output, options))
    for line in lines:
        print_line(line)


def _with_programs(text: str) -> str:
    """Fill in the programs whose files are converted."""
    programs = [program for record in RECORDS.values() for program in record.programs]
    # Without what tells files of one model apart.
    forth = dict.fromkeys(program.title.partition(",")[0] for program in programs)
    return text.format(forth=", ".join(forth))


# typer prints the docstring as the help of the command.
convert.__doc__ = _with_programs(convert.__doc__ or "")
