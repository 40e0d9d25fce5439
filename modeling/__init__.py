"""Models and point operations: torch, transformers, numpy, scipy and this package, nothing else."""

if __name__ == "modeling":
    raise ImportError("this package is installed as hf_any3d.modeling; import it by that name")
