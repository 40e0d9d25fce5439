"""Options of `hf-any3d train`."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

from hf_any3d.cli.common import Axis, option, output_option
from hf_any3d.hub.models import find_model
from hf_any3d.training.sources import OPTIONS_OF_COMMAND, Way

# Field of `TrainOptions` -> argument of trainings, where their names differ.
_ARGUMENTS = {option.replace("-", "_"): argument for argument, option in OPTIONS_OF_COMMAND.items()}
_ARGUMENTS["earlier"] = _ARGUMENTS.pop("from")


@dataclass(frozen=True)
class TrainOptions:
    """Options of the command that are arguments of trainings; None for those that are not given."""

    encoder: Annotated[
        str | None,
        option(
            "Frozen text, vision or audio encoder, or a pretrained point transformer: directory or hub name; by "
            "default sentence-transformers/all-MiniLM-L6-v2, from the hub, its cache, or the package that "
            "hf-any3d[offline] installs. With --way features, a point encoder; by default the packaged one."
        ),
    ] = None
    earlier: Annotated[
        Path | None,
        option(
            "Directory of a model of few scans to add the scans of DATA to, reusing the features of its own; or of a "
            "model of labeled tiles, to add the points to that were labeled on the page of data suggest: DATA is then "
            "answers.csv, followed by their tiles.",
            "--from",
        ),
    ] = None
    output: Annotated[
        Path | None,
        output_option("Directory for model, card and metrics; by default outputs/ and the name of the data."),
    ] = None
    epochs: Annotated[float | None, option("Passes over the data; by default 60, for segmentation 20.")] = None
    batch_size: Annotated[int | None, option("Clouds per step; by default 16, or all of fewer.", min=1)] = None
    learning_rate: Annotated[
        float | None, option("Largest learning rate; by default 0.004, for segmentation 0.001.")
    ] = None
    points: Annotated[
        int | None,
        option(
            "Points per cloud; by default 1,024. Of a few labeled tiles, points that are learned of each; by default "
            "12,000.",
            min=1,
        ),
    ] = None
    augment: Annotated[
        str | None, option("Transforms of training clouds, such as 'scale rotate jitter'; by default none.")
    ] = None
    up_axis: Annotated[
        Axis | None, option("Axis that points up in the files: x, y or z; by default that of the data, else y.")
    ] = None
    seed: Annotated[int | None, option("Random seed; by default 42.", min=0)] = None

    def with_models_found(self, way: Way | None) -> TrainOptions:
        """Return the options with the models that they name looked up, without asking the hub."""
        encoder = self.encoder
        # Another name without an owner is an old one on the hub.
        if encoder is not None and (way is Way.FEATURES or Path(encoder).is_dir() or "/" in encoder):
            encoder = find_model(encoder)
        earlier = self.earlier
        if earlier is not None:
            earlier = Path(find_model(str(earlier)))
        return replace(self, encoder=encoder, earlier=earlier)

    def settings(self) -> dict[str, Any]:
        """Return the options that are given, by the names of the arguments of trainings."""
        given = {_ARGUMENTS.get(name, name): value for name, value in vars(self).items() if value is not None}
        for name in ("output_dir", "from_model", "up_axis"):
            if name in given:
                given[name] = str(given[name])
        if self.augment is not None:
            # Commas also separate the settings of a transform, such as scale:low=0.5,high=2.
            given["augment"] = re.split(r"\s+|,(?!\w+=)", self.augment.strip())
        return given
