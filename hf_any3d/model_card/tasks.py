"""Text of model cards for each task: what the model does, how to use it, how it is evaluated."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace


@dataclass(frozen=True)
class CardTask:
    """Text of a model card that depends on the task."""

    task: str  # the pipeline, and the hub's `pipeline_tag`
    task_name: str  # readable
    intro: str  # what the model does; `{count}` is the number of classes
    use: str  # example with the pipeline; `{category}` is a quoted string
    logits: str  # example with `model` and `processor`; `{count}` is the number of classes
    verb: str  # variable of the pipeline in the example
    metrics: dict[str, str]  # in the order of the table, by their keys in the report; the first is the main one
    portions: str = "clouds are sampled to {points} in the unit sphere."  # `{points}` such as "1024 points"
    class_score: str = "accuracy by class"
    limits: str = ""
    has_classes: bool = True
    # Class that loads a saved model: `{model_class}` is its own, `{base}` the one without a head, None the auto class.
    opens: str | None = None
    factors: Mapping[str, float] = field(default_factory=dict)  # of metrics that are not shares
    class_factor: float | None = None  # of the score of each class; None for a share


_CLASSIFICATION = CardTask(
    task="point-cloud-classification",
    task_name="Point cloud classification",
    intro="Classifies 3D point clouds: {count} classes.",
    verb="classify",
    use='classify("chair.ply", top_k=3)',
    logits="""logits = model(**processor("chair.ply", return_tensors="pt")).logits  # (1, {count})""",
    metrics={"accuracy": "Accuracy", "mean_class_accuracy": "Mean class accuracy"},
)
_SCENES = CardTask(
    task="point-cloud-segmentation",
    task_name="Semantic segmentation of point clouds",
    intro="Labels each point of a scene with the object it belongs to: {count} classes.",
    verb="segment",
    use="""answer = segment("chair.ply", output_dir="segmented")  # also writes a colored PLY and a web page
answer["labels"], [segment["label"] for segment in answer["segments"]]""",
    portions="they are read in overlapping blocks of {points}, and every point gets a label.",
    logits="""logits = model(**processor("chair.ply", return_tensors="pt")).logits  # (1, points, {count})""",
    metrics={"mean_iou": "Mean IoU", "accuracy": "Accuracy of points"},
    class_score="IoU by class",
)
# The possible parts depend on the category, which every example has to name.
PARTS = replace(
    _SCENES,
    task_name="Part segmentation of point clouds",
    intro="Labels each point of an object with its part, given the object's category: {count} parts.",
    use="""answer = segment("chair.ply", category={category}, output_dir="segmented")  # also writes a PLY and a page
answer["labels"], [segment["label"] for segment in answer["segments"]]""",
    portions="they are read in portions of {points}, and every point gets a label.",
    # The model takes numbers of categories, one for each cloud.
    logits="""import torch

inputs = processor("chair.ply", return_tensors="pt")
logits = model(**inputs, category=torch.tensor([0])).logits  # (1, points, {count})""",
    # Means over objects and over categories, of which rare ones count as much as others.
    metrics={"instance_miou": "Instance mIoU", "category_miou": "Category mIoU", "accuracy": "Accuracy of points"},
    class_score="IoU by part",
)
# Of models that learned with some classes, and are judged by classes that they have not seen.
_ZERO_SHOT = CardTask(
    task="zero-shot-point-cloud-classification",
    task_name="Zero-shot point cloud classification",
    intro="Scores how well text labels match a 3D point cloud; trained on {count} classes.",
    verb="classify",
    use='classify("chair.ply", candidate_labels=["chair", "lamp", "car"])',
    logits="""texts = model.encode_labels(["chair", "lamp", "car"])
logits = model(**processor("chair.ply", return_tensors="pt"), text_embeds=texts).logits_per_point_cloud  # (1, 3)""",
    # Each group is judged among its own classes and among all; the harmonic mean is of the accuracies among all.
    metrics={
        "unseen_accuracy": "Unseen classes among themselves",
        "unseen_chance": "Chance level of that",
        "unseen_among_all": "Unseen among all",
        "seen_accuracy": "Seen among themselves",
        "seen_among_all": "Seen among all",
        "harmonic_mean": "Harmonic mean",
    },
    class_score="accuracy by class, of unseen classes among the unseen, of seen classes among the seen",
    limits="""\
The text tower is frozen and was not trained on point clouds. How its texts relate to shapes was learned from the
classes above alone; the metrics of unseen classes show how well that generalizes. Between seen and unseen classes the
model is biased towards the seen. Scores are shares among the labels given, not probabilities that a label is correct.
""",
)
# Of published models that compare clouds with texts.
_ZERO_SHOT_PRETRAINED = replace(
    _ZERO_SHOT,
    intro="Scores how well text labels match a 3D point cloud.",
    metrics={"accuracy": "Accuracy"},
    class_score="accuracy by class",
    limits="""\
Scores are shares among the labels given, not probabilities that a label is correct.
""",
    # Any text may be a label.
    has_classes=False,
)
_PARTS_BY_NAME = replace(
    PARTS,
    task="zero-shot-point-cloud-segmentation",
    task_name="Zero-shot part segmentation of point clouds",
    intro="Segments the parts of a 3D point cloud that text labels name.",
    use="""answer = segment("chair.ply", candidate_labels=["seat", "back", "leg"], output_dir="segmented")
answer["labels"], [segment["label"] for segment in answer["segments"]]""",
    logits="""texts = model.encode_labels(["seat", "back", "leg"])
logits = model(**processor("chair.ply", return_tensors="pt"), text_embeds=texts).logits  # (1, points, 3)""",
    metrics={"instance_miou": "Instance mIoU", "accuracy": "Accuracy of points"},
    class_score="accuracy by class",
    limits="""\
Every point gets one of the labels given, even if it belongs to none of them. Scores are shares among these labels, not
probabilities that a label is correct.
""",
    has_classes=False,
)
_DETECTION = CardTask(
    task="point-cloud-object-detection",
    task_name="Object detection in point clouds",
    intro="Finds objects in 3D scans, and puts a box around each: {count} classes.",
    verb="detect",
    use="""for found in detect("room.ply", threshold=0.5):  # boxes in the frame and units of the file
    found["label"], found["score"], found["box"]["center"], found["box"]["size"], found["box"]["heading"]""",
    # Neither moved nor scaled, as boxes are in the frame and units of the file.
    portions="scans are thinned to {points}.",
    logits="""outputs = model(**processor("room.ply", return_tensors="pt"))
processor.post_process_object_detection(outputs, threshold=0.5)[0]  # boxes, labels and scores""",
    # Overlaps are intersections over unions of boxes.
    metrics={
        "map_25": "mAP at an overlap of 0.25",
        "map_50": "mAP at 0.5",
        "recall_25": "Recall at 0.25",
        "recall_50": "Recall at 0.5",
        "published_map_25": "mAP at 0.25 in the published form",
        "published_map_50": "mAP at 0.5 in the published form",
    },
    class_score="average precision by class, at an overlap of 0.25",
    limits="""\
Scores are not calibrated. mAP is the mean over the classes that have objects; the published form also counts classes \
that only occur among the answers, with 0.
""",
)
_LAYOUT = replace(
    _DETECTION,
    task_name="Layouts of scanned rooms",
    intro="Writes the layout of a scanned room: its walls, doors, windows, and labeled boxes around objects.",
    use="""for found in detect("room.ply", task="all"):  # boxes in the frame and units of the file
    found["label"], found["box"]["center"], found["box"]["size"], found["box"]["heading"]""",
    portions="scans are read whole, in meters, with z up and walls along the axes; up to 32 m.",
    logits="""rooms = processor.read("room.ply")
inputs = processor(rooms, task="layout")
answers = model.generate(**inputs, max_new_tokens=2000, do_sample=False)[:, inputs["input_ids"].shape[1] :]
layout = processor.decode_layouts(answers, rooms)[0]  # walls, doors, windows and boxes""",
    # Not average precision, which needs scores to rank the boxes.
    metrics={"f1_25": "F1 at an overlap of 0.25", "f1_50": "F1 at 0.5"},
    class_score="F1 by class, at an overlap of 0.25",
    limits="""\
It knows the objects that it was trained on, and no others: `CLASSES` of `hf_any3d.processing.rooms` for released \
models. What it writes has no scores, may be incomplete, and is not checked against the scan.
""",
    # Objects are words that the language model writes, and not labels of a head.
    has_classes=False,
    opens="{model_class}",
)
_RECONSTRUCTION = CardTask(
    task="point-cloud-reconstruction",
    task_name="Reconstruction of point clouds from discrete codes",
    intro="Encodes 3D point clouds as discrete codes and reconstructs them.",
    verb="rebuild",
    use="""answer = rebuild("chair.ply", output_dir="rebuilt")  # also writes a colored PLY and a web page
answer["token_ids"], answer["chamfer_l1"]""",
    logits="""outputs = model(**processor("chair.ply", return_tensors="pt"))
outputs.token_ids, outputs.whole_fine  # (1, groups) codes, (1, points, 3) reconstruction""",
    metrics={
        "chamfer_l1": "CD-L1 × 1000",
        "chamfer_l2": "CD-L2 × 1000",
        "f_score": "F-score",
        "codes_used": "Codes in use",
        "code_perplexity": "Perplexity of codes",
    },
    class_score="CD-L1 × 1000 by category",
    opens="{model_class}",
    limits="""\
It is meant as a teacher, which pretraining distils into a point transformer. Lower Chamfer distances (CD) are better;
distances and F-score are means over the clouds of each category, then over categories.
""",
    has_classes=False,
    # Distances in the unit sphere are a few thousandths.
    factors={"chamfer_l1": 1000.0, "chamfer_l2": 1000.0},
    class_factor=1000.0,
)
_FEATURES = CardTask(
    task="point-cloud-feature-extraction",
    task_name="Features of point clouds",
    intro="Extracts features of 3D point clouds; can be fine-tuned.",
    verb="extract",
    use='extract("chair.ply")["pooled"]',
    logits="""tokens = model(**processor("chair.ply", return_tensors="pt")).last_hidden_state""",
    # Features have no accuracy of their own, but that of a simple classifier on them.
    metrics={"probe_accuracy": "Accuracy of a linear SVM on frozen features"},
    opens="{model_class}",
    has_classes=False,
)
_CONVERSATION = CardTask(
    task="point-cloud-text-to-text",
    task_name="Conversations about point clouds",
    intro="Answers questions about colored 3D point clouds.",
    verb="chat",
    use='chat("chair.ply", text="What is this?", max_new_tokens=60)',
    # Doubled braces, as the text is filled in by `format`.
    logits="""content = [{{"type": "point_cloud", "path": "chair.ply"}}, {{"type": "text", "text": "What is this?"}}]
inputs = processor.apply_chat_template([{{"role": "user", "content": content}}], tokenize=True)
answer = model.generate(**inputs, max_new_tokens=60)[:, inputs["input_ids"].shape[1] :]
processor.decode_answers(answer)""",
    metrics={"perplexity": "Perplexity of answers"},
    opens="{model_class}",
    limits="""\
Answers can be wrong in any detail and sound as certain as correct ones. The loss is computed on tokens of reference
answers; it does not measure whether generated answers are true.
""",
    has_classes=False,
    # No share, and printed as it is.
    factors={"perplexity": 1.0},
)

