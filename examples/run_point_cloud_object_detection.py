"""Train a detector: 3DETR, from scratch or from a saved one, on scenes with boxes.

    python examples/run_point_cloud_object_detection.py --output_dir out/detector --dataset_name rooms_with_boxes \
        --num_points 2048 --model_config '{"num_tokens": 256, "num_queries": 32}' --augment flip turn
    python examples/run_point_cloud_object_detection.py --output_dir out/scannet --dataset_name scannet_detection \
        --data_dir data/scannet --num_points 40000 --augment cuboid flip:along_axes=True turn:along_axes=True
    python examples/run_point_cloud_object_detection.py --output_dir out/mine --model_name_or_path out/scannet \
        --train_file boxes.parquet

Rows have points, boxes (center, size, heading) and box_labels. The output directory gets the model, a model card with
the run's settings and average precision, and metrics.json. A validation split selects the weights; the test split is
evaluated once, at the end.
"""

import os

# torch reads this when it is loaded: idle threads sleep, and leave processors to the programs beside this one.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

from hf_any3d.training.detection import train_detector as main
from hf_any3d.training.program import run_program

if __name__ == "__main__":
    run_program(main)
