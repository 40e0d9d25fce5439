"""Fine-tune a SpatialLM on scans with layouts or boxes, in full or with low-rank adapters.

    python examples/run_layouts.py examples/recipes/rooms_spatiallm.yaml
    python examples/run_layouts.py --model_name_or_path manycore-research/SpatialLM1.1-Qwen-0.5B \
        --train_file layouts.parquet --adapt language encoder --output_dir out/mine

Rows have points, perhaps colors, and layout, the text of a layout in meters; or boxes and box_labels. The output
directory gets the adapter or the model, a model card with the run's settings and F1, and metrics.json.
"""

import os

# torch reads this when it is loaded: idle threads sleep, and leave processors to the programs beside this one.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

from hf_any3d.training.layouts import train_layouts as main
from hf_any3d.training.program import run_program

if __name__ == "__main__":
    run_program(main)
