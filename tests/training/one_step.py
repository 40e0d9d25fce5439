"""One optimizer step of Trainer on sixteen clouds, with its gradient norm."""

import torch
from peft import get_peft_model
from torch import nn
from transformers import Trainer, TrainerCallback, TrainingArguments

from hf_any3d import Any2PointForPointCloudClassification
from hf_any3d.data import PointCloudCollator
from hf_any3d.training.peft_methods import build_peft_config

CLOUDS = 16


class Gradient(TrainerCallback):
    """Record the gradient before the optimizer uses it."""

    def on_pre_optimizer_step(self, args, state, control, model=None, **kwargs):
        model = getattr(model, "module", model)
        gradients = [p.grad.norm() for p in model.parameters() if p.grad is not None]
        self.norm = float(torch.stack(gradients).norm())


def one_step(encoder: str, peft: str, accumulation_steps: int, output_dir: str) -> dict:
    """Take a step over all clouds, split into accumulation steps and processes."""
    torch.manual_seed(0)
    model = Any2PointForPointCloudClassification.from_encoder_pretrained(
        encoder, num_labels=4, num_tokens=8, tokenizer_neighbors=4
    )
    model = adapted(model, peft)
    hold_still(model)
    generator = torch.Generator().manual_seed(0)
    labels = [-100 if i in (1, 2, 3, 9) else i % 4 for i in range(CLOUDS)]
    rows = [{"points": torch.rand(32, 3, generator=generator).numpy() - 0.5, "label": label} for label in labels]
    arguments = TrainingArguments(
        output_dir,
        max_steps=1,
        gradient_accumulation_steps=accumulation_steps,
        train_sampling_strategy="sequential",
        max_grad_norm=0.0,
        learning_rate=1e-3,
        logging_steps=1,
        label_names=["labels"],
        remove_unused_columns=False,
        save_strategy="no",
        report_to="none",
        use_cpu=True,
        disable_tqdm=True,
    )
    arguments.per_device_train_batch_size = CLOUDS // (accumulation_steps * arguments.world_size)
    gradient = Gradient()
    trainer = Trainer(model, arguments, train_dataset=rows, data_collator=PointCloudCollator(), callbacks=[gradient])
    loss = trainer.train().training_loss
    return {"world_size": arguments.world_size, "gradient_norm": gradient.norm, "loss": loss}


def adapted(model: nn.Module, peft: str) -> nn.Module:
    if peft == "none":
        return model
    torch.manual_seed(1)
    return get_peft_model(model, build_peft_config(peft, model))


def hold_still(model: nn.Module) -> None:
    """Keep a model in eval mode even in Trainer.

    Dropout draws other masks, and batch norm in training mode takes other means, when sixteen clouds come in pieces;
    then gradients differ for good reasons, which would hide the one that is looked for.
    """
    model.eval()
    model.train = lambda mode=True: model
