"""Poses in which a model sees single objects: with the direction up that was up in its training.

The direction comes from whoever asks, from the file, or from what the cloud looks like, in this order. Where a cloud
does not show it clearly, a classifier sees each direction that may be up, and answers about the one that is likeliest
by its own scores, too. The answer tells whether it depends on the direction.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import wraps
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from hf_any3d.data.options import one_of
from hf_any3d.modeling.layers.boxes import UP_AXES
from hf_any3d.processing.point_clouds import PointCloudProcessor

SOURCES = ("training", "given", "file", "found", "unsure")
"""Who says which direction is up: nobody, and it is taken for that of the training; whoever asks; the file; the cloud;
or nobody, as the cloud looks upright in several."""
TRAINING, GIVEN, FILE, FOUND, UNSURE = range(len(SOURCES))
UPRIGHT, ANY = "upright", "any"
"""Values of `expected_pose` in configs."""
SURE_FROM, LEAST = 0.8, 0.05
"""Probability from which on a direction is taken without a look at the others, and below which it is not tried
(`studies/results/up_direction.md`)."""
_OPEN = -1


def stated_direction(given: str | None, stated: str | None, config: Any) -> tuple[str | None, dict[str, Tensor]]:
    """Return the direction that is up in a cloud, and what goes with its points to `Poses.of`.

    Args:
        given: By whoever asks.
        stated: By the file.
        config: Of the model.

    Returns:
        One of `UP_AXES`, None if nothing is to be turned before the model; and tensors `(1,)`.
    """
    pose = one_of("expected_pose", getattr(config, "expected_pose", None), (None, UPRIGHT, ANY))
    direction = None
    source = TRAINING
    if given is not None:
        direction = one_of("up_axis", given, UP_AXES)
        source = GIVEN
    elif pose == ANY:
        pass
    elif stated is not None:
        direction = stated
        source = FILE
    number = UP_AXES.index(direction) if direction is not None else _OPEN
    return direction, {"up_axis": torch.tensor([number]), "up_source": torch.tensor([source])}


@dataclass
class Poses:
    """Clouds in all poses that a model is to see.

    Attributes:
        points: `(poses, points, channels)`.
        cloud: `(poses,)` number of the cloud.
        direction: `(poses,)` which of `UP_AXES` is up, by the axes of the file.
        share: `(poses,)` probability of that direction.
        weight: `(poses,)` in the answer about a cloud, which sum to 1; 0 for all but the likeliest direction.
        up_axis: `(clouds,)` the likeliest direction, by the axes of the file.
        source: `(clouds,)` index in `SOURCES`.
    """

    points: Tensor
    cloud: Tensor
    direction: Tensor
    share: Tensor
    weight: Tensor
    up_axis: Tensor
    source: Tensor

    @classmethod
    def of(
        cls, inputs: dict[str, Any], config: Any, processor: PointCloudProcessor, *, likeliest: bool = False
    ) -> Poses:
        """Take points `(clouds, points, channels)`, and what `stated_direction` returned of them, out of inputs.

        With `likeliest` each cloud has one pose.
        """
        points = inputs.pop("points")
        count = len(points)
        own = UP_AXES.index(processor.up_axis)
        # Points that did not come through a processor are as in the training.
        up_axis = inputs.pop("up_axis", torch.full((count,), _OPEN)).cpu().clone()
        source = inputs.pop("up_source", torch.full((count,), TRAINING)).cpu().clone()
        # Turned behind the processor, clouds are as if before it only where it moves their mean to the origin.
        can_turn = processor.center is True
        is_upright = getattr(config, "expected_pose", None) == UPRIGHT and can_turn
        is_open = (up_axis == _OPEN) & is_upright
        headings = (getattr(config, "averaged_headings", None) or 1) if can_turn else 1
        in_file = _directions_in_file(processor)
        up_axis[up_axis == _OPEN] = in_file[own]
        if likeliest:
            headings = 1
        if headings == 1 and not is_open.any():
            every = torch.arange(count)
            return cls(points, every, up_axis, torch.ones(count), torch.ones(count), up_axis, source)
        from hf_any3d.modeling.act.up_direction import quarter_turns, up_probabilities

        turns = quarter_turns(processor.up_axis)
        clouds = []
        poses = []
        directions = []
        shares = []
        weights = []
        for number, cloud in enumerate(points):
            best = own
            tried = {own: 1.0}  # what is stated has been turned by the processor
            if is_open[number]:
                probabilities = up_probabilities(cloud[None])[0]
                best = int(probabilities.argmax())
                is_sure = bool(probabilities[best] >= SURE_FROM)
                up_axis[number] = in_file[best]
                source[number] = FOUND if is_sure else UNSURE
                chosen = [best] if is_sure or likeliest else (probabilities >= LEAST).nonzero()[:, 0].tolist()
                tried = {one: float(probabilities[one]) for one in chosen}
            for direction, share in tried.items():
                for turn in turns[direction, :headings]:
                    poses.append(_turned(cloud, turn, processor))
                    clouds.append(number)
                    directions.append(in_file[direction])
                    shares.append(share)
                    weights.append(1 / headings if direction == best else 0.0)
        return cls(
            torch.stack(poses),
            torch.tensor(clouds),
            torch.tensor(directions),
            torch.tensor(shares),
            torch.tensor(weights),
            up_axis,
            source,
        )

    @property
    def are_clouds(self) -> bool:
        """True if each cloud has one pose."""
        return len(self.cloud) == len(self.up_axis)

    def mean(self, values: Tensor) -> Tensor:
        """Return the means over the headings of each cloud: `(poses, …)` to `(clouds, …)`."""
        if self.are_clouds:
            return values
        weight = self.weight.to(values.device, torch.float32).view(-1, *[1] * (values.ndim - 1))
        means = torch.zeros(len(self.up_axis), *values.shape[1:], device=values.device)
        return means.index_add_(0, self.cloud.to(values.device), weight * values.float())

    def told(self) -> dict[str, Tensor]:
        """Return what answers tell of the direction, `(clouds,)` each."""
        return {"up_axis": self.up_axis, "up_source": self.source}

    def settle(self, scores: Tensor) -> tuple[Tensor, Tensor]:
        """Choose the direction of each cloud with which it is likeliest both upright and of one of the classes.

        Args:
            scores: `(poses, labels)` probabilities.

        Returns:
            `(clouds, labels)` their means over the headings of that direction; and `(clouds,)` the likeliest other
            direction with another label where the cloud does not show clearly which one is up, -1 elsewhere.
        """
        others = torch.full_like(self.up_axis, _OPEN)
        for number in (self.source == UNSURE).nonzero()[:, 0].tolist():
            is_own = self.cloud == number
            labels = {}
            joint = {}
            for direction in self.direction[is_own].unique().tolist():
                of_direction = is_own & (self.direction == direction)
                highest = scores[of_direction.to(scores.device)].float().mean(dim=0).max(dim=0)
                labels[direction] = int(highest.indices)
                joint[direction] = float(self.share[of_direction][0]) * float(highest.values)
            best = max(joint, key=lambda direction: joint[direction])
            self.up_axis[number] = best
            self.weight[is_own] = 0.0
            is_best = is_own & (self.direction == best)
            self.weight[is_best] = 1 / float(is_best.sum())
            if joint[best] >= SURE_FROM * sum(joint.values()):
                self.source[number] = FOUND
                continue
            differ = [direction for direction, label in labels.items() if label != labels[best]]
            others[number] = max(differ, key=lambda direction: joint[direction], default=_OPEN)
        return self.mean(scores), others


def _directions_in_file(processor: PointCloudProcessor) -> list[int]:
    """Return which of `UP_AXES` each of them is in a file whose axes the processor may exchange."""
    found = []
    for direction in UP_AXES:
        axis = "xyz".index(direction.removeprefix("-"))
        found.append(UP_AXES.index(direction[:-1] + processor.axes[axis]))
    return found


def _turned(cloud: Tensor, turn: Tensor, processor: PointCloudProcessor) -> Tensor:
    """Turn a cloud `(points, channels)`, and its normals, by a rotation `(3, 3)`."""
    turn = turn.to(cloud)
    changed = cloud.clone()
    starts = [0]
    channel = 3
    for name in processor.features[1:]:
        if name == "normals":
            starts.append(channel)
        channel += 3 if name in ("normals", "rgb") else 1
    for start in starts:
        changed[:, start : start + 3] = cloud[:, start : start + 3] @ turn.T
    return changed


def answer_as_pipeline(model: Any, processor: PointCloudProcessor, up_axis: str | None = None) -> None:
    """Let a classifier see clouds in the poses in which its pipeline does, for evaluation.

    Args:
        model: A classifier; without a direction, one that expects no pose stays as it is.
        processor: Its processor, which has prepared the clouds without an up axis.
        up_axis: The direction that is up in all clouds; by default that which each looks like.

    Raises:
        ValueError: A direction for a processor that does not center clouds, which are turned behind it.
    """
    config = model.config
    is_single = getattr(config, "problem_type", None) in (None, "single_label_classification")
    has_poses = getattr(config, "expected_pose", None) == UPRIGHT and is_single
    if not has_poses and up_axis is None:
        return
    if up_axis is not None and processor.center is not True:
        raise ValueError(f"up_axis={up_axis!r} for a processor with center={processor.center!r}; turn the files first")
    forward = model.forward

    @wraps(forward)
    def in_poses(points: Tensor, labels: Tensor | None = None, **arguments: Any) -> Any:
        inputs: dict[str, Any] = {"points": points}
        if up_axis is not None:
            from hf_any3d.modeling.act.up_direction import quarter_turns

            direction = UP_AXES.index(up_axis)
            turn = quarter_turns(processor.up_axis)[_directions_in_file(processor).index(direction), 0]
            inputs["points"] = torch.stack([_turned(cloud, turn, processor) for cloud in points])
            inputs["up_axis"] = torch.full((len(points),), direction)
        if not has_poses:
            return forward(points=inputs["points"], labels=labels, **arguments)
        poses = Poses.of(inputs, config, processor)
        output = forward(points=poses.points, **arguments)
        scores, _ = poses.settle(output.logits.float().softmax(dim=-1))
        logits = scores.log()
        loss = None if labels is None else nn.functional.cross_entropy(logits, labels)
        further = {name: poses.mean(output[name]) for name in ("unknown", "one_sided") if name in output}
        return type(output)(loss=loss, logits=logits, **further)

    model.forward = in_poses


def direction_of_object(points: np.ndarray) -> str | None:
    """Return which direction is up in a single object `(points, 3)` as it looks, None where it is not shown clearly.

    One of `UP_AXES`, for whoever shows a file that does not state it.
    """
    from hf_any3d.modeling.act.up_direction import POINTS, up_probabilities

    chosen = np.random.default_rng(0).permutation(len(points))[:POINTS]
    cloud = points[chosen] - points.mean(axis=0)  # in double precision, as coordinates of maps are large
    probabilities = up_probabilities(torch.from_numpy(cloud.astype(np.float32))[None])[0]
    best = int(probabilities.argmax())
    return UP_AXES[best] if probabilities[best] >= SURE_FROM else None


def told_in_words(outputs: dict[str, Any], *, other_axis: bool = False) -> dict[str, str]:
    """Return `up_axis` and `up_source` of the answer about one cloud; nothing where no direction is known.

    With `other_axis`, also a direction that may be up as well and changes the label, if there is one.
    """
    if "up_axis" not in outputs or int(outputs["up_source"][0]) == TRAINING:
        return {}
    told = {"up_axis": UP_AXES[int(outputs["up_axis"][0])], "up_source": SOURCES[int(outputs["up_source"][0])]}
    if other_axis and "other_axis" in outputs and int(outputs["other_axis"][0]) != _OPEN:
        told["other_axis"] = UP_AXES[int(outputs["other_axis"][0])]
    return told
