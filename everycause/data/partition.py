"""Divide a folder of photographs into training, validation and test images (`python -m everycause split`).

Every class is divided in the same shares. Near-duplicates (the same picture scaled, recompressed, a burst of the same
scene) stay together: an image whose twin was trained on measures memory. The result depends on the files and the seed
alone.
"""

import os
import shutil
from collections import defaultdict
from pathlib import Path

import numpy as np
from imagehash import phash
from scipy.sparse import csr_array
from scipy.sparse.csgraph import connected_components
from sklearn.neighbors import BallTree
from tqdm import tqdm

from everycause.data.folder import check_distinct, class_folders
from everycause.data.images import decoded, image_files
from everycause.errors import UserError, disk_errors
from everycause.shapes import Bool, Int64

SPLITS = ("train", "validation", "test")
HASH_SIDE, NEAR = 16, 64
"""Side of the perceptual hash, and the most of its 256 bits in which near-duplicates differ. Of 800 photographs (PACS,
ImageNet) scaled, darkened, recompressed and cropped copies differed in at most 56 bits, other pairs in 88 and more."""


def partition(photos: Path, out: Path, validation: float, test: float, seed: int) -> dict[str, int]:
    """Write out/{train,validation,test}/class/image, as hard links where the file system allows it, else as copies.

    Args:
        photos: A folder with one folder of images for each class.
        out: Folder to write into; it may exist, but may hold none of the splits.
        validation: Share of each class's images, above 0.
        test: The same; both together are below 1.
        seed: Of the random order.

    Returns:
        Number of images of each split.

    Raises:
        UserError: the shares leave nothing to train on, `out` holds a split, one folder lies in the other, the
            photographs are not as they should be, an image cannot be read, near-duplicates stand in two classes, or a
            class has fewer than three different images.
    """
    if not (0 < validation < 1 and 0 < test < 1 and validation + test < 1):
        raise UserError(f"shares of {validation} and {test}: both must be above 0, and together below 1")
    check_places(photos, out)
    folders = class_folders(photos.resolve().parent, photos.resolve().name)
    if len(folders) < 2:
        raise UserError(f"'{photos}' has one class: a classifier needs at least two")
    check_distinct(tuple(folder.name for folder in folders), photos)
    files = [file for folder in folders for file in image_files(folder)]
    groups = near_duplicates(np.stack([hashed(file) for file in tqdm(files, desc="photographs", disable=None)]))
    placed = divided(files, groups, validation, test, seed)
    partial = out / ".split.partial"  # hidden: readers of the folder pass over it
    shutil.rmtree(partial, ignore_errors=True)
    with disk_errors(partial, sum(file.stat().st_size for file in placed)):
        for file, split in placed.items():
            _link_or_copy(file, partial / split / file.parent.name / file.name)
        for split in SPLITS:
            (partial / split).rename(out / split)
        partial.rmdir()
    return {split: sum(one == split for one in placed.values()) for split in SPLITS}


def _link_or_copy(file: Path, place: Path) -> None:
    place.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.link(file.resolve(), place)
    except OSError:  # another file system, or one without hard links
        shutil.copy2(file, place)


def check_places(photos: Path, out: Path) -> None:
    """Refuse to write splits over others, among the photographs, or beside them as if they were a split.

    Raises:
        UserError: as partition.
    """
    if out.exists() and not out.is_dir():
        raise UserError(f"'{out}' is a file: name a folder")
    if there := [split for split in SPLITS if (out / split).exists()]:
        raise UserError(f"'{out}' holds '{there[0]}' already: name another folder, or remove its splits")
    if photos.resolve() in (out.resolve(), *out.resolve().parents):
        raise UserError(f"'{out}' lies in '{photos}', whose images it would be made of: name a folder elsewhere")
    if out.resolve() in photos.resolve().parents:
        raise UserError(f"'{photos}' lies in '{out}', where it would be taken for a shifted split: move it elsewhere")


def hashed(file: Path) -> Bool[np.ndarray, "bits"]:
    """The perceptual hash of a photograph.

    Raises:
        UserError: the file is no image.
    """
    return phash(decoded(file), HASH_SIDE).hash.flatten()


def near_duplicates(hashes: Bool[np.ndarray, "images bits"]) -> Int64[np.ndarray, "images"]:
    """The group of each image: those are together that a chain of near-duplicates connects."""
    radius = NEAR / hashes.shape[1] + 1e-9
    near = BallTree(hashes.astype(float), metric="hamming").query_radius(hashes.astype(float), radius)
    rows = np.repeat(np.arange(len(hashes)), [len(one) for one in near])
    columns = np.concatenate(near)
    links = csr_array((np.ones(len(rows), dtype=bool), (rows, columns)), shape=(len(hashes), len(hashes)))
    return connected_components(links, directed=False)[1].astype(np.int64)


def divided(
    files: list[Path], groups: Int64[np.ndarray, "images"], validation: float, test: float, seed: int
) -> dict[Path, str]:
    """The split of each file; groups stay together, and every class has images in every split.

    Raises:
        UserError: as partition.
    """
    members: dict[int, list[Path]] = defaultdict(list)
    for file, group in zip(files, groups.tolist(), strict=True):
        members[group].append(file)
    by_class: dict[str, list[list[Path]]] = defaultdict(list)
    for together in members.values():
        first, other = together[0], next((one for one in together if one.parent != together[0].parent), None)
        if other is not None:
            raise UserError(
                f"'{first}' and '{other}' show the same picture in two classes: remove one of them, or both"
            )
        by_class[first.parent.name].append(together)
    placed: dict[Path, str] = {}
    for number, (name, some) in enumerate(sorted(by_class.items())):
        if len(some) < len(SPLITS):
            raise UserError(
                f"the class '{name}' has {len(some)} different images, near-duplicates counted once: it needs three, "
                "one to train, one to validate and one to test on"
            )
        order = [some[i] for i in np.random.default_rng([seed, number]).permutation(len(some))]
        count, taken = sum(map(len, some)), 0
        shares = {"test": test, "validation": validation}
        for split, share in shares.items():
            filled = 0
            # at least one group, and as many as are left over for the splits that come after
            while filled == 0 or (filled + len(order[taken]) / 2 <= share * count and taken < len(some) - 2):
                placed |= dict.fromkeys(order[taken], split)
                filled += len(order[taken])
                taken += 1
        for together in order[taken:]:
            placed |= dict.fromkeys(together, "train")
    return placed
