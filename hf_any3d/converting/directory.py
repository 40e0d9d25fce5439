"""A directory that appears whole or not at all."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError

from hf_any3d.whole_files import claim, remove_temporaries, temporary_path


@contextmanager
def new_directory(output: str | os.PathLike) -> Iterator[Path]:
    """Give a temporary directory to write to, which takes its name at the end; after an error nothing stays.

    Args:
        output: The directory to be; it must not exist yet, or be empty.

    Raises:
        FileExistsError: There is something in it, or it is a symbolic link.
        BlockingIOError: Another process is making it.
        OSError: It cannot be written, as on a full disk.
    """
    output = Path(output).absolute()
    if output.is_symlink():
        raise FileExistsError(f"{output}: is a symbolic link to {os.readlink(output)}; give a new directory")
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise FileExistsError(f"{output}: exists already and is not empty; give a new directory")
    output.parent.mkdir(parents=True, exist_ok=True)
    with claim(output.with_name(f".{output.name}.lock"), output):
        remove_temporaries(output.parent, output.name)
        temporary = temporary_path(output)
        temporary.mkdir()
        try:
            yield temporary
            os.replace(temporary, output)
        except SafetensorError as error:
            shutil.rmtree(temporary, ignore_errors=True)
            raise OSError(f"{output}: cannot be written ({error})") from error
        except BaseException:
            shutil.rmtree(temporary, ignore_errors=True)
            raise
