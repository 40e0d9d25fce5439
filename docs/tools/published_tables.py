"""The page of published tables and figures that a command repeats, made from examples/recipes/published.yaml."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from examples.repeat.published_tables import PublishedTable, find_examples, published_tables

Markdown = Callable[[Iterable[str], Iterable[Iterable[str]]], list[str]]

_ABOUT = """A name repeats a table or figure in a [clone of the repository](install.md#from-a-checkout):

```bash
# needs a checkout, and DATA, your copy of the data set
python -m examples.repeat reproduce any2point-scanobjectnn --data-dir DATA
```

```bash
# needs a checkout
python -m examples.repeat reproduce any2point-scanobjectnn --dry-run
```

The first command begins by naming everything that is missing, in a line each: data, encoders, starting points, keys of
judges. The second one needs none of that: it runs every step with tiny random models on embedded or generated data, in
seconds. [Recipes](recipes.md#published-tables) describes options and results.

**Figures are the authors' own, or for copies of `torch-pointcloud`, that library's; one was compared here, on
[a part of its data](results.md#published-weights-on-published-data).** Each row starts where the paper's did; for an
ablation that has no row, change the settings of a recipe. Names at the end evaluate the authors' weights."""


def published_tables_page(note: str, markdown: Markdown) -> str:
    """Return the page: for each paper its names, places, data, and rows with the published figures."""
    tables = published_tables(find_examples())
    papers: dict[str, list[PublishedTable]] = {}
    for table in tables.values():
        papers.setdefault(table.paper, []).append(table)
    rows = sum(len(table.rows) for table in tables.values())
    lines = ["# Published tables", "", note, "", _ABOUT, "", f"{len(tables)} names, {rows} rows."]
    for paper, own in papers.items():
        lines += ["", f"## {paper}", ""]
        lines += markdown(
            ("name", "in the paper", "what", "rows with published figures"),
            ((f"`{table.name}`", table.place, table.data, _rows(table)) for table in own),
        )
        notes = {table.name: table.note for table in own if table.note}
        lines += ["", *(f"- `{name}`: {text}" for name, text in notes.items())] if notes else []
    return "\n".join(lines) + "\n"


def _rows(table: PublishedTable) -> str:
    """Return the rows in a line, each with its figures."""
    if not table.columns:
        return f"pictures: {'; '.join(table.rows)}"
    stated = []
    for name, row in table.rows.items():
        figures = [
            f"{figure}" if len(table.columns) == 1 else f"{title} {figure}"
            for title, figure in row.published.items()
            if figure is not None
        ]
        deviation = f" ± {row.deviation}" if row.deviation else ""
        stated.append(f"{name}: {', '.join(figures)}{deviation}")
    return "; ".join(stated)
