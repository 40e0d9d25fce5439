"""The program `hf-any3d`.

The package registers its models with transformers when it is imported, which loads torch and takes seconds. Where
this module was imported before it, the package leaves that to the commands that open a model: --help answers at once.
"""


def main() -> None:
    """Run the command line."""
    from hf_any3d.cli import main as run

    run()
