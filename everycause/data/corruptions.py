"""The common corruptions of a split: fifteen kinds, five severities, the same for an image however it is read.

Results on splits corrupted here are labelled as regenerated: only the released JPEG files are ImageNet-C and have an
mCE (mean corruption error).
To add a corruption, write it into a module of data/distortions and name a new module in the import below.

Source: Hendrycks and Dietterich, ICLR 2019, arXiv 1903.12261.
"""

import math
import os
import zlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from everycause.artifacts import code_fingerprint, fingerprint
from everycause.data.distortions import blur, digital, noise, operations, weather  # noqa: F401 - they register
from everycause.data.distortions.operations import CORRUPTIONS, SIZES, Corruption
from everycause.data.images import Images
from everycause.data.split import Split
from everycause.errors import UserError, disk_errors

GROUPS = {group: tuple(name for name, one in CORRUPTIONS.items() if one.group == group) for group in operations.GROUPS}
"""The corruptions of each group."""
CHUNK = 64
"""Images corrupted at once."""


def group_of(name: str) -> str:
    """noise, blur, weather or digital."""
    return CORRUPTIONS[name].group


def check(name: str, severity: int) -> None:
    """Refuse an unknown corruption or severity.

    Raises:
        UserError: there is no such corruption or severity.
    """
    if name not in CORRUPTIONS:
        raise UserError(f"'{name}' is not a corruption (known: {', '.join(sum(GROUPS.values(), ()))})")
    if not 1 <= severity <= 5:
        raise UserError(f"severity {severity} does not exist: severities are 1 to 5")


def table_of(side: int) -> int:
    """The published size whose constants images of this side get: the nearest by ratio."""
    return min(SIZES, key=lambda size: max(size, side) / min(size, side))


def corrupted(split: Split, name: str, severity: int, cache: Path | None = None) -> Split:
    """The split with one corruption of every image.

    Args:
        split: Clean images.
        name: One of CORRUPTIONS.
        severity: From 1 to 5.
        cache: Folder in which the corrupted images are kept; None corrupts them anew each time they are read.

    Raises:
        UserError: there is no such corruption or severity.
    """
    check(name, severity)
    kind = CORRUPTIONS[name]
    view = f"corruptions/{name}/{severity}"
    streamed = replace(
        split,
        name=view,
        read=lambda index: _distorted(split, kind, severity, np.asarray(index)),
        identity=fingerprint(split.identity, view, code_fingerprint(kind.distort.__module__, __name__)),
    )
    return streamed if cache is None else kept_on_disk(streamed, cache)


def _distorted(split: Split, kind: Corruption, severity: int, index: np.ndarray) -> Images:
    """Corrupted images of some indices; each draws from a generator of its own index, corruption and severity."""
    key = zlib.crc32(f"{kind.name} {severity}".encode())
    level, parts = kind.levels[table_of(split.image_size)][severity - 1], []
    for start in range(0, len(index), CHUNK):
        rows = index[start : start + CHUNK]
        generators = [np.random.Generator(np.random.Philox(key=np.array([key, int(i)], dtype=np.uint64))) for i in rows]
        changed = kind.distort(split.read(rows).float() / 255, level, generators)
        parts.append((changed.clamp(0, 1) * 255).round().to(torch.uint8))
    return torch.cat(parts)


def kept_on_disk(split: Split, cache: Path) -> Split:
    """The same split, made once and then read from a file named by its identity.

    The file is written under another name and renamed, so several processes may make it at once; one that cannot be
    read is made anew.

    Args:
        split: Images that cost more to make than to read.
        cache: Folder of the file.

    Raises:
        UserError: reading, when the disk is full.
    """
    file = cache / f"{split.identity}.npy"

    def read(index: np.ndarray) -> Images:
        try:
            held = np.load(file, mmap_mode="r")
        except (OSError, ValueError, EOFError):  # not made yet, or cut off by a copy
            _write_array(split, file)
            held = np.load(file, mmap_mode="r")
        return torch.from_numpy(held[np.asarray(index)])

    return replace(split, read=read)


def _write_array(split: Split, file: Path) -> None:
    """Write all images of a split as one .npy file.

    They are written one after the other and not mapped to memory: there a full disk would kill the process.

    Raises:
        UserError: the disk is full or cannot be written.
    """
    partial, shape = file.with_suffix(f".{os.getpid()}.partial"), (len(split), 3, split.image_size, split.image_size)
    try:
        with disk_errors(partial, math.prod(shape)):
            file.parent.mkdir(parents=True, exist_ok=True)
        with disk_errors(partial, math.prod(shape)), partial.open("wb") as stream:
            header = {"descr": "|u1", "fortran_order": False, "shape": shape}
            np.lib.format.write_array_header_1_0(stream, header)
            for start in range(0, len(split), 8 * CHUNK):
                rows = np.arange(start, min(start + 8 * CHUNK, len(split)))
                stream.write(split.read(rows).contiguous().numpy().data)
        partial.rename(file)
    finally:
        partial.unlink(missing_ok=True)
