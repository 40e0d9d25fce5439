"""Build the donors."""

import transformers

from studies.donors import donors_folder
from studies.donors.packages import DONORS, build_donor, use_tools


def main() -> None:
    """Build the donors, and name their directories."""
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    root = donors_folder()
    use_tools(root)
    for name, donor in DONORS.items():
        print(f"{donor.title}: {build_donor(name, root)}", flush=True)


if __name__ == "__main__":
    main()
