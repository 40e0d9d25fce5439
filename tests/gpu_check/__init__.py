"""Checks that need a GPU, in one program of under ten minutes: `make gpu-check`; see docs/kernels.md.

`run.py` has what sections share, `kernels.py`, `models.py` and `modes.py` have the sections, `__main__.py` the command
line.
"""
