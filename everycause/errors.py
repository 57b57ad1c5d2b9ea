"""What is shown to a user as a sentence, not as a traceback: the user's mistakes, and disks that are full or fail."""

import errno
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
"""Errors of the system when there is no room."""
UNUSABLE = (errno.EACCES, errno.EPERM, errno.EROFS, errno.EIO, errno.ESTALE, errno.ENODEV, errno.ENOTCONN)
"""Errors of the system over a disk, or a network drive, that cannot be read or written."""

EXHAUSTED = ("out of memory", "can't allocate memory", "_ALLOC_FAILED")
"""What torch, cuBLAS and cuDNN say when there is no memory left."""


class UserError(ValueError):
    """Something outside the code is wrong: params, data, a file, a missing artifact.

    The message says what is wrong, where, and what to do.

    Everything else that is raised is a fault of the program and keeps its traceback.
    """


def disk_trouble(error: OSError, path: Path, needed: int = 0) -> str:
    """What a disk that is full or cannot be used means for the user; empty for every other error.

    Args:
        error: The error of the system.
        path: The file or folder that was to be written; the error may know it better.
        needed: Bytes that it takes at least, as far as that is known.
    """
    if error.errno in FULL:
        nearest = next(place for place in (path, *path.absolute().parents) if place.exists())
        free = shutil.disk_usage(nearest).free + size_of(path)
        known = needed > free
        room = f"at least {_mebibytes(needed)}, and {_mebibytes(free)} are free" if known else "more than is free"
        return f"the disk is full: '{path}' could not be written whole (it takes {room}): make room and run this again"
    if error.errno in UNUSABLE:
        reason = os.strerror(error.errno).lower()
        return f"'{error.filename or path}' cannot be used ({reason}): check its permissions and the drive"
    return ""


@contextmanager
def disk_errors(path: Path, needed: int = 0) -> Iterator[None]:
    """Turn a full or unusable disk into a sentence with the path and the room that is needed.

    Args:
        path: The file or folder that the block writes.
        needed: Bytes that it takes at least, as far as that is known.

    Raises:
        UserError: there was such an error in the block; every other error passes.
    """
    try:
        yield
    except OSError as error:
        if sentence := disk_trouble(error, path, needed):
            raise UserError(sentence) from error
        raise


@contextmanager
def memory_errors(stage: str, gpu: bool, parameter: str, params: dict[str, Any]) -> Iterator[None]:
    """Turn exhausted memory into a sentence that names the parameter that asks for it.

    Args:
        stage: The stage that runs in the block.
        gpu: Whether it computes on a GPU.
        parameter: Dotted path of the parameter that decides how much memory it takes; empty where there is none.
        params: Dotted path → value.

    Raises:
        UserError: memory was exhausted; every other error passes.
    """
    try:
        yield
    except (MemoryError, RuntimeError) as error:  # torch.OutOfMemoryError is a RuntimeError
        if not isinstance(error, MemoryError) and not any(said in str(error) for said in EXHAUSTED):
            raise
        lower = f"params.yaml: {parameter} is {params.get(parameter)}: lower it"
        remedy = lower if parameter in params else "end what else uses it"
        raise UserError(f"{stage}: the memory of the {'GPU' if gpu else 'machine'} is exhausted; {remedy}") from error


def size_of(path: Path) -> int:
    """Bytes of a file, or of everything in a folder; 0 where there is nothing."""
    files = path.rglob("*") if path.is_dir() else [path]
    return sum(file.stat().st_size for file in files if file.is_file())


def _mebibytes(size: int) -> str:
    return f"{size / 2**20:.2f} MiB"
