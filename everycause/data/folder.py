"""A user's own photographs: any tree split/class/image, with any number of shifted test splits beside the three."""

import os
import unicodedata
from collections.abc import Iterator
from pathlib import Path

import torch
from PIL import Image

from everycause.artifacts import code_fingerprint, fingerprint
from everycause.data.images import content_digest, decoded, image_files, read_files, squared, visible_entries
from everycause.data.split import PhotographParams, Split, View
from everycause.errors import UserError

REQUIRED = ("train", "validation", "test")
RESERVED = ("corruptions",)
"""Names of shifted splits that evaluation makes itself."""


class FolderParams(PhotographParams):
    """How photographs become images of one size.

    The short side is resized to `image_size` pixels (bicubic), then the center square is cut out. A pretrained network
    sees them as it was trained: its own interpolation, and its own margin around the square.
    """


PARAMS = FolderParams


def open_split(root: Path, name: str, params: FolderParams, threads: int) -> Split:
    """One split of the tree; a shifted split may lack classes but not add any.

    Raises:
        UserError: the tree is not as it should be; reading raises it for a file that is no whole image.
    """
    names, size = class_names(root), params.image_size
    found = split_files(root, name, names)
    files = [file for file, _ in found]
    return Split(
        name=name,
        labels=torch.tensor([label for _, label in found]),
        class_names=names,
        image_size=size,
        read=lambda index: read_files(
            [files[i] for i in index], lambda file: squared(decoded(file), size, framing=params.framing), threads
        ),
        identity=fingerprint(
            f"folder {name}", code_fingerprint(__name__), params.described(), *names, content_digest(files, root)
        ),
    )


def shifted_views(root: Path, params: FolderParams, threads: int) -> Iterator[View]:
    """Every other folder of the tree, as a shifted test split."""
    yield from (View(open_split(root, name, params, threads)) for name in shift_names(root))


def files(root: Path, params: FolderParams) -> list[Path]:
    """Every image of every split.

    Raises:
        UserError: the tree is not as it should be.
    """
    names = class_names(root)
    splits = (*REQUIRED, *shift_names(root))
    return [file for name in splits for file, _ in split_files(root, name, names)]


def split_files(root: Path, name: str, names: tuple[str, ...]) -> list[tuple[Path, int]]:
    """The files of a split with their labels, class by class.

    Raises:
        UserError: the split has a class that is not among `names`, or is not as it should be.
    """
    found = []
    for folder in class_folders(root, name):
        if folder.name not in names:
            hint = "" if name in REQUIRED else f"; if '{name}' is no test split, move it out of the data folder"
            raise UserError(f"the class '{folder.name}' is in '{root / name}' but not in '{root / 'train'}'{hint}")
        found += [(file, names.index(folder.name)) for file in image_files(folder)]
    return found


def class_names(root: Path) -> tuple[str, ...]:
    """The classes: the folders of the training split.

    Raises:
        UserError: there are fewer than two, two differ only by case, or validation or test have other classes.
    """
    names = tuple(folder.name for folder in class_folders(root, "train"))
    if len(names) < 2:
        raise UserError(f"'{root / 'train'}' has one class: a classifier needs at least two")
    check_distinct(names, root / "train")
    for split in REQUIRED[1:]:
        if (root / split).resolve() == (root / "train").resolve():
            raise UserError(f"'{root / split}' is the folder of the training images: give it images of its own")
        found = {folder.name for folder in class_folders(root, split)}
        if missing := sorted(set(names) - found):
            raise UserError(f"the class '{missing[0]}' is in '{root / 'train'}' but missing in '{root / split}'")
        if extra := sorted(found - set(names)):
            raise UserError(f"the class '{extra[0]}' is in '{root / split}' but not in '{root / 'train'}'")
    return names


def check_distinct(names: tuple[str, ...], folder: Path) -> None:
    """Refuse folders that are one on a file system which ignores case, or composes letters and accents."""
    folded: dict[str, str] = {}
    for name in names:
        if (other := folded.setdefault(unicodedata.normalize("NFC", name.casefold()), name)) != name:
            raise UserError(
                f"the folders '{other}' and '{name}' in '{folder}' differ only by case or accents: rename one"
            )


def shift_names(root: Path) -> tuple[str, ...]:
    """The shifted splits that the user supplies: every other visible folder of the tree.

    Raises:
        UserError: a folder has the name of a shifted split that is made here, two differ only by case, or a link is
            broken.
    """
    names = tuple(entry.name for entry in visible_entries(root) if entry.is_dir() and entry.name not in REQUIRED)
    check_distinct(names, root)
    for name in names:
        if name.casefold() in (*RESERVED, *REQUIRED):
            meaning = (
                "are made by the evaluation itself" if name.casefold() in RESERVED else "are named in small letters"
            )
            raise UserError(f"'{root / name}' cannot be a shifted test split: {name.casefold()} {meaning}: rename it")
    return names


def class_folders(root: Path, name: str) -> list[Path]:
    """The class folders of a split, sorted by name.

    Raises:
        UserError: the split is missing, has no classes or an image beside them, or a class has no images.
    """
    folder = root / name
    if not os.path.isdir(root):
        raise UserError(f"data.root is '{root}', which is not a folder: point it at a tree split/class/image.jpg")
    if not os.access(root, os.X_OK):
        raise UserError(f"the folder '{root}' cannot be entered: check its permissions")
    if not folder.is_dir():
        raise UserError(
            f"'{root}' has no folder '{name}': "
            "a data set needs train, validation and test, each with a folder per class"
        )
    entries = visible_entries(folder)
    folders = [entry for entry in entries if entry.is_dir()]
    if not folders:
        hint = "" if name in REQUIRED else ", or move it out of the data folder if it is no test split"
        raise UserError(f"'{folder}' has no class folders: put the images of each class into a folder of its own{hint}")
    for entry in entries:
        if entry in folders and not image_files(entry):
            raise UserError(f"the class folder '{entry}' is empty: add images or remove the class from every split")
        if entry not in folders and entry.suffix.lower() in Image.registered_extensions():
            raise UserError(f"the image '{entry}' lies beside the class folders: put it into one of them or remove it")
    return folders
