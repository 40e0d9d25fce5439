"""Whether an exported file says what the model says, on clouds of sizes that it was not traced with."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor, nn

from hf_any3d.export.tracing import classifier_of, eval_mode


@contextmanager
def replaced_when_complete(path: Path) -> Iterator[Path]:
    """Give a path of the same name in a temporary folder; what was written there takes the place of the old files.

    Formats that keep weights in a second file name it inside the first one, so names must not change afterwards.

    Raises:
        FileNotFoundError: If the folder of `path` does not exist.
        IsADirectoryError: If `path` is a folder.
    """
    if path.is_dir():
        raise IsADirectoryError(f"{path}: is a folder; expected the name of a file")
    if not path.parent.is_dir():
        raise FileNotFoundError(f"{path}: the folder {path.parent} does not exist")
    with tempfile.TemporaryDirectory(prefix=f".{path.name}.", dir=path.parent) as folder:
        yield Path(folder) / path.name
        # The file itself comes last: whoever sees it finds its companions in place.
        for file in sorted(Path(folder).iterdir(), key=lambda file: file.name == path.name):
            os.replace(file, path.parent / file.name)


Runner = Callable[[Tensor], Tensor]
TOLERANCE = 1e-4


def compare(model: nn.Module, run: Runner, *, tolerance: float = TOLERANCE, seed: int = 0) -> float:
    """Run random clouds through a model and its exported file.

    There are batches of two sizes, both other than those of tracing: exporters are known to keep indices that they
    found while tracing, which nothing but another cloud of another size brings to light.

    Args:
        model: The classifier, on the CPU.
        run: From points `(batch, points, in_channels)` to logits.
        tolerance: Largest difference of logits that is accepted, as a share of the largest logit, at least 1.
        seed: Of the clouds.

    Returns:
        The largest difference of two logits.

    Raises:
        ValueError: If logits differ by more, or labels differ at all.
    """
    config = classifier_of(model).config
    generator = torch.Generator().manual_seed(seed)
    worst = 0.0
    for batch, count in ((1, config.min_points + 37), (3, 2 * config.min_points + 501)):
        points = torch.rand(batch, count, config.in_channels, generator=generator) * 2 - 1
        with eval_mode(model), torch.no_grad():
            expected = model(points=points).logits.float()
        found = run(points).float()
        if found.shape != expected.shape:
            raise ValueError(f"the file gives logits {tuple(found.shape)}; expected {tuple(expected.shape)}")
        difference = (found - expected).abs().max().item()
        allowed = tolerance * max(1.0, expected.abs().max().item())
        if not difference <= allowed or not torch.equal(found.argmax(dim=-1), expected.argmax(dim=-1)):
            raise ValueError(
                f"the exported file disagrees with the model on {batch} clouds of {count} points: logits differ by "
                f"{difference:.3g}; expected at most {allowed:.3g} and equal labels"
            )
        worst = max(worst, difference)
    return worst
