"""A user's own photos: any tree split/class/image."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from pydantic import Field
from torchvision.transforms.v2 import functional

from everycause.artifacts import fingerprint
from everycause.data.split import Split
from everycause.errors import UserError
from everycause.params import Section

REQUIRED = ("train", "validation", "test")


class FolderParams(Section):
    """How photos become images of one size."""

    image_size: int = Field(ge=8, le=1024)
    """The short side is resized to this many pixels (bicubic), then the center square is cut out."""


def class_folders(root: Path, name: str) -> list[Path]:
    """The class folders of a split, sorted by name.

    Raises:
        UserError: the split is missing, has no classes, or a class has no images.
    """
    folder = root / name
    if not root.is_dir():
        raise UserError(f"data.root is '{root}', which is not a folder: point it at a tree split/class/image.jpg")
    if not folder.is_dir():
        raise UserError(
            f"'{root}' has no folder '{name}': a data set needs train, validation and test, each with a folder per class"
        )
    folders = sorted(entry for entry in folder.iterdir() if entry.is_dir() and not entry.name.startswith("."))
    if not folders:
        raise UserError(f"'{folder}' has no class folders: put the images of each class into a folder of its own")
    for entry in folders:
        if not image_files(entry):
            raise UserError(f"the class folder '{entry}' is empty: add images or remove the class from every split")
    return folders


def image_files(folder: Path) -> list[Path]:
    """Every visible file below a class folder, sorted: a file that is no image is an error when it is read."""
    return sorted(entry for entry in folder.rglob("*") if entry.is_file() and not entry.name.startswith("."))


def class_names(root: Path) -> tuple[str, ...]:
    """The classes: the folders of the training split.

    Raises:
        UserError: validation or test have other classes.
    """
    names = tuple(folder.name for folder in class_folders(root, "train"))
    if len(names) < 2:
        raise UserError(f"'{root / 'train'}' has one class: a classifier needs at least two")
    for split in REQUIRED[1:]:
        found = {folder.name for folder in class_folders(root, split)}
        if missing := sorted(set(names) - found):
            raise UserError(f"the class '{missing[0]}' is in '{root / 'train'}' but missing in '{root / split}'")
        if extra := sorted(found - set(names)):
            raise UserError(f"the class '{extra[0]}' is in '{root / split}' but not in '{root / 'train'}'")
    return names


def shift_names(root: Path) -> tuple[str, ...]:
    """The shifted splits that the user supplies: every other folder of the tree."""
    folders = (entry.name for entry in root.iterdir() if entry.is_dir() and not entry.name.startswith("."))
    return tuple(sorted(name for name in folders if name not in REQUIRED))


def folder_split(root: Path, name: str, params: FolderParams, threads: int) -> Split:
    """One split of the tree; a shifted split may lack classes but not add any.

    Raises:
        UserError: the tree is not as it should be; reading raises it for a file that is no whole image.
    """
    names = class_names(root)
    files, labels = [], []
    for entry in class_folders(root, name):
        if entry.name not in names:
            raise UserError(f"the class '{entry.name}' is in '{root / name}' but not in '{root / 'train'}'")
        found = image_files(entry)
        files += found
        labels += [names.index(entry.name)] * len(found)

    def read(index: np.ndarray) -> torch.Tensor:
        with ThreadPoolExecutor(threads) as pool:
            return torch.stack(list(pool.map(lambda i: decode(files[i], params.image_size), index)))

    listing = "\n".join(f"{file.relative_to(root)} {file.stat().st_size}" for file in files)
    identity = fingerprint(f"folder {params.image_size}", listing)
    return Split(name, torch.tensor(labels), names, params.image_size, read, identity)


def decode(file: Path, size: int) -> torch.Tensor:
    """One photo as an RGB square of uint8.

    Raises:
        UserError: the file is no image, or not a whole one.
    """
    return squared(decoded(file), size)


def decoded(file: Path) -> Image.Image:
    """One photo, upright, in RGB.

    Raises:
        UserError: the file is no image, or not a whole one.
    """
    try:
        with Image.open(file) as opened:
            image = ImageOps.exif_transpose(opened)  # of an animation its first picture
            if image.mode.startswith("I"):  # 16 bits per value: Pillow would clip them, not scale them
                image = Image.fromarray((np.asarray(image, dtype=np.uint32) // 257).clip(0, 255).astype(np.uint8))
            return image.convert("RGB")
    except UnidentifiedImageError as error:
        raise UserError(f"'{file}' is not an image that Pillow can read: remove it from the data folder") from error
    except (OSError, SyntaxError) as error:
        raise UserError(
            f"'{file}' is truncated or damaged ({error}): replace it or remove it from the data folder"
        ) from error


def squared(image: Image.Image, size: int, resize: int | None = 0) -> torch.Tensor:
    """The short side resized to `resize` pixels (bicubic; 0: to `size`, None: not at all), and a center square of `size` of that."""
    resized = (
        image
        if resize is None
        else functional.resize(
            image, [resize or size], interpolation=functional.InterpolationMode.BICUBIC, antialias=True
        )
    )
    return functional.pil_to_tensor(functional.center_crop(resized, [size, size]))
