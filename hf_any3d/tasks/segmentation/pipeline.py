"""`pipeline("point-cloud-segmentation")`: a label for every point."""

from typing import Any

from transformers.pipelines.base import ChunkPipeline

from hf_any3d.tasks.base import PointCloudPipeline
from hf_any3d.tasks.segmentation.steps import SegmentationSteps


class PointCloudSegmentationPipeline(SegmentationSteps, PointCloudPipeline, ChunkPipeline):
    """Label every point with the object or part that it belongs to.

    Takes clouds as all pipelines do, see `PointCloudPipeline`. Clouds may have any number of points: the model
    processes them in blocks of the processor's size, and logits of overlapping blocks are averaged. A single cloud
    needs 8 bytes for each point and label, on disk if that is more than 1 GB, whatever the number of blocks. Returns,
    for each cloud, a dict:

    - `points (points, 3)` of the input, and `labels (points,)`, their class numbers,
    - `scores (points,)`, the probabilities of these classes,
    - `segments`, for each class that occurs `{"label": its name, "score": mean probability, "mask": (points,) bool}`,
      the largest first.

    Arguments of a call:

    - `category`: name or number of the object's category, required by part segmentation models with more than one
      category; a dataset row may contain it as `category` or `label`. It determines the possible parts and is an input
      of the model; a wrong category gives wrong parts with high scores.
    - `up_axis`: the axis that points up in the clouds, "x", "y" or "z"; the model sees them
      turned to the axis of its training. Points of the answer are those of the input.
    - `votes`: for voxel models with a test procedure, segment each cloud in several views and fragments that together
      have every point in each view, and take the class with the highest sum of probabilities: the procedure by which
      the figures of Point Transformer V3 were measured; tens of times slower.
    - `max_points`: thin larger clouds out to this many random points, whose labels and scores the others get from the
      nearest one; much faster for dense scans.
    - `write`: also write a copy of the file, in which only the class of each point changed: a path with the file's
      ending (or .las for .laz and the other way round), or a folder for copies with the files' names. Vertices and
      faces of meshes get the class of the nearest sample. What a format cannot hold is an error before the model runs.
      `field` names another place for the class than the format's own, `classes` the codes of classes, such as
      `{"ground": 2, "building": 6}`, `write_scores` adds the probability of each class, and `write_unknown`, for
      models that say so, how unlike the training each point is; see `write_labels`.
    - `output_dir`: also write each cloud to this directory, colored by label, named after its file or `cloud-0`, ….
    - `formats`: output formats: "ply", "html" (an interactive page that works offline) and "obj"; by default the first
      two.

    Example:
        ```python
        segment = pipeline("point-cloud-segmentation", model="me/any2point-parts")
        answer = segment("chair.ply", category="chair", output_dir="segmented")
        [(part["label"], part["mask"].sum()) for part in answer["segments"]]
        ```
    """

    def get_iterator(
        self,
        inputs: Any,
        num_workers: int,
        batch_size: int,
        preprocess_params: dict,
        forward_params: dict,
        postprocess_params: dict,
    ) -> Any:
        """Iterate over the answers; many clouds share batches, and a single one is labeled by `run_single`."""
        settings = preprocess_params, forward_params, postprocess_params
        # Many clouds are a dataset here or a generator; a list is what transformers puts a single one into.
        if isinstance(inputs, list):
            return iter([self.run_single(cloud, *settings) for cloud in inputs])
        return super().get_iterator(inputs, num_workers, batch_size, *settings)
