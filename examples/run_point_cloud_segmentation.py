"""Train a segmentation model: around a frozen pretrained encoder, or from a pretrained point transformer.

The data define one of two tasks: parts of objects, if rows have a category in `label` and a part for each point in
`labels`; objects of scenes, if rows have `labels` alone. Scenes are read in overlapping blocks.

    python examples/run_point_cloud_segmentation.py --output_dir out/rooms --dataset_name rooms \
        --block_size 2.5 --augment scale rotate
    python examples/run_point_cloud_segmentation.py --output_dir out/parts --dataset_name parts --augment scale
    python examples/run_point_cloud_segmentation.py --output_dir out/s3dis --dataset_name s3dis --data_dir data \
        --dataset_options '{"block_size": 1.0}' --group_column room --up_axis z --block_size 1.0 --augment rotate
    python examples/run_point_cloud_segmentation.py --output_dir out/shapenetpart --dataset_name shapenetpart \
        --data_dir data --num_points 2048 --augment scale
    python examples/run_point_cloud_segmentation.py --model_name_or_path out/pretrained --dataset_name parts
    python examples/run_point_cloud_segmentation.py recipe.yaml
    accelerate launch --config_file examples/recipes/accelerate/ddp.yaml --num_processes 2 \
        examples/run_point_cloud_segmentation.py recipe.yaml

The output directory gets the model, a model card with the run's settings and metrics, and metrics.json. A validation
split selects the weights; the test split is evaluated once, at the end, on complete scenes.
"""

import os

# torch reads this when it is loaded: idle threads sleep, and leave processors to the programs beside this one.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

from hf_any3d.training.program import run_program
from hf_any3d.training.tasks import train_segmenter as main

if __name__ == "__main__":
    run_program(main)
