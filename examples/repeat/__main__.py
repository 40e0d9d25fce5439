"""Repeat published tables and figures, and series of runs over seeds and settings, with this checkout's programs.

python -m examples.repeat reproduce any2point-scanobjectnn --data-dir DATA
python -m examples.repeat reproduce any2point-scanobjectnn --dry-run
python -m examples.repeat sweep recipe.yaml --vary learning_rate=1e-3,5e-4
"""

import contextlib
import sys
from pathlib import Path
from typing import Annotated

import typer

from hf_any3d.cli.command_line import CommandLine
from hf_any3d.cli.libraries import load_libraries
from hf_any3d.cli.options import option
from hf_any3d.utils.messages import print_json, print_line

app = typer.Typer(cls=CommandLine, help=__doc__, pretty_exceptions_enable=False)
# Further arguments are those of a training program.
_MORE = {"allow_extra_args": True, "ignore_unknown_options": True}

Examples = Annotated[
    Path | None, option("Folder with training programs and recipes; by default examples/ of this checkout.")
]
Seeds = Annotated[str, typer.Option(help="Random seeds, such as 0,1,2.")]


@app.command(context_settings=_MORE)
def reproduce(
    context: typer.Context,
    words: Annotated[
        list[str] | None,
        typer.Argument(metavar="[TABLE]", help="Published table; without it, all are listed.", show_default=False),
    ] = None,
    data_dir: Annotated[str | None, option("Folder with the files of the dataset.")] = None,
    row: Annotated[list[str] | None, option("Only this row; may be given several times.")] = None,
    output_dir: Annotated[Path, typer.Option(help="Folder for runs and tables.")] = Path("outputs/reproduce"),
    seeds: Seeds = "0",
    voting: Annotated[
        int, typer.Option(min=0, help="Also evaluate the mean logits of this many augmented copies, apart.")
    ] = 10,
    released: Annotated[
        bool,
        typer.Option(
            "--released", help="Repeat the quirks of the released programs, which select the epoch on the test set."
        ),
    ] = False,
    start: Annotated[
        str | None, option("Model that the last step starts from, in place of the recipe's or of the steps before it.")
    ] = None,
    dry_run: Annotated[
        bool,
        typer.Option(
            "--dry-run",
            help="Run every step once with tiny random models on embedded or generated data: seconds, and no figures.",
        ),
    ] = False,
    examples: Examples = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
) -> None:
    """Repeat a published table: check the data, train with the recipes, evaluate, and write rows beside the published.

    Plain and voted results are listed apart. Interrupted tables resume. Further arguments go to the last step's
    program and are listed as changes, such as --per_device_train_batch_size 16.
    """
    from examples.repeat import published_tables, reproducing

    table, further = _split_words(words, context)
    folder = published_tables.find_examples(examples)
    tables = published_tables.published_tables(folder)
    if table is None:
        _list_tables(tables, as_json)
        return
    if table not in tables:
        raise ValueError(f"unknown table {table!r}; expected one of {', '.join(tables)}")
    numbers = _parse_seeds(seeds)
    load_libraries()
    # Progress and the trainer's output go to stderr, so that stdout holds the results alone.
    with contextlib.redirect_stdout(sys.stderr):
        result = reproducing.reproduce(
            tables[table],
            folder,
            output_dir / table,
            data_dir=data_dir,
            only=row or (),
            seeds=numbers,
            voting=voting,
            released=released,
            start=start,
            words=further,
            dry_run=dry_run,
        )
    _print_result(result, output_dir / table / table, as_json)


@app.command(context_settings=_MORE)
def sweep(
    context: typer.Context,
    words: Annotated[
        list[str] | None,
        typer.Argument(metavar="[RECIPE]", help="YAML file of the training program.", show_default=False),
    ] = None,
    vary: Annotated[
        list[str] | None,
        option(
            "An argument of the program and its values, such as learning_rate=1e-3,5e-4; may be given several times "
            "for all combinations. Values with commas are separated by semicolons.",
            metavar="NAME=VALUES",
        ),
    ] = None,
    output_dir: Annotated[Path, typer.Option(help="Folder for runs and tables.")] = Path("outputs/sweep"),
    seeds: Seeds = "0,1,2",
    program: Annotated[
        str | None,
        option("Training program of examples/, such as run_point_cloud_segmentation.py; by default a classifier's."),
    ] = None,
    examples: Examples = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
) -> None:
    """Train with all combinations of settings and seeds; writes a table as JSON, Markdown and LaTeX after each run.

    Interrupted sweeps resume, and may be extended by seeds and values. Further arguments go to the training program,
    such as --num_train_epochs 20.
    """
    from examples.repeat import series
    from examples.repeat.published_tables import find_examples, load_program

    recipe, further = _split_words(words, context)
    if recipe is not None and not recipe.endswith((".yaml", ".yml", ".json")):
        raise ValueError(f"{recipe!r} is not a recipe; expected a .yaml or .json file, or options of the program")
    if recipe is not None and not Path(recipe).is_file():
        raise FileNotFoundError(f"no file {recipe}")
    arguments = [*([] if recipe is None else [recipe]), *further]
    settings, numbers = _parse_settings(vary or []), _parse_seeds(seeds)
    load_libraries()
    if program is None:
        from hf_any3d.training.tasks import train_classifier as run

    else:
        run = load_program(find_examples(examples), program)
    with contextlib.redirect_stdout(sys.stderr):
        result = series.sweep(run, arguments, output_dir, settings, numbers)
    _print_result(result, output_dir / series.SWEEP, as_json)


def _split_words(words: list[str] | None, context: typer.Context) -> tuple[str | None, list[str]]:
    """Return the table or recipe, if it comes first, and the arguments of the training program."""
    given = [*(words or ()), *context.args]
    return (given[0], given[1:]) if given and not given[0].startswith("-") else (None, given)


def _print_result(result: dict, path: Path, as_json: bool) -> None:
    """Print a result, or its table and where the files are."""
    if as_json:
        print_json(result)
        return
    for line in path.with_name(f"{path.name}.md").read_text(encoding="utf-8").splitlines():
        print_line(line)
    print_line(f"{path}.json, .md and .tex have this table.", is_error=True)


def _list_tables(tables: dict, as_json: bool) -> None:
    if as_json:
        from dataclasses import asdict

        print_json({name: asdict(table) for name, table in tables.items()})
        return
    for name, table in tables.items():
        print_line(f"{name}: {', '.join(filter(None, (table.paper, table.place)))}: {table.data}; {table.source}")
        for row, facts in table.rows.items():
            deviation = f" ± {facts.deviation}" if facts.deviation else ""
            figures = ", ".join("–" if figure is None else str(figure) for figure in facts.published.values())
            steps = ", ".join(step.recipe or step.program for step in facts.steps)
            print_line(f"  {row:<16} {figures}{deviation}   {steps}")


def _parse_seeds(text: str) -> list[int]:
    if not all(part.strip().isdigit() for part in text.split(",")):
        raise ValueError(f"--seeds is {text!r}; expected whole numbers such as 0,1,2")
    return [int(part) for part in text.split(",")]


def _parse_settings(texts: list[str]) -> dict[str, list[str]]:
    settings = {}
    for text in texts:
        name, equals, values = text.partition("=")
        name = name.strip().removeprefix("--").replace("-", "_")
        if not equals or not name or name in settings:
            raise ValueError(f"--vary is {text!r}; expected NAME=VALUE,VALUE, each name once")
        settings[name] = [value.strip() for value in values.split(";" if ";" in values else ",")]
    return settings


if __name__ == "__main__":
    app(prog_name="python -m examples.repeat")
