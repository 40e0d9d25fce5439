"""Checkpoints of the original programs, read safely and renamed to ours: one file a system."""

if __name__ == "conversions":
    raise ImportError("this package is installed as hf_any3d.conversions; import it by that name")
