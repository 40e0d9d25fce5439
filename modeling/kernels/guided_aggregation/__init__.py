"""Faster forms of the guided aggregation, which `hf_any3d.tuners.guided_adapter.method` defines.

`choice.guided_aggregation` chooses between them:

- `dense`: clouds of one size, as matrices between tokens and cells; on a CPU with the fused sum of `ensemble`.
- `table_form`: the same in few operations, for accelerators and compilers, by the table of `table`.
- `flat`: tokens of all clouds in one list, with the attention of `pairs`.
"""
