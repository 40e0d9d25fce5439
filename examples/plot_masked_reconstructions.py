"""Draw a pretrained student's reconstructions of masked patches beside those of its teacher and the true points.

    python examples/plot_masked_reconstructions.py outputs/act_pretraining examples/data/chair.ply --output masked.html

The student predicts features; the autoencoder's decoder turns them into points, see
`hf_any3d.visualization.reconstruction.reconstruct_masked`.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

from hf_any3d.cli.inputs import find_inputs
from hf_any3d.modeling.act import ActForPreTraining
from hf_any3d.processing.point_clouds import PointCloudProcessor
from hf_any3d.visualization.reconstruction import reconstruct_masked, write_masked_reconstructions


def main(arguments: list[str] | None = None) -> None:
    """Read the command line and draw the reconstructions."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="directory or hub name of a student with its autoencoder")
    parser.add_argument("files", nargs="+", type=Path, help="point files, meshes, or folders of them")
    parser.add_argument("--mask-ratio", type=float, help="share of masked patches; the model's own by default")
    parser.add_argument("--seed", type=int, default=0, help="seed of the mask")
    parser.add_argument("--output", type=Path, nargs="+", default=[Path("masked.html")], help=".html or .png files")
    given = parser.parse_args(arguments)
    if wrong := [path for path in given.output if path.suffix.lower() not in (".html", ".png")]:
        parser.error(f"--output: {wrong[0]} has type {wrong[0].suffix!r}; expected .html or .png")
    if given.mask_ratio is not None and not 0 < given.mask_ratio < 1:
        parser.error(f"--mask-ratio: {given.mask_ratio}; expected a number between 0 and 1")

    paths = [Path(file.name) for file in find_inputs(given.files).files]
    model = ActForPreTraining.from_pretrained(given.model).eval()
    processor = PointCloudProcessor.from_pretrained(given.model)
    if given.mask_ratio is not None:
        model.config.mask_ratio = given.mask_ratio
    points = processor([str(path) for path in paths])["points"]
    torch.manual_seed(given.seed)
    shown = reconstruct_masked(model, points)
    for path in given.output:
        write_masked_reconstructions(path, shown, [path.name for path in paths], up_axis=processor.up_axis)
        print(path)
    for path, one in zip(paths, shown, strict=True):
        print(f"{path}: CD-L1 of hidden patches {one.guessed_chamfer:.4f}, from the teacher {one.taught_chamfer:.4f}")


if __name__ == "__main__":
    main()
