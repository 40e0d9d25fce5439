"""Programs behind the weights that come with the package and the tables of the README, and measurements of speed.

Run one as a module from the checkout, `python -m studies.few_scans`; results/ has the published tables.
"""

import os

# torch reads this when it is loaded: idle threads sleep, and leave processors to the programs beside this one.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
