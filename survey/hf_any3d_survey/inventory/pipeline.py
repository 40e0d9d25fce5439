"""`pipeline("point-cloud-inventory")`: ground, heights and classes of a scan, and each tree and building of it."""

from __future__ import annotations

from hf_any3d_survey.inventory.steps import InventorySteps
from hf_any3d_survey.segmentation.pipeline import LocalFeaturesSegmentationPipeline


class PointCloudInventoryPipeline(InventorySteps, LocalFeaturesSegmentationPipeline):
    """Find what stands in a scan of a place, from the air or the ground: trees and buildings, each with a number.

    A call returns, for each cloud, a dict of

    - `points` (points, 3), coordinates of the file;
    - `classes` (points,) uint8, codes of ASPRS: 2 ground, 3 to 5 vegetation by its height, 6 building, 7 noise, 1
      what looks like a roof and is none, such as wires, and those of further classes that the model knows;
    - `class_scores` (points,) float32, their probabilities;
    - `heights` (points,) float32, meters above the ground;
    - `numbers` (points,) int32, numbers of things from 1; 0 for none;
    - `scores` (points,) float32, how sure the thing of each point is; 0 for none;
    - `far` (points,) bool, if some points are far from all others: they are noise without a height or a thing;
    - `things`, a list of `hf_any3d_survey.inventory.things.Thing`, trees first.

    The model labels tiles, as `hf-any3d train` learns them; the one that comes with the package knows ground,
    vegetation and buildings. What it does not know is told as a warning.

    Args of a call:
        unit: "meters", "feet" or "us-feet", of files that say none.
        smoothing: meters over which the canopy is smoothed; by default the canopy itself decides.
        evenness: how much trees nearby are alike in size, as `hf_any3d_survey.inventory.trees.choose_by` finds by
            numbered trees.
        min_height: height in meters from which on vegetation is a tree.
        min_area: square meters from which on roof points that touch are a building.

    Example:
        ```python
        from transformers import pipeline
        import hf_any3d

        found = pipeline("point-cloud-inventory")("tile.laz")
        for thing in found["things"]:
            print(thing.number, thing.label, f"{thing.height:.1f} m")
        ```
    """
