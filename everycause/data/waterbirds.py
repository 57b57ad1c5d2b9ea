"""Waterbirds as published: birds of CUB-200-2011 pasted before land or water, in four groups bird × place.

Layout: root/metadata.csv (img_id, img_filename, y, split, place, place_filename) and the images that it names, below
root. Training images mostly show waterbirds before water; validation and test images show every bird before both alike.
Source: Sagawa, Koh, Hashimoto, Liang, ICLR 2020, arXiv 1911.08731.
"""

import os
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from pydantic import Field
from torch import Tensor

from everycause.artifacts import code_fingerprint, fingerprint
from everycause.data.images import content_digest, decoded, read_files, squared, within
from everycause.data.split import PhotographParams, Split, View
from everycause.errors import UserError
from everycause.shapes import Int64

CLASSES = ("landbird", "waterbird")
GROUPS = ("landbird on land", "landbird on water", "waterbird on land", "waterbird on water")
"""The group of an image has the index 2 · class + place."""
SPLITS = {"train": 0, "validation": 1, "test": 2}
COLUMNS = ("img_filename", "y", "split", "place")


class WaterbirdsParams(PhotographParams):
    """How photographs become images of one size."""

    resize: int | None = Field(ge=8, le=2048)
    """The short side before the square is cut out, in pixels; null: as a pretrained network was trained, or
    `image_size`."""


PARAMS = WaterbirdsParams


def open_split(root: Path, name: str, params: WaterbirdsParams, threads: int) -> Split:
    """One of the published splits.

    Raises:
        UserError: the folder is not as published; reading raises it for a file that is no whole image.
    """
    frame, size, resize, framing = _rows(root, name), params.image_size, params.resize or 0, params.framing
    paths = [root / str(one) for one in frame["img_filename"]]
    listing = [f"{row.img_filename} {row.y} {row.place}" for row in frame.itertuples()]
    return Split(
        name=name,
        labels=torch.from_numpy(frame["y"].to_numpy(dtype=np.int64, copy=True)),
        class_names=CLASSES,
        image_size=size,
        read=lambda index: read_files(
            [paths[i] for i in index], lambda file: squared(decoded(file), size, resize, framing), threads
        ),
        identity=fingerprint(
            f"waterbirds {name}",
            code_fingerprint(__name__),
            params.described(),
            *listing,
            content_digest(paths, root),
        ),
    )


def test_view(root: Path, params: WaterbirdsParams, threads: int) -> View:
    """The test split with the group of each image."""
    return View(open_split(root, "test", params, threads), groups=groups(root, "test", params))


def files(root: Path, params: WaterbirdsParams) -> list[Path]:
    """Every image of the table."""
    return [root / str(one) for one in table(root)["img_filename"]]


def tables(root: Path, params: WaterbirdsParams) -> list[Path]:
    """The table of images."""
    return [root / "metadata.csv"]


def groups(root: Path, name: str, _params: WaterbirdsParams) -> Int64[Tensor, "images"]:
    """The group of each image of a split, an index into GROUPS.

    Raises:
        UserError: as table.
    """
    frame = _rows(root, name)
    return torch.from_numpy((2 * frame["y"] + frame["place"]).to_numpy(dtype=np.int64, copy=True))


def table(root: Path) -> pd.DataFrame:
    """The metadata, checked.

    Raises:
        UserError: they are missing or lack a column, a row is not what it should be, two rows name one file, or a
            split lacks a class; the sentence gives the row.
    """
    file = root / "metadata.csv"
    if not os.path.isfile(file):
        raise UserError(f"'{file}' is missing: data.root must be the published Waterbirds folder")
    try:
        frame = pd.read_csv(file)
    except (OSError, pd.errors.ParserError, pd.errors.EmptyDataError, UnicodeDecodeError) as error:
        raise UserError(
            f"'{file}' is not a readable table ({' '.join(str(error).split())}): unpack the data set again"
        ) from error
    if missing := [name for name in COLUMNS if name not in frame.columns]:
        raise UserError(f"'{file}' lacks the column '{missing[0]}': unpack the data set again")
    for name, allowed in (("y", (0, 1)), ("place", (0, 1)), ("split", (0, 1, 2))):
        wrong = (~frame[name].isin(allowed)).to_numpy().nonzero()[0]
        if len(wrong):
            raise UserError(
                f"row {wrong[0] + 2} of '{file}' has {name} '{frame[name].iloc[wrong[0]]}', "
                f"which should be one of {', '.join(map(str, allowed))}"
            )
    for split, number in SPLITS.items():
        for label, name in enumerate(CLASSES):
            if not ((frame["split"] == number) & (frame["y"] == label)).any():
                raise UserError(f"'{file}' names no {name} in the split '{split}': unpack the data set again")
    _check_files(root, file, frame)
    return frame


def _check_files(root: Path, file: Path, frame: pd.DataFrame) -> None:
    """Refuse rows whose file is missing, lies outside the data folder, or is that of another row."""
    rows: dict[Path, int] = {}
    for row, (name, split) in enumerate(zip(frame["img_filename"], frame["split"], strict=True), 2):
        path = within(root, str(name), f"row {row} of '{file}'")
        if not os.path.isfile(path):
            raise UserError(f"row {row} of '{file}' names '{name}', which is missing: unpack the data set again")
        if (first := rows.setdefault(path.resolve(), row)) != row:
            where = "in another split" if frame["split"].iloc[first - 2] != split else "already"
            raise UserError(f"row {row} of '{file}' names '{name}', which row {first} names {where}: keep one of them")


def _rows(root: Path, name: str) -> pd.DataFrame:
    frame = table(root)
    return frame[frame["split"] == SPLITS[name]]
