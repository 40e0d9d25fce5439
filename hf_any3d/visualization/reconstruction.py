"""Show reconstructions: by an autoencoder, and of masked patches by a student of pretraining."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from hf_any3d.modeling.layers.modes import evaluation_mode
from hf_any3d.modeling.point_ops import chamfer_distance, gather_points
from hf_any3d.visualization.figures import plot_point_clouds
from hf_any3d.visualization.viewer import write_clouds_page

if TYPE_CHECKING:
    from hf_any3d.modeling.act import ActForPreTraining

_SUFFIXES = (".html", ".png")
# Losses that compare lengths too; the others leave the length of predictions undefined.
_LOSSES_WITH_LENGTHS = ("l2", "smooth_l1")
_SEEN, _HIDDEN, _GUESSED, _TAUGHT = (0.62, 0.62, 0.66), (0.13, 0.55, 0.33), (0.85, 0.37, 0.01), (0.19, 0.42, 0.75)


def write_reconstructions(
    path: str | os.PathLike, answers: Sequence[Mapping[str, Any]], names: Sequence[str], *, up_axis: str = "y"
) -> Path:
    """Show clouds, their coarse and their fine reconstructions side by side, a row each.

    Args:
        path: File to write, atomically: `.html` for a self-contained interactive page, `.png` for a picture.
        answers: Results of `pipeline("point-cloud-reconstruction")`.
        names: Name of each cloud.
        up_axis: "x", "y" or "z".

    Raises:
        ValueError: The path has another suffix, there is no answer, or the numbers of answers and names differ.
        ImportError: matplotlib is missing, for `.png`.
    """
    if len(answers) != len(names):
        raise ValueError(f"names: {len(names)} for {len(answers)} answers; expected one for each")
    clouds, titles = [], []
    for answer, name in zip(answers, names, strict=True):
        scores = f"CD-L1 {answer['chamfer_l1']:.4f}, F {answer['f_score']:.2f}"
        clouds += [answer["points"], answer["coarse"], answer["reconstruction"]]
        titles += [name, f"coarse: {len(answer['coarse'])} points", f"fine: {scores}"]
    return write_rows(path, clouds, titles, columns=3, title="reconstructions", up_axis=up_axis)


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
        neighbors = autoencoder.graph_encoder.neighbors_of(patches.centers)
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
    if len(reconstructions) != len(names):
        raise ValueError(f"names: {len(names)} for {len(reconstructions)} clouds; expected one for each")
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


def write_rows(
    path: str | os.PathLike,
    clouds: Sequence[np.ndarray],
    titles: Sequence[str],
    *,
    columns: int,
    title: str,
    up_axis: str = "y",
    legend: Mapping[str, Sequence[float]] | None = None,
) -> Path:
    """Show clouds in rows on a page or in a picture, depending on the suffix.

    Args:
        path: `.html` or `.png` file.
        clouds: Arrays `(points, 3 or 6)`, row by row; those of a row are drawn in one frame.
        titles: A line above each.
        columns: Clouds per row.
        title: Title of the page.
        up_axis: "x", "y" or "z".
        legend: Names and their colors.

    Raises:
        ValueError: The path has another suffix, or a cloud cannot be drawn.
        ImportError: matplotlib is missing, for `.png`.
    """
    path = Path(path)
    shared = {"titles": titles, "columns": columns, "up_axis": up_axis, "legend": legend}
    if path.suffix.lower() == ".html":
        return write_clouds_page(path, clouds, title=title, **shared)
    if path.suffix.lower() == ".png":
        return plot_point_clouds(clouds, path, rows_share_frame=True, cell=3.0, zoom=0.95, **shared)
    raise ValueError(f"{path}: file type {path.suffix!r}; expected one of {', '.join(_SUFFIXES)}")


def _column_indices(chosen: torch.Tensor) -> torch.Tensor:
    """Return the indices of chosen columns, (batch, chosen), equally many in each row."""
    # `nonzero` goes row by row, and each row has equally many.
    return chosen.nonzero()[:, 1].view(len(chosen), -1)


def _colored(patches: np.ndarray, color: Sequence[float]) -> np.ndarray:
    points = patches.reshape(-1, 3)
    return np.concatenate([points, np.broadcast_to(np.asarray(color, np.float32), points.shape)], axis=1)
