"""What a student that saw few patches of a cloud thinks the others look like."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from hf_any3d.modeling.point_ops import chamfer_distance, gather_points
from hf_any3d.visualization.figures import plot_point_clouds
from hf_any3d.visualization.web_page import write_clouds_page

ENDINGS = (".html", ".png")


def write_reconstructions(
    path: str | os.PathLike, answers: Sequence[Mapping[str, Any]], names: Sequence[str], *, up_axis: str = "y"
) -> Path:
    """Show clouds, their coarse and their fine reconstructions side by side, a row each.

    Args:
        path: Where to write: `.html` for a page to turn, without anything from the network, `.png` for a picture. The
            file is complete or not there.
        answers: Of `pipeline("point-cloud-reconstruction")`.
        names: What each cloud is called.
        up_axis: "x", "y" or "z".

    Raises:
        ValueError: If the path has another ending, there is no answer, or the numbers of answers and names differ.
        ImportError: If matplotlib is missing, for `.png`.
    """
    if len(answers) != len(names):
        raise ValueError(f"names: {len(names)} for {len(answers)} answers; expected one for each")
    clouds, titles = [], []
    for answer, name in zip(answers, names, strict=True):
        scores = f"CD-L1 {answer['chamfer_l1']:.4f}, F {answer['f_score']:.2f}"
        clouds += [answer["points"], answer["coarse"], answer["reconstruction"]]
        titles += [name, f"coarse: {len(answer['coarse'])} points", f"fine: {scores}"]
    return write_rows(path, clouds, titles, columns=3, title="reconstructions", up_axis=up_axis)


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
    """Show clouds in rows as a page or a picture, as the ending of the path says.

    Args:
        path: Ends in `.html` or `.png`.
        clouds: Arrays `(points, 3 or 6)`, row after row; those of a row are drawn in one frame.
        titles: A line above each.
        columns: Clouds in a row.
        title: Of the page.
        up_axis: "x", "y" or "z".
        legend: What colours mean.

    Raises:
        ValueError: If the path has another ending, or a cloud cannot be drawn.
        ImportError: If matplotlib is missing, for `.png`.
    """
    path = Path(path)
    shared = {"titles": titles, "columns": columns, "up_axis": up_axis, "legend": legend}
    if path.suffix.lower() == ".html":
        return write_clouds_page(path, clouds, title=title, **shared)
    if path.suffix.lower() == ".png":
        return plot_point_clouds(clouds, path, rows_share_frame=True, cell=3.0, zoom=0.95, **shared)
    raise ValueError(f"{path}: file type {path.suffix!r}; expected one of {', '.join(ENDINGS)}")


if TYPE_CHECKING:
    from hf_any3d.modeling.act import ActForPreTraining

# Losses that compare lengths too; the others leave the length of a guess to chance.
_LOSSES_WITH_LENGTHS = ("l2", "smooth_l1")
_SEEN, _HIDDEN, _GUESSED, _TAUGHT = (0.62, 0.62, 0.66), (0.13, 0.55, 0.33), (0.85, 0.37, 0.01), (0.19, 0.42, 0.75)


@dataclass
class MaskedReconstruction:
    """One cloud, its hidden patches, and two reconstructions of them; all places as the model reads them.

    Args:
        visible: (visible patches, group_size, 3), what the student saw.
        hidden: (hidden patches, group_size, 3), what it did not.
        guessed: The hidden patches as the autoencoder's decoder makes them of the student's guesses.
        taught: The same of what the teacher, which sees everything, makes of them: the best that guesses could give.
        guessed_chamfer: Mean Chamfer distance (L1) between `guessed` and `hidden`, patch by patch.
        taught_chamfer: Between `taught` and `hidden`.
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
    """Decode a student's guesses of hidden patches into points.

    The student guesses features, not points. What it is trained to hit is what the autoencoder's decoder reads, so
    that decoder makes points of its guesses; where training aims at the teacher's output, the graph convolution in
    front of the decoder reads the guesses among the teacher's features of the visible patches. Losses on directions,
    such as the cosine, leave the lengths of guesses to chance, but the decoder reads lengths: there guesses get the
    mean length of the teacher's features of the visible patches. Where hidden patches are is known to the student, as
    places to guess for; their points are drawn around these.

    Args:
        model: A student with its frozen autoencoder.
        points: (batch, points, in_channels), xyz first.
        mask: (batch, groups) True where hidden, equally many in every cloud; drawn as the config says when left out.

    Returns:
        An entry for each cloud.

    Raises:
        ValueError: If the mask hides nothing, or does not fit.

    Source: ACT (arXiv 2212.08320), Sec. 3.3; shown as Point-MAE shows its own.
    """
    was_training = model.training
    try:
        model.eval()
        output = model(points, mask=mask, return_loss=False)
        patches = model.act.cut(points)
        features = model.teacher_features(patches)  # (batch, groups, target width)
    finally:
        model.train(was_training)
    if not output.mask.any():
        raise ValueError("mask: hides no patch; expected some to guess")
    hidden, visible = (_places(chosen) for chosen in (output.mask, ~output.mask))
    guesses = output.predictions.to(features.dtype)  # (batch, masked, target width)
    if model.config.distillation_loss not in _LOSSES_WITH_LENGTHS:
        length = gather_points(features, visible).norm(dim=-1).mean(dim=1)
        guesses = torch.nn.functional.normalize(guesses, dim=-1) * length[:, None, None]
    filled = features.scatter(1, hidden[..., None].expand_as(guesses), guesses)
    autoencoder = model.autoencoder
    if model.config.target_layer != "graph_decoder":
        neighbors = autoencoder.graph_encoder.neighbors_of(patches.centers)
        features, filled = (autoencoder.graph_decoder(rows, neighbors) for rows in (features, filled))
    groups, size = patches.neighborhoods.shape[1:3]
    truth = patches.neighborhoods[..., :3]
    local = {"truth": truth, "taught": autoencoder.decoder(features)[1], "guessed": autoencoder.decoder(filled)[1]}
    around = patches.centers.unsqueeze(2)
    rows = {
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
    """Show what was seen, what was guessed, what the teacher's features give, and the truth, a row for each cloud.

    Args:
        path: Where to write: `.html` for a page to turn, `.png` for a picture.
        reconstructions: Of `reconstruct_masked`.
        names: What each cloud is called.
        up_axis: "x", "y" or "z".

    Raises:
        ValueError: If the path has another ending, or the numbers of reconstructions and names differ.
        ImportError: If matplotlib is missing, for `.png`.
    """
    if len(reconstructions) != len(names):
        raise ValueError(f"names: {len(names)} for {len(reconstructions)} clouds; expected one for each")
    clouds, titles = [], []
    for one, name in zip(reconstructions, names, strict=True):
        seen = _painted(one.visible, _SEEN)
        for patches, color in ((one.guessed, _GUESSED), (one.taught, _TAUGHT), (one.hidden, _HIDDEN)):
            clouds.append(np.concatenate([seen, _painted(patches, color)]))
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


def _places(chosen: torch.Tensor) -> torch.Tensor:
    """Numbers of the chosen columns, (batch, chosen), equally many in each row."""
    return chosen.nonzero()[:, 1].view(len(chosen), -1)


def _painted(patches: np.ndarray, color: Sequence[float]) -> np.ndarray:
    points = patches.reshape(-1, 3)
    return np.concatenate([points, np.broadcast_to(np.float32(color), points.shape)], axis=1)
