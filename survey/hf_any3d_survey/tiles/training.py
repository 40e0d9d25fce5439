"""Learn to label points from a few tiles: features of surroundings, a small network, and how sure it is.

`learn_tiles` is told from top to bottom: what the tiles are (`tile_set.py`), what is drawn of them (`examples.py`), by
what the model is judged (`cross_validation.py`), and what is said of it (`report.py`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from hf_any3d.data.classes.class_rule import ClassRule
from hf_any3d.model_card.run_report import Stopwatch
from hf_any3d.training import program
from hf_any3d.training.few_scans.training import Learned
from hf_any3d.training.requests import ExtensionRequest
from hf_any3d.utils.atomic_files import release_claims
from hf_any3d_survey.local_features import LocalFeaturesConfig
from hf_any3d_survey.local_features.fitting import BATCH, LARGE_BATCH, OBJECT_STEPS, STEPS, fit_network, keep_rows
from hf_any3d_survey.processor import LocalFeaturesProcessor
from hf_any3d_survey.tiles.arguments import TilesArguments
from hf_any3d_survey.tiles.cross_validation import judge_held_out
from hf_any3d_survey.tiles.examples import Examples, take_examples
from hf_any3d_survey.tiles.reading import tile_files, told
from hf_any3d_survey.tiles.report import lines_of, save
from hf_any3d_survey.tiles.tile_set import TileSet
from hf_any3d_survey.tiles.unknown_score import add_unknown_score

_FOLD_STEPS = 600
_WIDTHS, _MEMBERS = (64,), 2


@dataclass
class Tiles(ExtensionRequest):
    """Request to learn tiles."""

    arguments: TilesArguments

    def learn(self, paths: Sequence[str | Path]) -> Learned:
        """Learn from files and folders, see `learn_tiles`."""
        return learn_tiles(self, paths)


def learn_tiles(request: Tiles, paths: Sequence[str | Path]) -> Learned:
    """Learn from the labeled files of folders and files, and save model, card and metrics.json."""
    stopwatch = Stopwatch()
    arguments = request.arguments
    rule = ClassRule.parse(arguments.ignore, arguments.merge)
    # Files are listed before the folder is claimed, so that a mistyped path leaves no empty folder behind.
    files = tile_files(paths)
    program.claim_output(Path(arguments.output_dir))
    with stopwatch.part("data"):
        tiles = TileSet.read(files, rule, arguments)
        processor = tiles.processor()
        # All remarks at once, before the minutes that follow.
        told(tiles.remarks)
    with stopwatch.part("features"):
        examples = take_examples(tiles, processor)
    steps, fold_steps, batch = OBJECT_STEPS, OBJECT_STEPS, LARGE_BATCH
    if tiles.are_places:
        steps, fold_steps, batch = STEPS, _FOLD_STEPS, BATCH
    config = _config(tiles, processor, examples)
    fit = partial(fit_network, examples.rows, config, processor.may_miss, arguments.seed, batch=batch)
    # The estimate comes before the model that is kept: its temperature and unknown score are of places held out.
    with stopwatch.part("estimate"):
        judged = judge_held_out(tiles, examples, partial(fit, steps=fold_steps), arguments.folds, arguments.seed)
    with stopwatch.part("training"):
        model = fit(steps=steps)
        if tiles.are_places:
            keep_rows(model, examples.rows, arguments.seed)
        if judged is not None:
            # Without a place held out, nothing tells how far the scores can be trusted, and they stay as they are.
            model.config.temperature = judged.temperature
            add_unknown_score(model, examples.rows, judged, arguments.seed)
    report = save(model, processor, tiles, examples, judged, stopwatch, paths)
    release_claims()
    return Learned(report, lines_of(model, processor, tiles, judged, paths))


def _config(tiles: TileSet, processor: LocalFeaturesProcessor, examples: Examples) -> LocalFeaturesConfig:
    classes = tiles.classes
    return LocalFeaturesConfig(
        # The coordinates come first, as for every model, though the network does not read them.
        in_channels=3 + len(processor.names()),
        hidden_sizes=_WIDTHS,
        members=_MEMBERS,
        class_codes=classes.codes,
        learned_codes=classes.members(tiles.rule),
        seen=examples.seen,
        id2label=dict(enumerate(classes.names)),
        label2id={name: number for number, name in enumerate(classes.names)},
    )
