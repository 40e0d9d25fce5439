"""Train the model of tiles that comes with the package: `hf-any3d inventory` and `pipeline("point-cloud-inventory")`.

    python -m survey.studies.train_scene_model TILE … --output DIR    # labeled tiles of several places

It is what `hf-any3d train` learns of ground, vegetation and buildings, with and without returns, but with few of the
learned points that are stored beside a model, so that it is small: enough for `train --from`, which goes on from the
network, and not for `--adapt`. The published one has learned ten public tiles of
five places: nine of IGN (ign-pdal-tools and lidar-prod, MIT and BSD-3) and pyfor (MIT), and one of laspy (BSD).
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from hf_any3d import AutoModelForPointCloudSegmentation
from hf_any3d.pipelines import default_model
from hf_any3d_survey.tiles.arguments import TilesArguments
from hf_any3d_survey.tiles.training import Tiles, learn_tiles

# Codes of water and bridges are in one of the tiles alone, and those from 64 on are of their makers.
STORED = 300
IGNORED = "0,1,7,9,12,17,18,64,65,67"


def main(argv: Sequence[str] | None = None) -> None:
    """Train, and leave out most of the stored points."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("tiles", type=Path, nargs="+", help="Labeled tiles.")
    parser.add_argument("--output", type=Path, default=Path(default_model("point-cloud-inventory")))
    arguments = parser.parse_args(argv)
    asked = TilesArguments(
        output_dir=str(arguments.output),
        ignore=IGNORED,
        merge=["vegetation=3,4,5"],
        intensity=False,
        colors=False,
        may_lack="returns",
        license="apache-2.0",
    )
    for line in learn_tiles(Tiles(asked), arguments.tiles).lines:
        print(line)
    shed(arguments.output)


def shed(folder: Path) -> None:
    """Leave out most of the learned points of a saved model, and keep the others in half precision."""
    model = AutoModelForPointCloudSegmentation.from_pretrained(folder)
    learned = model.learned
    # In an order of chance already
    for name, values in [*learned.named_buffers()]:
        setattr(learned, name, values[:STORED])
    learned.features = learned.features.half()
    model.config.learned_rows = STORED
    card = (folder / "README.md").read_text("utf-8")
    model.save_pretrained(folder)
    # Of the training; that of a saved model says less.
    (folder / "README.md").write_text(card, "utf-8")


if __name__ == "__main__":
    main()
