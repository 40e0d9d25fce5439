"""Changes to Trainer, as in `hf_any3d.integration.patches`: this module is imported when `transformers.trainer` is."""

from collections.abc import Callable
from typing import Any

import torch
from accelerate.state import AcceleratorState
from accelerate.utils import DistributedType
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_pt_utils import LabelSmoother
from transformers.trainer_utils import has_length

from hf_any3d.integration.patches import Patch, apply_patches_of, is_ours
from hf_any3d.integration.peft_patches import PointCloudPeftModel


def apply_trainer_patches() -> None:
    """Apply the patch of Trainer."""
    apply_patches_of(__name__)


class BestAdaptersCallback(TrainerCallback):
    """At the end of a training that loads the best checkpoint, load every adapter of one of our models from it.

    Trainer loads the active adapter, and only from a checkpoint that holds one called default.
    """

    def on_train_end(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        model: torch.nn.Module | None = None,
        **kwargs: Any,
    ) -> None:
        """Load the adapters; where weights are split over processes, Trainer has loaded them in its own way."""
        if not isinstance(model, PointCloudPeftModel):
            return
        is_split = AcceleratorState().distributed_type in (DistributedType.DEEPSPEED, DistributedType.FSDP)
        if not args.load_best_model_at_end or state.best_model_checkpoint is None or is_split:
            return
        for name in model.peft_config:
            model.load_adapter(state.best_model_checkpoint, name)


@Patch(
    ("transformers.trainer:Trainer.compute_loss",),
    "to smooth labels, replaces any loss by the cross-entropy of the logits, does not say that nothing is trained, "
    "has no callback for the best weights of adapters with names of their own, and resumes with other rows of a "
    "stream that has ended before",
)
def _keep_the_objective(
    original: Callable, self: Any, model: torch.nn.Module, inputs: dict[str, Any], *args: Any, **kwargs: Any
) -> Any:
    if not is_ours(self.accelerator.unwrap_model(self.model, keep_torch_compile=False)):
        return original(self, model, inputs, *args, **kwargs)
    if not any(isinstance(callback, BestAdaptersCallback) for callback in self.callback_handler.callbacks):
        self.add_callback(BestAdaptersCallback)
    _refuse_passes_of_streams(self)
    # Once in a training, by the first batch with labels.
    if self.label_smoother is not None and "labels" in inputs and not hasattr(self, "_checked_smoothing"):
        self.label_smoother = _Smoother(self.label_smoother.epsilon, self.label_smoother.ignore_index)
        losses = _losses_without_smoothing(self, original, model, inputs)
        if not torch.allclose(*losses, rtol=1e-2, atol=1e-3):
            raise ValueError(
                f"--label_smoothing_factor {self.args.label_smoothing_factor}: the loss of this model is not "
                "the cross-entropy of its logits, which Trainer would replace it by; expected 0"
            )
        self._checked_smoothing = True
    computed = original(self, model, inputs, *args, **kwargs)
    loss = computed[0] if isinstance(computed, tuple) else computed
    if model.training and torch.is_grad_enabled() and not loss.requires_grad:
        raise ValueError(
            f"nothing in the {type(model).__name__} is trained; set requires_grad, or open a stored adapter for "
            "training with AutoPeftModel.from_pretrained(directory, is_trainable=True)"
        )
    return computed


def _refuse_passes_of_streams(trainer: Any) -> None:
    """Refuse the first step of a run that is resumed in a later pass of a stream: Trainer counts steps alone."""
    loader = trainer.callback_handler.train_dataloader
    start = getattr(trainer, "_initial_global_step", 0)
    is_first = 0 < start == trainer.state.global_step and not trainer.args.ignore_data_skip
    # The loader that skips what was seen has ended before, so that Trainer went on to another.
    if is_first and not has_length(loader) and getattr(loader, "iteration", 0) > 0:
        raise ValueError(
            f"a pass of the stream ends before step {start}, and Trainer does not know in which it was; give rows of "
            "dataset.repeat(None) and start again, or go on with other rows by ignore_data_skip=True"
        )


class _Smoother(LabelSmoother):
    """Smooths the labels alone, and keeps what a model adds to their loss."""

    def __call__(self, model_output: Any, labels: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        loss = super().__call__(model_output, labels, *args, **kwargs)
        added = model_output.get("auxiliary_loss") if isinstance(model_output, dict) else None
        if added is None:
            return loss
        # The share of this part in the mean over all of a larger batch, as that of the labels.
        items = kwargs.get("num_items_in_batch")
        return loss + (added if items is None else added * (labels != self.ignore_index).sum() / items)


def _losses_without_smoothing(
    trainer: Any, compute_loss: Callable, model: torch.nn.Module, inputs: dict[str, Any]
) -> list[torch.Tensor]:
    """Return the loss of a batch, and the one that a Trainer would smooth, both without dropout."""
    smoother = trainer.label_smoother
    is_training = model.training
    losses = []
    model.eval()
    try:
        with torch.no_grad():
            # Not 0: classes that a category excludes have an infinite share, which would go unnoticed.
            for other in (None, type(smoother)(epsilon=1e-6)):
                trainer.label_smoother = other
                loss, outputs = compute_loss(trainer, model, dict(inputs), return_outputs=True)
                # What is added to the loss of the labels is kept in any case; see `_Smoother`.
                added = outputs.get("auxiliary_loss") if isinstance(outputs, dict) else None
                losses.append((loss if added is None else loss - added).float())
    except (AttributeError, KeyError):  # labels in lists, or no `logits`
        if not losses:
            raise
        # NaN is close to nothing, so the losses count as different.
        losses.append(torch.full_like(losses[0], torch.nan))
    finally:
        trainer.label_smoother = smoother
        model.train(is_training)
    return losses
