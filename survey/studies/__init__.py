"""Studies of what stands in scans of places: ground, classes, trees, and which points to label next."""

import os

# torch reads this when it is loaded: idle threads sleep, and leave processors to the programs beside this one.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
