"""`python -m hf_any3d`, the same as `hf-any3d`."""

from hf_any3d.cli import main

main()
