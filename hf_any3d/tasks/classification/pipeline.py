"""`pipeline("point-cloud-classification")`: labels of point clouds."""

from hf_any3d.tasks.base import PointCloudPipeline
from hf_any3d.tasks.classification.steps import ClassificationSteps


class PointCloudClassificationPipeline(ClassificationSteps, PointCloudPipeline):
    """Classify point clouds.

    Takes clouds as all pipelines do, see `PointCloudPipeline`. Returns, for each cloud, a list of
    `{"label": …, "score": …}`, the highest score first. If the model has an unknown score, each also has
    `"unknown"`, from 0 to 1: the higher, the less the cloud is like those of the training. Above 0.5 the list is a
    single entry whose label is None, with the score of the best class, if the model's config states how many known
    clouds that happens to (`config.unknown.share`). Of a regression it has all numbers as scores, in the order of the
    labels, whatever `top_k`.

    Arguments of a call:

    - `top_k`: number of labels to return, 1 by default; None returns all.
    - `function_to_apply`: function from logits to scores: "softmax", "sigmoid" or "none". By default that of the
      config's `problem_type`, as in the classification pipelines of transformers: none for regression, sigmoid for
      multiple labels and for a single label, else softmax.
    - `votes`: classify by the mean logits of this many copies of each cloud, stretched along the axes by 0.8 to 1.25
      at most; the first copy is the cloud itself. Takes as many times as long.
    - `unknown`: False for the labels alone, as of a model without an unknown score.
    - `one_sided`: True for an entry `"one_sided"` too, from 0 to 1: above 0.5 the cloud looks as if it was seen from
      one side, unlike those of the training. Models of few scans know.
    - `keep_labels`: True for the labels of a cloud that is none of them, too, after the entry whose label is None.

    Example:
        ```python
        classify = pipeline("point-cloud-classification", model="me/any2point-scanobjectnn")
        classify("chair.ply")
        classify(["chair.ply", "lamp.stl"], top_k=3, batch_size=16)
        ```
    """
