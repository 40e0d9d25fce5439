"""Operations with a plain implementation and faster ones, and the table that chooses between them.

Models and point operations call `kernels.knn(...)` and so on. Each operation has a file with a fused and a plain
implementation, forward and backward; the plain one documents the arguments. `set_kernels("torch")`, or
HF_ANY3D_KERNELS=torch, selects the plain ones everywhere; "reference" also the definition of the guided aggregation.
All autograd functions and operators of this package are here.
"""

from hf_any3d.modeling.kernels.bottleneck import bottleneck_fused, bottleneck_plain
from hf_any3d.modeling.kernels.dispatch import ACCELERATORS, Kernel, set_kernels
from hf_any3d.modeling.kernels.farthest_point_sample import (
    farthest_point_sample_fused,
    farthest_point_sample_plain,
    farthest_point_sample_traced,
)
from hf_any3d.modeling.kernels.guided_aggregation.ensemble import normed_ensemble
from hf_any3d.modeling.kernels.guided_aggregation.pairs import pair_attention
from hf_any3d.modeling.kernels.guided_aggregation.table import table_aggregation
from hf_any3d.modeling.kernels.knn import compares_exactly, knn_fused, knn_plain, knn_traced
from hf_any3d.modeling.kernels.pooled_blocks import blocks_are_plain, pooled_blocks_fused, pooled_blocks_plain
from hf_any3d.modeling.kernels.pooled_patches import layers_are_plain, pooled_patches_fused, pooled_patches_plain
from hf_any3d.modeling.kernels.quick_gelu import quick_gelu_fused, quick_gelu_plain
from hf_any3d.modeling.kernels.submanifold_convolution import (
    submanifold_convolution_fused,
    submanifold_convolution_plain,
)

__all__ = [
    "TABLE",
    "Kernel",
    "bottleneck",
    "farthest_point_sample",
    "knn",
    "normed_ensemble",
    "pair_attention",
    "pooled_blocks",
    "pooled_patches",
    "quick_gelu",
    "set_kernels",
    "submanifold_convolution",
    "table_aggregation",
]

# Any2Point: the tokenizer
# Its statistics need all rows before the first is normed: on a CPU, that is many passes through main memory.
pooled_blocks = Kernel(
    pooled_blocks_plain,
    pooled_blocks_fused,
    "Not on a GPU, where layers on all rows are faster, nor in compiled code; not in evaluation if a gradient is "
    "needed; not for half precision weights, whose statistics need full precision, except for bfloat16 in evaluation; "
    "not for layers that an adapter or a hook replaces, which must be called.",
    devices=("cpu",),
    compiles=False,
    condition=blocks_are_plain,
    result_in_autocast=True,
)

# Any2Point: the guided adapter
bottleneck = Kernel(
    bottleneck_plain,
    bottleneck_fused,
    "On accelerators; not for layers that an adapter or a hook replaces, nor in compiled code.",
    devices=ACCELERATORS,
    compiles=False,
)

# Frozen encoders
quick_gelu = Kernel(
    quick_gelu_plain,
    quick_gelu_fused,
    "Not in compiled code, where a compiler fuses the plain one and chooses what it saves.",
    compiles=False,
)

# ACT
pooled_patches = Kernel(
    pooled_patches_plain,
    pooled_patches_fused,
    "Not on a GPU, where it saves no time, nor in compiled code; not in evaluation if a gradient is needed; not for "
    "half precision weights, whose statistics need full precision; not for layers that an adapter or a hook replaces, "
    "which must be called.",
    devices=("cpu",),
    compiles=False,
    condition=layers_are_plain,
    result_in_autocast=True,
)
# Point operations
farthest_point_sample = Kernel(
    farthest_point_sample_plain,
    farthest_point_sample_fused,
    "Not on other devices than the CPU, where numpy does not run. Compilers get one operator, exporters a loop.",
    devices=("cpu",),
    traced=farthest_point_sample_traced,
)
knn = Kernel(
    knn_plain,
    knn_fused,
    "Not on other devices than the CPU, where neither trees nor numpy run; not for distances by a product. Compilers "
    "and exporters get one operator.",
    devices=("cpu",),
    condition=compares_exactly,
    traced=knn_traced,
)
submanifold_convolution = Kernel(
    submanifold_convolution_plain,
    submanifold_convolution_fused,
    "Always used.",
    result_in_autocast=True,
)

TABLE: dict[str, Kernel] = {
    "pooled_blocks": pooled_blocks,
    "pair_attention": pair_attention,
    "normed_ensemble": normed_ensemble,
    "table_aggregation": table_aggregation,
    "bottleneck": bottleneck,
    "quick_gelu": quick_gelu,
    "pooled_patches": pooled_patches,
    "farthest_point_sample": farthest_point_sample,
    "knn": knn,
    "submanifold_convolution": submanifold_convolution,
}
"""All operations by name, for documentation, tests and measurements."""
