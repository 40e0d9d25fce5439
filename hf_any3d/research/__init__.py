"""Programs of studies: series of runs, stages of MiniGPT-3D's training, robustness, and data made by code.

Of the package, only commands import them; `hf_any3d.registry` names the data.
"""
