"""Draw a pretrained student's reconstructions of masked patches beside those of its teacher and the true points.

    python examples/plot_masked_reconstructions.py outputs/act_pretraining examples/data/chair.ply --output masked.html

The student predicts features; the autoencoder's decoder turns them into points.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from hf_any3d.cli.inputs import find_inputs
from hf_any3d.modeling.act import ActForPreTraining
from hf_any3d.modeling.layers.modes import evaluation_mode
from hf_any3d.modeling.point_ops import chamfer_distance, gather_points
from hf_any3d.processing.point_clouds import PointCloudProcessor
from hf_any3d.visualization.reconstruction import write_rows

# Losses that compare lengths too; the others leave the length of predictions undefined.
_LOSSES_WITH_LENGTHS = ("l2", "smooth_l1")
_SEEN, _HIDDEN, _GUESSED, _TAUGHT = (0.62, 0.62, 0.66), (0.13, 0.55, 0.33), (0.85, 0.37, 0.01), (0.19, 0.42, 0.75)


@dataclass
class MaskedReconstruction:
    """A cloud, its hidden patches, and two reconstructions of them, in the coordinates that the model reads.

    Args:
        visible: (visible patches, group_size, 3), the student's input.
        hidden: (hidden patches, group_size, 3), the masked patches.
        guessed: The hidden patches, decoded from the student's predictions.
        taught: The hidden patches, decoded from the features of the teacher, which sees everything: an upper bound.
        guessed_chamfer: Mean Chamfer distance (L1) between `guessed` and `hidden`, patch by patch.
        taught_chamfer: The same between `taught` and `hidden`.
    """

    visible: np.ndarray
    hidden: np.ndarray
    guessed: np.ndarray
    taught: np.ndarray
    guessed_chamfer: float
    taught_chamfer: float


@torch.no_grad()
def reconstruct_masked(
    model: ActForPreTraining, points: torch.Tensor, mask: torch.Tensor | None = None
) -> list[MaskedReconstruction]:
    """Decode a student's predictions of hidden patches into points.

    The student predicts features that the autoencoder's decoder reads, so that decoder turns them into points; if the
    training target is the teacher's output, the graph convolution before the decoder first reads the predictions
    together with the teacher's features of the visible patches. Losses on directions, such as the cosine, leave the
    lengths of predictions undefined, while the decoder depends on them: predictions then get the mean length of the
    teacher's features of the visible patches. The student knows the centers of hidden patches; their points are drawn
    around these.

    Args:
        model: A student with its frozen autoencoder.
        points: (batch, points, in_channels), xyz first.
        mask: (batch, groups), True where hidden, equally many in every cloud; by default drawn as in training.

    Returns:
        An entry for each cloud.

    Raises:
        ValueError: The mask hides nothing, or does not fit.

    Source: ACT (arXiv 2212.08320), Sec. 3.3; drawn as in Point-MAE.
    """
    with evaluation_mode(model):
        output = model(points, mask=mask, return_loss=False)
        patches = model._teacher_patches(points, model.cut(points))
        features = model.teacher_features(patches)  # (batch, groups, target width)
    if not output.mask.any():
        raise ValueError("mask: hides no patch; expected some to guess")
    hidden, visible = (_column_indices(chosen) for chosen in (output.mask, ~output.mask))
    guesses = output.predictions.to(features.dtype)  # (batch, masked, target width)
    if model.config.distillation_loss not in _LOSSES_WITH_LENGTHS:
        # The decoder needs lengths like those of real features: the mean one of this cloud's visible patches.
        length = gather_points(features, visible).norm(dim=-1).mean(dim=1)
        guesses = torch.nn.functional.normalize(guesses, dim=-1) * length[:, None, None]
    filled = features.scatter(1, hidden[..., None].expand_as(guesses), guesses)
    # If the student learned features from before the graph decoder, that part of the teacher turns them into its
    # output.
    autoencoder = model.autoencoder
    if model.config.target_layer != "graph_decoder":
        neighbors = autoencoder.neighbors_of(patches)
        features, filled = (autoencoder.graph_decoder(rows, neighbors) for rows in (features, filled))
    groups, size = patches.neighborhoods.shape[1:3]
    truth = patches.neighborhoods[..., :3]
    local = {"truth": truth, "taught": autoencoder.decoder(features)[1], "guessed": autoencoder.decoder(filled)[1]}
    around = patches.centers.unsqueeze(2)
    rows = {
        # Patches are flattened to rows, which `gather_points` selects.
        name: gather_points((values.float() + around).reshape(-1, groups, size * 3), hidden).unflatten(2, (size, 3))
        for name, values in local.items()
    }
    seen = gather_points((truth + around).reshape(-1, groups, size * 3), visible).unflatten(2, (size, 3))
    distances = {
        name: chamfer_distance(rows[name].flatten(0, 1), rows["truth"].flatten(0, 1), reduction="none")
        .view(len(points), -1)
        .mean(dim=1)
        for name in ("guessed", "taught")
    }
    return [
        MaskedReconstruction(
            visible=seen[i].cpu().numpy(),
            hidden=rows["truth"][i].cpu().numpy(),
            guessed=rows["guessed"][i].cpu().numpy(),
            taught=rows["taught"][i].cpu().numpy(),
            guessed_chamfer=float(distances["guessed"][i]),
            taught_chamfer=float(distances["taught"][i]),
        )
        for i in range(len(points))
    ]


def write_masked_reconstructions(
    path: str | os.PathLike,
    reconstructions: Sequence[MaskedReconstruction],
    names: Sequence[str],
    *,
    up_axis: str = "y",
) -> Path:
    """Show visible patches, predictions, decoded teacher features and the truth, a row for each cloud.

    Args:
        path: File to write: `.html` for an interactive page, `.png` for a picture.
        reconstructions: The result of `reconstruct_masked`.
        names: Name of each cloud.
        up_axis: "x", "y" or "z".

    Raises:
        ValueError: The path has another suffix, or the numbers of reconstructions and names differ.
        ImportError: matplotlib is missing, for `.png`.
    """
    clouds, titles = [], []
    for one, name in zip(reconstructions, names, strict=True):
        seen = _colored(one.visible, _SEEN)
        for patches, color in ((one.guessed, _GUESSED), (one.taught, _TAUGHT), (one.hidden, _HIDDEN)):
            clouds.append(np.concatenate([seen, _colored(patches, color)]))
        # As the first of the row's four.
        clouds.insert(-3, seen)
        total = len(one.visible) + len(one.hidden)
        titles += [
            f"{name}: {len(one.visible)} of {total} patches",
            f"guessed: CD-L1 {one.guessed_chamfer:.4f}",
            f"from the teacher: CD-L1 {one.taught_chamfer:.4f}",
            "truth",
        ]
    legend = {
        "seen": _SEEN,
        "guessed, decoded": _GUESSED,
        "teacher's features, decoded": _TAUGHT,
        "hidden": _HIDDEN,
    }
    title = "masked reconstructions"
    return write_rows(path, clouds, titles, columns=4, title=title, up_axis=up_axis, legend=legend)


def _column_indices(chosen: torch.Tensor) -> torch.Tensor:
    """Return the indices of chosen columns, (batch, chosen), equally many in each row."""
    # `nonzero` goes row by row, and each row has equally many.
    return chosen.nonzero()[:, 1].view(len(chosen), -1)


def _colored(patches: np.ndarray, color: Sequence[float]) -> np.ndarray:
    points = patches.reshape(-1, 3)
    return np.concatenate([points, np.broadcast_to(np.asarray(color, np.float32), points.shape)], axis=1)


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
