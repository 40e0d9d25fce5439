"""`pipeline("point-cloud-reconstruction")`: codes and reconstructions of point clouds."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from hf_any3d.data.files import PointCloudData, write_point_cloud
from hf_any3d.modeling.config_checks import check_numbers
from hf_any3d.modeling.point_ops import reconstruction_scores
from hf_any3d.tasks.base import PointCloudPipeline
from hf_any3d.tasks.steps import check_formats, refuse_non_finite, refuse_unknown, without_none
from hf_any3d.visualization.reconstruction import write_reconstructions
from hf_any3d.visualization.viewer import label_colors

FORMATS = ("ply", "html")
FILES, VIEWS = ("ply", "obj", "npz"), ("html", "png")


class PointCloudReconstructionPipeline(PointCloudPipeline):
    """Encode point clouds as discrete codes with an autoencoder, and reconstruct them.

    Takes clouds as all pipelines do, see `PointCloudPipeline`. Returns, for each cloud, a dict. All coordinates are
    those of the processed cloud, which is usually centered and scaled to the unit sphere:

    - `points (num_points, 3)`, the input of the model,
    - `reconstruction (groups * group_size, 3)`, the points of all patches, patch by patch, and `coarse`, the same with
      a quarter of the points,
    - `centers (groups, 3)` of the patches, and `token_ids (groups,)`, their codes,
    - `chamfer_l1`, `chamfer_l2` and `f_score` of `reconstruction` against `points`, see
      `hf_any3d.modeling.point_ops.reconstruction_scores`.

    Arguments of a call:

    - `threshold`: distance up to which points match in the F-score; 0.01 by default.
    - `output_dir`: also write each reconstruction to this directory, named after its file, else `cloud-0`, ….
    - `formats`: output formats. "ply", "obj" and "npz" contain the reconstruction, colored by patch, in PLY and NPZ
      with the codes as labels; "html" (an interactive page that works offline) and "png" show it next to the input. By
      default "ply" and "html".

    Example:
        ```python
        reconstruct = pipeline("point-cloud-reconstruction", model="me/act-autoencoder")
        answer = reconstruct("chair.ply", output_dir="reconstructed")
        answer["chamfer_l1"], answer["token_ids"]
        ```
    """

    def _sanitize_parameters(
        self,
        threshold: float | None = None,
        output_dir: str | os.PathLike | None = None,
        formats: Sequence[str] | str | None = None,
        estimate_normals: bool | None = None,
        **kwargs: Any,
    ) -> tuple[dict, dict, dict]:
        refuse_unknown(kwargs, "threshold, output_dir, formats, estimate_normals")
        formats = check_formats(formats, FILES + VIEWS)
        check_numbers(0, above=True, threshold=threshold)
        before = without_none(estimate_normals=estimate_normals)
        return before, {}, without_none(threshold=threshold, output_dir=output_dir, formats=formats)

    def _forward(self, model_inputs: dict[str, Any]) -> dict[str, Any]:
        points = model_inputs["points"]
        # A loss is of use only for training.
        output = self.model(points=points, return_loss=False)
        return {
            # Colors are no part of a reconstruction.
            "points": points[..., :3],
            "reconstruction": output.whole_fine,
            "coarse": output.whole_coarse,
            "centers": output.centers,
            "token_ids": output.token_ids,
            "stem": model_inputs["stem"],
        }

    def postprocess(
        self,
        outputs: dict[str, Any],
        threshold: float = 0.01,
        output_dir: str | os.PathLike | None = None,
        formats: list[str] | tuple[str, ...] = FORMATS,
    ) -> dict[str, Any]:
        """Convert tensors `(1, …)` to arrays and scores of one cloud; see the class."""
        stem = outputs.pop("stem")[0]
        refuse_non_finite(outputs["reconstruction"], stem)
        # Codes stay integers, and all else becomes float32.
        answer = {name: values[0].float().numpy() for name, values in outputs.items() if name != "token_ids"}
        answer["token_ids"] = outputs["token_ids"][0].numpy()
        scores = reconstruction_scores(outputs["reconstruction"].float(), outputs["points"].float(), threshold)
        # Squares of finite distances can be infinite.
        refuse_non_finite(torch.stack([torch.as_tensor(value).float() for value in scores.values()]), stem)
        answer |= {name: float(value) for name, value in scores.items()}
        if output_dir is not None:
            name = self.name_of(stem)
            for kind in formats:
                path = Path(output_dir) / f"{name}.{kind}"
                if kind in VIEWS:
                    write_reconstructions(path, [answer], [name], up_axis=self.feature_extractor.up_axis)
                else:
                    path.parent.mkdir(parents=True, exist_ok=True)
                    write_point_cloud(path, colored_by_patch(answer))
        return answer


def colored_by_patch(answer: dict[str, Any]) -> PointCloudData:
    """Return the reconstruction of an answer as a cloud with a color for each patch and codes as labels."""
    points = answer["reconstruction"]
    codes = answer["token_ids"]
    # Points of a patch lie next to each other, and all patches have the same number.
    patch = np.arange(len(points)) // (len(points) // len(codes))
    return PointCloudData(points, label_colors(len(codes))[patch], labels=codes[patch])
