"""Build the request to learn labeled tiles from what `hf-any3d train` is given."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from hf_any3d.training import tasks
from hf_any3d.training.requests import ExtensionRequest, read_words, refuse_twice
from hf_any3d.training.sources import OPTIONS_OF_COMMAND, Source, Way
from hf_any3d_survey.local_features import LocalFeaturesConfig
from hf_any3d_survey.tiles.adding import AddedArguments, AddedPoints
from hf_any3d_survey.tiles.arguments import TilesArguments
from hf_any3d_survey.tiles.training import Tiles
from hf_any3d_survey.tiles.ways import FEATURES, OF_TILES, choose_way

ARGUMENTS = (TilesArguments,)
"""Options of this way of learning, for help."""
_HELP = "hf-any3d train --task segmentation --help-all"


def request_for(
    source: Source,
    given: Mapping[str, Any],
    words: Sequence[str],
    way: Way | None,
    config_of: Callable[[str], Mapping[str, Any]],
) -> ExtensionRequest | None:
    """Return the request to learn files of labeled points; None for other data, or to train a network on them."""
    if not source.files:
        return None
    if "from_model" in given:
        return _added_request(source, given, words, config_of)
    # A network is trained on the rows of a folder: that is known without a look at the files.
    if way is Way.TRAINED and len(source.files) == 1 and Path(source.files[0]).is_dir():
        return None
    return _tiles_request(source, given, words, way)


def _tiles_request(source: Source, given: Mapping[str, Any], words: Sequence[str], way: str | None) -> Tiles | None:
    """Return the request to learn point labels from a few files; None if a network is to be trained."""
    of_network = tasks.Segmentation.argument_classes()
    named = read_words([*of_network, TilesArguments], words, _HELP)
    given = dict(given)
    # Here `--points` are those of a tile, not of a cloud of a network.
    if "num_points" in given:
        given["points"] = given.pop("num_points")
    refuse_twice(given, named)
    # No recipe can name a directory here.
    settings = {"output_dir": str(source.output), **given, **named}
    if choose_way(source.files, settings, way) == FEATURES:
        return Tiles.from_settings(settings)
    without_effect = sorted(named.keys() - {setting.name for kind in of_network for setting in fields(kind)})
    of_training = sorted(settings.keys() - OF_TILES)
    if without_effect and of_training:
        cause = of_training[0]
        if cause in given:
            cause = OPTIONS_OF_COMMAND.get(cause, cause)
        raise ValueError(
            f"--{without_effect[0]} has no effect with --{cause}, which trains a network; leave out one of them"
        )
    return None


def _added_request(
    source: Source,
    given: Mapping[str, Any],
    words: Sequence[str],
    config_of: Callable[[str], Mapping[str, Any]],
) -> AddedPoints:
    """Return the request to add labeled points to a model of tiles."""
    earlier = given["from_model"]
    model_type = str(config_of(earlier).get("model_type"))
    if model_type != LocalFeaturesConfig.model_type:
        raise ValueError(
            f"--from {earlier} cannot be extended with labeled points, as its type is {model_type}; use a model "
            "that hf-any3d train made from labeled tiles"
        )
    named = read_words([AddedArguments], words, _HELP)
    refuse_twice(given, named)
    known = {setting.name for setting in fields(AddedArguments)}
    foreign = sorted(given.keys() - known)
    if foreign:
        name = OPTIONS_OF_COMMAND.get(foreign[0], foreign[0].replace("_", "-"))
        raise ValueError(f"--{name} has no effect when extending a model, which keeps its own settings; leave it out")
    return AddedPoints.from_settings({"output_dir": str(source.output), **given, **named})
