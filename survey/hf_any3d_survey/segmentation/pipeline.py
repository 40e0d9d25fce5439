"""`pipeline("point-cloud-segmentation")` of models on local features: any number of points, in parts of a scan."""

from __future__ import annotations

from typing import Any

from hf_any3d.tasks.base import specialize
from hf_any3d.tasks.segmentation.pipeline import PointCloudSegmentationPipeline
from hf_any3d_survey.local_features import LocalFeaturesConfig
from hf_any3d_survey.segmentation.steps import LocalFeaturesSteps


class LocalFeaturesSegmentationPipeline(LocalFeaturesSteps, PointCloudSegmentationPipeline):
    """Label every point by its surroundings; answers have `unknown (points,)` if the model has such a score.

    A scan is labeled in parts with a margin, as wide as what the features of a point take, so that answers do not
    depend on where it is cut, but for rounding. On CPUs parts, or pieces of a single one, are labeled in as many
    threads as torch may use, with the same answers for any number. Faces and vertices of a mesh are labeled where they
    are: its answer has `face_labels (faces,)` and `vertex_labels (vertices,)` beside the labels of points on its
    surface.

    Besides the arguments of `PointCloudSegmentationPipeline`, `none_of_these=True` gives points that are unlike all
    that was learned, by a level that was found at training, a label after the last, "none of these": what LAS calls
    never classified. `noise=True` gives points far below the ground that no others support, such as reflections, and
    lone ones far above it, such as birds, the label "noise", 7 in LAS. Without it, an answer with such points has
    `noise (points,)`, their labels are those of points nearby, and copies of the file keep their class. `adapt=True`
    learns once more for each scan, from its own points of which the model is sure and from learned points that are
    stored with it: better where a place is unlike the learned ones, and slower by a second pass and some seconds of
    training; `unknown` stays as it was. Of a place, points far from all others, such as zeros beside coordinates of a
    map, are noise, too, and change no other answer: `far (points,)` says which they are. Its withheld points are left
    out with a warning: `withheld (points,)` says which they are, and copies keep their class. `unit`, "meters", "feet"
    or "us-feet", is that of files that say none.
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
        """Iterate over the answers; scans have different sizes, and are labeled one by one."""
        settings = preprocess_params, forward_params, postprocess_params
        return (self.run_single(cloud, *settings) for cloud in inputs)


specialize(PointCloudSegmentationPipeline, LocalFeaturesConfig.model_type, LocalFeaturesSegmentationPipeline)
