"""What a model card says for each task: what the model does, how it is used, how it is judged."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace


@dataclass(frozen=True)
class CardTask:
    """The task's own pieces of a card.

    Args:
        task: The pipeline's name, also the hub's `pipeline_tag`.
        task_name: The same for readers.
        intro: What the model does; `{count}` classes.
        use: A program with the pipeline `pipe(…)`; `{category}` is a string of Python.
        portions: How clouds are read; `{points}` such as "1024 points".
        logits: A program with `model` and `processor`; `{points}` a number or "points", `{count}` classes.
        verb: What the pipeline is called in the program.
        metrics: Metrics in the order of the table, by their keys in the report; the first one is the main one.
        class_score: What the figure of each class is.
        limits: What the model cannot do, for readers.
        has_classes: Whether the model knows classes.
        as_model: What the program with the model shows.
        factors: Metrics that are no shares, with what they are multiplied by for readers.
        class_factor: The same for the figure of each class; None for a share.
        processor: Class of the processor.
    """

    task: str
    task_name: str
    intro: str
    use: str
    portions: str
    logits: str
    verb: str
    metrics: dict[str, str]
    class_score: str
    limits: str = ""
    has_classes: bool = True
    as_model: str = "As a model with logits"
    factors: Mapping[str, float] = field(default_factory=dict)
    class_factor: float | None = None
    processor: str = "PointCloudProcessor"

    @property
    def auto_class(self) -> str:
        """The auto class of the task."""
        return "AutoModelFor" + self.task.title().replace("-", "")

    def format_metric(self, metric: str, value: float) -> str:
        """A metric as the card shows it."""
        return f"{self.factors[metric] * value:.2f}" if metric in self.factors else f"{100 * value:.1f} %"

    def format_class_score(self, value: float) -> str:
        """The figure of a class as the card shows it."""
        return f"{100 * value:.0f} %" if self.class_factor is None else f"{self.class_factor * value:.1f}"


_CLASSIFICATION = CardTask(
    task="point-cloud-classification",
    task_name="Point cloud classification",
    intro="Names what a 3D point cloud shows: {count} classes.",
    verb="classify",
    use='classify("chair.ply", top_k=3)',
    portions="clouds are brought to {points} in the unit sphere.",
    logits="""logits = model(**processor("chair.ply", return_tensors="pt")).logits  # (1, {count})""",
    metrics={"accuracy": "Accuracy", "mean_class_accuracy": "Mean class accuracy"},
    class_score="accuracy by class",
)
_SCENES = CardTask(
    task="point-cloud-segmentation",
    task_name="Semantic segmentation of point clouds",
    intro="Names the object that each point of a scene belongs to: {count} classes.",
    verb="segment",
    use="""answer = segment("chair.ply", output_dir="segmented")  # also writes a coloured PLY and a page
answer["labels"], [segment["label"] for segment in answer["segments"]]""",
    portions="they are read in overlapping blocks of {points}, and every point gets a label.",
    logits="""logits = model(**processor("chair.ply", return_tensors="pt")).logits  # (1, points, {count})""",
    metrics={"mean_iou": "Mean IoU", "accuracy": "Accuracy of points"},
    class_score="IoU by class",
)
_PARTS = replace(
    _SCENES,
    task_name="Part segmentation of point clouds",
    intro="Names the part of an object that each point belongs to, given the object's category: {count} parts.",
    use="""answer = segment("chair.ply", category={category}, output_dir="segmented")  # also a coloured PLY and a page
answer["labels"], [segment["label"] for segment in answer["segments"]]""",
    portions="they are read in portions of {points}, and every point gets a label.",
    logits="""import torch

inputs = processor("chair.ply", return_tensors="pt")
logits = model(**inputs, category=torch.tensor([0])).logits  # (1, points, {count})""",
    metrics={"instance_miou": "Instance mIoU", "category_miou": "Category mIoU", "accuracy": "Accuracy of points"},
    class_score="IoU by part",
)
_ZERO_SHOT = CardTask(
    task="zero-shot-point-cloud-classification",
    task_name="Zero-shot point cloud classification",
    intro="Says which of some labels, given as words, fits a 3D point cloud; trained on {count} classes.",
    verb="classify",
    use='classify("chair.ply", candidate_labels=["chair", "lamp", "car"])',
    portions="clouds are brought to {points} in the unit sphere.",
    logits="""texts = model.encode_labels(["chair", "lamp", "car"])
logits = model(**processor("chair.ply", return_tensors="pt"), text_embeds=texts).logits_per_point_cloud  # (1, 3)""",
    metrics={
        "unseen_accuracy": "Unseen classes among themselves",
        "unseen_chance": "Chance of that",
        "unseen_among_all": "Unseen among all",
        "seen_accuracy": "Seen among themselves",
        "seen_among_all": "Seen among all",
        "harmonic_mean": "Harmonic mean",
    },
    class_score="accuracy by class, of unseen classes among the unseen, of seen ones among the seen",
    limits="""
## Limits

The text tower is frozen and has never met a point cloud. What its texts have to do with shapes was learned from the
classes above alone; how far that reaches is what the figures for unseen classes say. Between seen and unseen classes
the model leans towards the seen. Scores are shares among the labels given, not probabilities that one is right: some
label always wins.
""",
)
_RECONSTRUCTION = CardTask(
    task="point-cloud-reconstruction",
    task_name="Reconstruction of point clouds from discrete codes",
    intro="Turns a 3D point cloud into discrete codes and back.",
    verb="rebuild",
    use="""answer = rebuild("chair.ply", output_dir="rebuilt")  # also writes a coloured PLY and a page
answer["token_ids"], answer["chamfer_l1"]""",
    portions="clouds are brought to {points} in the unit sphere.",
    logits="""outputs = model(**processor("chair.ply", return_tensors="pt"))
outputs.token_ids, outputs.whole_fine  # (1, groups) codes, (1, points, 3) the cloud from its codes""",
    metrics={"chamfer_l1": "CD-L1 × 1000", "chamfer_l2": "CD-L2 × 1000", "f_score": "F-score"},
    class_score="CD-L1 × 1000 by category",
    limits="""
## Limits

It was made to teach: `ActForPreTraining` distils it into a point transformer. Lower Chamfer distances (CD) are better;
all figures are means over the clouds of each category, then over categories.
""",
    has_classes=False,
    as_model="As a model",
    factors={"chamfer_l1": 1000.0, "chamfer_l2": 1000.0},
    class_factor=1000.0,
)
_FEATURES = CardTask(
    task="point-cloud-feature-extraction",
    task_name="Features of point clouds",
    intro="Reads 3D point clouds, to be fine-tuned or asked for features.",
    verb="extract",
    use='extract("chair.ply")["pooled"]',
    portions="clouds are brought to {points} in the unit sphere.",
    logits="""tokens = model(**processor("chair.ply", return_tensors="pt")).last_hidden_state""",
    metrics={"probe_accuracy": "Accuracy of a linear SVM on frozen features"},
    class_score="accuracy by class",
    has_classes=False,
    as_model="As a model",
)
_CONVERSATION = CardTask(
    task="point-cloud-text-to-text",
    task_name="Conversations about point clouds",
    intro="Answers questions about 3D point clouds with colours, in words.",
    verb="chat",
    use='chat("chair.ply", text="What is this?", max_new_tokens=60)',
    portions="clouds are brought to {points} in the unit sphere.",
    logits="""content = [{{"type": "point_cloud", "path": "chair.ply"}}, {{"type": "text", "text": "What is this?"}}]
inputs = processor.apply_chat_template([{{"role": "user", "content": content}}], tokenize=True)
answer = model.generate(**inputs, max_new_tokens=60)[:, inputs["input_ids"].shape[1] :]
processor.decode_answers(answer)""",
    metrics={"perplexity": "Perplexity of answers"},
    class_score="",
    limits="""
## Limits

Answers can be wrong in any detail, and sound as sure as right ones. The loss counts tokens of reference answers; it
says little about whether what the model writes itself is true.
""",
    has_classes=False,
    as_model="As a model",
    factors={"perplexity": 1.0},
    processor="MiniGPT3DProcessor",
)

TASKS = {
    "classification": _CLASSIFICATION,
    "semantic_segmentation": _SCENES,
    "part_segmentation": _PARTS,
    "zero_shot": _ZERO_SHOT,
    "reconstruction": _RECONSTRUCTION,
    "features": _FEATURES,
    "conversation": _CONVERSATION,
}
"""By the key that a model class names in its `card_info`."""
