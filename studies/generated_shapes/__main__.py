"""Contact sheet of the generated shapes."""

from __future__ import annotations

import argparse
from pathlib import Path

from hf_any3d.visualization.figures import plot_point_clouds
from studies.generated_shapes import CLASSES, DAMAGED, NONE, draw_shape


def draw_picture(path: Path, shown: int = 2) -> Path:
    """Draw shapes of each class: clean ones, and the same ones as the study sees them."""
    clouds, titles = [], []
    for name in CLASSES:
        for index in range(shown):
            clouds.append(draw_shape(name, 0, index, num_points=256, damage=NONE if index < shown // 2 else DAMAGED))
            titles.append(name.replace("_", " ") if index == 0 else "")
    heading = "Generated shapes: a complete object of each class, and one as it is learned"
    return plot_point_clouds(clouds, path, titles=titles, heading=heading, columns=12, cell=0.84, elevation=15)


def main(arguments: list[str] | None = None) -> None:
    """Draw the contact sheet."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--picture", type=Path, default=Path("outputs/generated_shapes.png"))
    print(draw_picture(parser.parse_args(arguments).picture))


if __name__ == "__main__":
    main()
