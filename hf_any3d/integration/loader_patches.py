"""Changes to the loaders of accelerate, as in `hf_any3d.integration.patches`: rows learn its epoch."""

from collections.abc import Callable
from typing import Any

from torch.utils.data import SequentialSampler

from hf_any3d.data.epochs import rows_with_epoch
from hf_any3d.integration.patches import Patch, apply_patches_of


def apply_loader_patches() -> None:
    """Apply the patches of loaders."""
    apply_patches_of(__name__)


@Patch(
    ("accelerate.data_loader:DataLoaderShard.set_epoch", "accelerate.data_loader:DataLoaderDispatcher.set_epoch"),
    "tells the epoch to a sampler or to the dataset, never to both: in several processes, and in the epoch that a run "
    "is resumed in, to the sampler alone; and to no dataset within another, such as a Subset",
)
def _tell_rows(original: Callable, self: Any, epoch: int) -> None:
    rows = rows_with_epoch(self.dataset)
    before = [part.epoch for part in rows]
    original(self, epoch)
    sampler = self.batch_sampler
    while hasattr(sampler, "batch_sampler"):  # of one that skips or divides batches
        sampler = sampler.batch_sampler
    # An evaluation counts its own epochs, perhaps within one of the training; Trainer seeds no workers for it.
    is_in_order = isinstance(getattr(sampler, "sampler", None), SequentialSampler)
    is_evaluation = is_in_order and getattr(self, "worker_init_fn", None) is None
    for part, last in zip(rows, before, strict=True):
        if not is_evaluation:
            part.is_trained_on = True
        elif getattr(part, "is_trained_on", False):
            part.epoch = last
            continue
        if hasattr(part, "set_epoch"):
            part.set_epoch(epoch)
        elif not is_evaluation:
            part.epoch = epoch
