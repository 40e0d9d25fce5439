"""The program `hf-any3d`.

The package registers its models with transformers when it is imported, which loads torch and takes seconds. Where
this module was imported before it, the package leaves that to the commands that open a model: --help answers at once.
"""


def main() -> None:
    """Run the command line."""
    import gc

    # Importing torch and transformers makes a million objects that stay; looking for garbage among them after every
    # 700 new ones is a sixth of a command's time.
    gc.set_threshold(50_000, 20, 20)
    from hf_any3d.utils.threads import share_processors

    # Before torch is loaded, which reads these settings once.
    share_processors()
    from hf_any3d.cli import main as run

    run()
