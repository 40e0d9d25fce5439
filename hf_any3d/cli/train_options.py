"""Options of `hf-any3d train`."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

from hf_any3d.cli.options import Axis, option, output_option
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
            "Directory or Hub name of a text, vision or audio encoder to keep frozen, or of a pretrained point "
            "transformer; by default sentence-transformers/all-MiniLM-L6-v2, from the Hub, the local cache or the "
            "extra hf-any3d[offline]. With --way features, a point encoder; by default the bundled one."
        ),
    ] = None
    earlier: Annotated[
        Path | None,
        option(
            "Directory of an earlier model to extend. To a model trained with --way features, the scans of DATA are "
            "added. To a model trained on labeled tiles, or to `inventory`, the bundled one, the points that you "
            "labeled with `hf-any3d data suggest` are added: pass the saved ..._answers.csv as DATA, followed by the "
            "tiles.",
            "--from",
        ),
    ] = None
    output: Annotated[
        Path | None,
        output_option("Output directory for model, card and metrics; by default outputs/ plus the name of the data."),
    ] = None
    epochs: Annotated[float | None, option("Number of epochs; by default 60, or 20 for segmentation.")] = None
    batch_size: Annotated[
        int | None, option("Point clouds per step; by default 16, or all if there are fewer.", min=1)
    ] = None
    learning_rate: Annotated[
        float | None, option("Peak learning rate; by default 0.004, or 0.001 for segmentation.")
    ] = None
    points: Annotated[
        int | None,
        option(
            "Points per cloud; by default 1,024. For labeled tiles: training points per tile; by default 12,000.",
            min=1,
        ),
    ] = None
    augment: Annotated[str | None, option("Data augmentation, such as 'scale rotate jitter'; by default none.")] = None
    up_axis: Annotated[
        Axis | None,
        option(
            "Up axis of the files; by default z for LAS, LAZ and labeled tiles, otherwise that of the dataset, or y."
        ),
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
