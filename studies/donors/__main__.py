"""Fetch the donors, and say what they are."""

import argparse

from studies.donors import donors_folder
from studies.donors.packages import DONORS, build_donor, use_tools


def main(arguments: list[str] | None = None) -> None:
    """Build the donors; with `--prove` and `--cost` also write the page of results."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--donors", nargs="+", default=list(DONORS), choices=list(DONORS))
    options = parser.parse_args(arguments)
    root = donors_folder()
    use_tools(root)
    for name in options.donors:
        print(f"{DONORS[name].title}: {build_donor(name, root)}", flush=True)


if __name__ == "__main__":
    main()