TASKS = {
    "point-cloud-classification": _CLASSIFICATION,
    "point-cloud-feature-extraction": _FEATURES,
    "point-cloud-object-detection": _DETECTION,
    "point-cloud-reconstruction": _RECONSTRUCTION,
    "point-cloud-segmentation": _SCENES,
    "point-cloud-text-to-text": _CONVERSATION,
    "zero-shot-point-cloud-classification": _ZERO_SHOT_PRETRAINED,
    "zero-shot-point-cloud-segmentation": _PARTS_BY_NAME,
    # Until it is trained further, it is of use for its features.
    "pre-training": _FEATURES,
    # It answers with boxes, like a detector, but without scores.
    "room layout": _LAYOUT,
    "surroundings of points": replace(
        _SCENES,
        intro="Labels each point of a scan from its neighborhood: {count} classes.",
        use="""answer = segment("tile.laz", output_dir="segmented")  # also writes a colored PLY and a web page
answer["labels"], [segment["label"] for segment in answer["segments"]]""",
        logits="""logits = model(**processor("tile.laz", return_tensors="pt")).logits  # (1, some points, {count})""",
        portions="neighborhoods span the whole scan; one call of the processor computes features of {points}.",
    ),
    # The student is what is of use after pretraining.
    "distilled student": replace(_FEATURES, opens="{base}"),
    # How its texts relate to shapes was learned from some classes.
    "zero-shot from some classes": _ZERO_SHOT,
}
"""Text by the task of a model class in `hf_any3d.registry`, by the name of a class that needs its own, or by a name
that the record of a model gives for one of its classes (`ModelType.cards`)."""
