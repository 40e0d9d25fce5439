"""Packages beside this one that bring models, formats, data sets and more; each names itself as an entry point.

    [options.entry_points]
    hf_any3d.extensions =
        survey = hf_any3d_survey.about:EXTENSION

It is looked up whenever this package is imported: the module with an `Extension` imports nothing that takes time.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.metadata import entry_points
from importlib.util import find_spec


@dataclass(frozen=True)
class Extension:
    """Record of a package; modules are named in full, and imported when they are first used.

    Attributes:
        models: Packages whose `about.py` has a `RECORD` of models, see `hf_any3d.modeling.records`. Its converters
            and recognizers are named in full, too.
        tasks: Packages whose `about.py` has the record of a `TASK`, see `hf_any3d.tasks.records`.
        pipelines: Modules whose import registers pipelines of single model types.
        tuners: Modules whose import registers PEFT methods.
        formats: Ending of files, without a dot -> module with `read(source)`, which returns a `PointCloudData` of the
            bytes `source.data`.
        datasets: Name -> module with `load(data_dir, **options)`, which returns a `DatasetDict`; and what its labels
            belong to: "clouds", "points", "boxes", "texts", or None if its columns tell.
        metrics: Functions of logits (samples, labels) and class numbers (samples,) that return figures by their names,
            as `module:function`. Trainings and evaluations of classifiers have these figures beside their own.
        commands: Module with `add_commands(app, panel)`, which adds commands to the command line; `panel` is their
            heading in its help.
        learning: Module that may learn data in a way of its own, by `request_for` and `ARGUMENTS`; see
            `hf_any3d.training.request_builder.learning_of_extensions`.
        default_models: Task -> directory of the model that opens if none is named.
        file_models: Type of models that read whole files, and no rows of a dataset -> module and function by which
            `hf-any3d evaluate` judges them, as `module:function`.
    """

    models: tuple[str, ...] = ()
    tasks: tuple[str, ...] = ()
    pipelines: tuple[str, ...] = ()
    tuners: tuple[str, ...] = ()
    formats: Mapping[str, str] = field(default_factory=dict)
    datasets: Mapping[str, tuple[str, str | None]] = field(default_factory=dict)
    metrics: tuple[str, ...] = ()
    commands: str | None = None
    learning: str | None = None
    default_models: Mapping[str, str] = field(default_factory=dict)
    file_models: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Check that modules of tables are named in full: without a dot they would be taken for ours."""
        tables = {"formats": self.formats, "datasets": {name: module for name, (module, _) in self.datasets.items()}}
        for table, modules in tables.items():
            for name, module in modules.items():
                if "." not in module:
                    raise ValueError(
                        f"Extension: {table} has {name}={module!r}; expected a module within a package, such as "
                        f"mine.{module}"
                    )


def _installed() -> dict[str, Extension]:
    found = {}
    for entry in sorted(entry_points(group="hf_any3d.extensions")):
        package = entry.module.partition(".")[0]
        # What is left of a package that is gone, such as the folder of an editable one, is no reason to fail.
        if find_spec(package) is not None:
            found[package] = entry.load()
    return found


EXTENSIONS = _installed()
"""By the name of the package, which has one."""
# Package -> how an error names it, and what is of it: types of models, commands, what the labels of files belong to.
_KNOWN = {
    "hf_any3d_survey": (
        "the package hf-any3d-survey: pip install 'hf-any3d[survey]'",
        {"local_features", "inventory", "data suggest", "evaluate numbers", "points"},
    ),
}


def missing_package(name: str) -> str | None:
    """Return the package that a type of models, a command or labels need, in words; None if it is here, or unknown."""
    for package, (words, names) in _KNOWN.items():
        if name in names and package not in EXTENSIONS:
            return words
    return None
