"""Train a classifier of point clouds: around a frozen pretrained encoder, or from a pretrained point transformer.

Arguments can come from a JSON or YAML file; arguments after the file override it:

    python examples/run_point_cloud_classification.py --output_dir out/shapes --peft guided_adapter \
        --encoder_name_or_path sentence-transformers/all-MiniLM-L6-v2 --augment scale shift --num_train_epochs 40
    python examples/run_point_cloud_classification.py examples/recipes/any2point_clip_modelnet40.yaml \
        --data_dir data --voting 10
    python examples/run_point_cloud_classification.py --model_name_or_path out/pretrained --tuning mlp-3
    python examples/run_point_cloud_classification.py --model_type act3d --model_config '{"num_hidden_layers": 6}'
    accelerate launch --config_file examples/recipes/accelerate/ddp.yaml --num_processes 2 \
        examples/run_point_cloud_classification.py recipe.yaml

The output directory gets the model, a model card with the run's settings and metrics, and metrics.json. A validation
split selects the weights; the test split is evaluated once, at the end, unless --select_on_test is given.
"""

import os

# torch reads this when it is loaded: idle threads sleep, and leave processors to the programs beside this one.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

from hf_any3d.training.program import run_program
from hf_any3d.training.tasks import train_classifier as main

if __name__ == "__main__":
    run_program(main)
