"""Let each token of a cloud tell the object that its points are on, as a second loss of SpatialLM's fine-tuning.

A layout says where objects are, but not which points are theirs, and a language model that cannot tell them apart yet
learns little from their numbers. So each token that has points of an object is to tell the words of the object's line,
by a head that is not saved with the model, through the output embeddings of the language model:

    bbox_ 1 =Bbox( chair , 32 , 28 , …    fields: number, label, x, y, z, angle, sizes; of each, its first words

What the language model reads and what it is to write are then alike. Detectors learn from votes of points in the same
way (VoteNet, arXiv 1904.09664, Sec. 4.1).

A language model that starts from scratch still has to find out where to look. A third loss tells it: while it writes
the line of an object, one head of its last layers is to attend to the tokens of that object.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from torch.nn import functional
from transformers import PreTrainedTokenizerBase

from hf_any3d.data.room_voxels import VoxelizedRoom
from hf_any3d.data.scan_frames import turn_about_z
from hf_any3d.modeling.layers.layouts import EXTENT, Box, Layout, number_names
from hf_any3d.processing.rooms import SpatialLMProcessor
from hf_any3d.training.trainer import PointTrainer

WORDS = 4
"""Words of a field that are learned; tokenizers that write numbers by digits need as many."""
FIELDS = 2 + len(number_names(Box))
"""Fields of a box: its number, its label and its numbers."""
_NEAR, _FLOOR, _FEWEST = 0.03, 0.06, 2
"""Meters around a box that count as inside, meters above the floor that do not, and the fewest points of a token."""
_BOTTLENECK = 64
_HEAD_FILE = "object_head.safetensors"


def points_in_box(box: Box, points: np.ndarray, margin: float) -> np.ndarray:
    """Return which points `(points, 3)` are in a box or less than `margin` meters from it, `(points,)` bool."""
    turned = (points - (box.x, box.y, box.z)) @ turn_about_z(box.angle)  # back by the angle of the box
    return np.all(np.abs(turned) <= np.array([box.sx, box.sy, box.sz]) / 2 + margin, axis=1)


def object_targets(
    room: VoxelizedRoom, layout: Layout, processor: SpatialLMProcessor
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the target of each token of a cloud.

    Returns:
        Of the object that most points of the token are on: `(tokens, FIELDS * WORDS)` int64, the ids of the first
        words of each field of its line, -100 where a field has fewer words and for tokens without an object; and
        `(tokens, 6)` float32, its center from that of the token's cell and the sizes of the smallest box along the
        axes around it, in meters; and `(tokens,)` int64, its number among the objects of the answer, -1 for none.
    """
    # (cells, 3) cells of the size of a token, and the token of each voxel
    cells, token = np.unique(room.grid_coord // processor.stride, axis=0, return_inverse=True)
    # In the order of the answer, in which objects are written.
    boxes = room.from_scan(layout).ordered(EXTENT / processor.num_bins).boxes
    points = room.points[:, :3]
    token = token.reshape(-1)
    # One column for each object, and a last one that stands for none.
    counts = np.zeros((len(cells), len(boxes) + 1), dtype=np.int64)
    counts[:, -1] = _FEWEST - 1  # so that a token with fewer points has no object
    numbers = np.zeros((len(boxes) + 1, 6))
    for place, box in enumerate(boxes):
        inside = points_in_box(box, points, _NEAR)
        np.add.at(counts[:, place], token[inside & (points[:, 2] > _FLOOR)], 1)
        # The smallest box along the axes around a turned one.
        sizes = np.abs(turn_about_z(box.angle)) @ (box.sx, box.sy, box.sz)
        numbers[place] = [box.x, box.y, box.z, *sizes]
    lines = Layout(boxes=boxes).quantized(processor.num_bins).write().splitlines()
    none = np.full(FIELDS * WORDS, -100)
    words = np.stack([*(field_words(line, processor.tokenizer) for line in lines), none])
    # The object with most points of a token; the last one stands for none.
    objects = counts.argmax(axis=1)  # (tokens,)
    targets = numbers[objects]  # (tokens, 6)
    # From the center of the token's cell, in meters.
    targets[:, :3] -= (cells + 0.5) * processor.stride * EXTENT / processor.num_bins
    return words[objects], targets.astype(np.float32), np.where(objects < len(boxes), objects, -1)


def field_words(line: str, tokenizer: PreTrainedTokenizerBase) -> np.ndarray:
    """Return the ids `(FIELDS * WORDS,)` of a line of a box; tokenizers have to be fast."""
    encoded = tokenizer(line, add_special_tokens=False, return_offsets_mapping=True)
    words = np.full((FIELDS, WORDS), -100)
    # A word may begin with the comma before its field, so it belongs to the field in which it ends.
    ends = np.array([end for _, end in encoded["offset_mapping"]])
    # Digits before the equals sign are the number; what stands between brackets and commas, label and numbers.
    for number, field in enumerate(re.finditer(r"\d+(?==)|(?<=[(,])[^,)]+", line)):
        ids = np.array(encoded["input_ids"])[(ends > field.start()) & (ends <= field.end())][:WORDS]
        words[number, : len(ids)] = ids
    return words.reshape(-1)


def object_lines(labels: np.ndarray, tokenizer: PreTrainedTokenizerBase) -> np.ndarray:
    """Return the number of the object whose label or numbers are to follow each token, -1 for none.

    Labels `(rows, tokens)` are -100 in all but the answers.
    """
    lines = np.full(labels.shape, -1)
    for row, labels_of_row in enumerate(labels):
        line = ""
        places = np.flatnonzero(labels_of_row != -100)
        # Words are decoded one by one, so that each has a place in the line.
        for place, piece in zip(places, tokenizer.batch_decode(labels_of_row[places][:, None]), strict=True):
            # A line that has begun, and whose closing bracket is still to come.
            if begun := re.match(r"bbox_(\d+)=Bbox\([^)]*$", line):
                lines[row, place - 1] = int(begun[1])  # this token is told by the one before
            # Only what follows the last line break belongs to the line that is being written.
            line = (line + piece).rpartition("\n")[2]
    return lines


def attention_error(
    attentions: tuple[torch.Tensor, ...], places: torch.Tensor, lines: torch.Tensor
) -> torch.Tensor | None:
    """Compute the mean negative logarithm of the attention to the tokens of the objects that are written.

    Args:
        attentions: Weights of the language model, `(rows, heads, tokens, tokens)` of each layer.
        places: `(rows, tokens)`, the number of the object of each token of a cloud, -1 for all others.
        lines: `(rows, tokens)`, see `object_lines`.

    Returns:
        That of the first head of the last two layers; None if no object is written that has tokens.
    """
    # (queries,) rows and tokens that are followed by a part of an object
    row, query = (lines >= 0).nonzero(as_tuple=True)
    is_own = places[row] == lines[row, query][:, None]  # (queries, tokens)
    # Objects without a token of their own have nothing to attend to.
    has_tokens = is_own.any(dim=1)
    if not has_tokens.any():
        return None
    row = row[has_tokens]
    query = query[has_tokens]
    is_own = is_own[has_tokens]
    # (queries,) share of the attention that is on tokens of the object
    shares = [(weights[row, 0, query].float() * is_own).sum(dim=1) for weights in attentions[-2:]]
    # The small constant bounds the loss of a query that attends to nothing of its object.
    return -(torch.stack(shares) + 1e-4).log().mean()


class ObjectHead(nn.Module):
    """Tell whether tokens have an object, the words of its line, and its center and sizes in meters.

    Neighboring bins are different words, so a loss of words alone teaches distances slowly.
    """

    def __init__(self, hidden_size: int):
        super().__init__()
        self.norm = nn.LayerNorm(hidden_size)
        self.has_object = nn.Linear(hidden_size, 2)
        self.down = nn.Linear(hidden_size, FIELDS * WORDS * _BOTTLENECK)
        self.up = nn.Linear(_BOTTLENECK, hidden_size)
        self.box = nn.Linear(hidden_size, 6)

    def forward(
        self, tokens: torch.Tensor, words: torch.Tensor, boxes: torch.Tensor, embeddings: nn.Module
    ) -> torch.Tensor:
        """Compute the loss: the cross-entropies of has-object and of words, and three times the error of boxes.

        Args:
            tokens: `(tokens, hidden_size)`.
            words: `(tokens, FIELDS * WORDS)`, see `object_targets`.
            boxes: `(tokens, 6)`, see the same.
            embeddings: The output embeddings of the language model.
        """
        tokens = self.norm(tokens.float())
        is_told = words != -100
        has_object = is_told.any(dim=1)
        loss = functional.cross_entropy(self.has_object(tokens), has_object.long())
        if not has_object.any():
            return loss
        # Errors below 20 cm count squared.
        loss = loss + 3 * functional.smooth_l1_loss(self.box(tokens[has_object]), boxes[has_object], beta=0.2)
        narrow = self.down(tokens[has_object]).unflatten(1, (FIELDS * WORDS, _BOTTLENECK))
        told = self.up(narrow[is_told[has_object]])  # (told words, hidden)
        # As large as what the last norm of a language model leaves.
        told = functional.rms_norm(told, told.shape[-1:])
        logits = embeddings(told.to(next(embeddings.parameters()).dtype)).float()
        return loss + functional.cross_entropy(logits, words[is_told])


class LayoutTrainer(PointTrainer):
    """Trainer of SpatialLM that adds the loss of an `ObjectHead`, which its checkpoints have but the result has not.

    `object_loss` and `attention_loss` are the weights of that and of `attention_error`. In the first `object_steps`
    steps the objects are the only loss, and the language model is not run.
    """

    def __init__(
        self, *args: Any, object_loss: float = 0.0, object_steps: int = 0, attention_loss: float = 0.0, **kwargs: Any
    ):
        super().__init__(*args, **kwargs)
        self.object_loss = object_loss
        self.object_steps = object_steps
        self.attention_loss = attention_loss
        self.object_head: ObjectHead | None = None
        if object_loss:
            # The head's gradients would not be averaged over the processes.
            if self.args.world_size > 1:
                raise ValueError(f"--object_loss {object_loss} in several processes; expected 0")
            hidden_size = self._bare_model.config.text_config.hidden_size
            self.object_head = ObjectHead(hidden_size).to(self.args.device)
        if attention_loss:
            self._bare_model.language_model.set_attn_implementation("eager")  # no other one returns weights

    def create_optimizer(self, *args: Any, **kwargs: Any) -> torch.optim.Optimizer:
        """Create the optimizer, which trains the head too; see Trainer."""
        # Trainer calls this again for an optimizer that is there, whose group must not be added twice.
        is_new = self.optimizer is None
        optimizer = super().create_optimizer(*args, **kwargs)
        if is_new and self.object_head is not None:
            optimizer.add_param_group({"params": list(self.object_head.parameters()), "weight_decay": 0.0})
            # Trainer forgets the gradients of the model alone.
            optimizer.register_step_post_hook(lambda *_: cast(ObjectHead, self.object_head).zero_grad())
        return optimizer

    def compute_loss(
        self, model: nn.Module, inputs: dict[str, Any], return_outputs: bool = False, **kwargs: Any
    ) -> Any:
        """Compute the loss of a batch, in training with that of the objects; see Trainer."""
        names = ("object_words", "object_boxes", "object_places", "object_lines")
        # Popped, as the model takes none of them.
        *targets, places, lines = (inputs.pop(name, None) for name in names)
        head = self.object_head
        if not model.training or head is None:
            return super().compute_loss(model, inputs, return_outputs, **kwargs)
        # Trainer divides a loss by the batches of a step, unless the model has divided it by the tokens of all.
        share = 1 if kwargs.get("num_items_in_batch") is None else self.current_gradient_accumulation_steps
        weight = self.object_loss / share
        core = self._bare_model
        if self.state.global_step < self.object_steps and not return_outputs:
            features = core.get_point_features(*(inputs[name] for name in core.cloud_inputs))
            return weight * head(torch.cat(features), *targets, core.get_output_embeddings())
        if self.attention_loss:
            inputs["output_attentions"] = True
        loss, outputs = super().compute_loss(model, inputs, True, **kwargs)
        loss = loss + weight * head(torch.cat(outputs.point_features), *targets, core.get_output_embeddings())
        if self.attention_loss:
            of_tokens = torch.full_like(inputs["input_ids"], -1)
            # (rows, tokens) objects of the tokens of clouds, which follow each other as in `places`
            of_tokens[inputs["input_ids"] == core.config.point_token_id] = places
            error = attention_error(outputs.attentions, of_tokens, lines)
            loss = loss if error is None else loss + self.attention_loss / share * error
        return (loss, outputs) if return_outputs else loss

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Any] | None = None) -> None:
        super()._save(output_dir, state_dict)
        folder = Path(self.args.output_dir if output_dir is None else output_dir)
        # The folder of the result has no head: it is no part of the model.
        if self.object_head is not None and folder.resolve() != Path(self.args.output_dir).resolve():
            save_file(self.object_head.state_dict(), folder / _HEAD_FILE)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        super()._load_from_checkpoint(resume_from_checkpoint, model)
        if self.object_head is not None:
            # Missing if the run was started without --object_loss.
            self.object_head.load_state_dict(load_file(Path(resume_from_checkpoint) / _HEAD_FILE))
