"""The common corruptions of a split: fifteen kinds, five severities, the same for an image however it is read.

Results on splits corrupted here are labelled as regenerated: only the released JPEG tree is ImageNet-C and has an mCE.
What was corrupted once can be kept on disk, under a name that changes with the images, the corruption and this code.
"""

import os
import zlib
from pathlib import Path

import numpy as np
import torch

from everycause.artifact import fingerprint
from everycause.data import distortions, severities
from everycause.data.distortions import DISTORTIONS
from everycause.data.severities import GROUPS, SEVERITIES, table_of
from everycause.data.split import Images, Split

CHUNK = 64
"""Images corrupted at once."""


def corrupted(split: Split, name: str, severity: int, cache: Path | None = None) -> Split:
    """The split with one corruption applied to every image; with a cache it is corrupted once, else each time it is read.

    Raises:
        ValueError: there is no such corruption or severity.
    """
    check(name, severity)
    key = zlib.crc32(f"{name} {severity}".encode())
    level, distort = SEVERITIES[name][table_of(split.image_size)][severity - 1], DISTORTIONS[name]

    def read(index: np.ndarray) -> Images:
        parts = []
        for start in range(0, len(index), CHUNK):
            rows = index[start : start + CHUNK]
            generators = [np.random.Generator(np.random.Philox(key=np.array([key, int(i)], dtype=np.uint64))) for i in rows]
            changed = distort(split.read(rows).float() / 255, level, generators)
            parts.append((changed.clamp(0, 1) * 255).round().to(torch.uint8))
        return torch.cat(parts)

    view = f"corruptions/{name}/{severity}"
    identity = fingerprint(split.identity, view)
    streamed = Split(view, split.labels, split.class_names, split.image_size, read, identity)
    return streamed if cache is None else kept_on_disk(streamed, cache)


def kept_on_disk(split: Split, cache: Path) -> Split:
    """The same split, read once and then from a file of the cache; written beside and renamed, so several processes may do it at once."""
    code = fingerprint(*(Path(module.__file__ or "") for module in (distortions, severities)), Path(__file__))
    file = cache / f"{fingerprint(split.identity, code)}.npy"

    def read(index: np.ndarray) -> Images:
        if not file.is_file():
            cache.mkdir(parents=True, exist_ok=True)
            partial = file.with_suffix(f".{os.getpid()}.partial")
            held = np.lib.format.open_memmap(partial, mode="w+", dtype=np.uint8, shape=(len(split), 3, split.image_size, split.image_size))
            for start in range(0, len(split), 8 * CHUNK):
                rows = np.arange(start, min(start + 8 * CHUNK, len(split)))
                held[rows] = split.read(rows).numpy()
            held.flush()
            partial.rename(file)
        return torch.from_numpy(np.load(file, mmap_mode="r")[np.asarray(index)])

    return Split(split.name, split.labels, split.class_names, split.image_size, read, split.identity)


def group_of(name: str) -> str:
    """noise, blur, weather or digital."""
    return next(group for group, members in GROUPS.items() if name in members)


def check(name: str, severity: int) -> None:
    """Raises ValueError for an unknown corruption or severity."""
    if name not in DISTORTIONS:
        raise ValueError(f"'{name}' is not a corruption (known: {', '.join(DISTORTIONS)})")
    if not 1 <= severity <= 5:
        raise ValueError(f"severity {severity} does not exist: severities are 1 to 5")
