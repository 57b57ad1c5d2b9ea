"""Waterbirds as published: birds of CUB-200-2011 pasted before land or water, with the groups bird × place.

Layout: root/metadata.csv (img_id, img_filename, y, split, place, place_filename) and the images that it names, below root.
The training images mostly show water birds before water; validation and test show every bird before both alike.
Source: Sagawa, Koh, Hashimoto, Liang, ICLR 2020, arXiv 1911.08731.
"""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from pydantic import Field
from torch import Tensor

from everycause.artifacts import fingerprint
from everycause.data.images import decoded, squared
from everycause.data.split import Split
from everycause.errors import UserError
from everycause.params import Section
from everycause.shapes import Int64

CLASSES = ("landbird", "waterbird")
GROUPS = ("landbird on land", "landbird on water", "waterbird on land", "waterbird on water")
"""2 · class + place."""
SPLITS = {"train": 0, "validation": 1, "test": 2}
COLUMNS = ("img_filename", "y", "split", "place")


class WaterbirdsParams(Section):
    """How photos become images of one size."""

    image_size: int = Field(ge=8, le=1024)
    """Side of the square that is cut out of the center, in pixels."""
    resize: int = Field(ge=8, le=2048)
    """The short side before that, in pixels (bicubic)."""


def table(root: Path) -> pd.DataFrame:
    """The metadata, checked.

    Raises:
        UserError: it is missing, lacks a column, or a row is not what it should be; the sentence gives the row.
    """
    file = root / "metadata.csv"
    if not file.is_file():
        raise UserError(f"'{file}' is missing: data.root must be the published Waterbirds folder")
    try:
        frame = pd.read_csv(file)
    except (pd.errors.ParserError, pd.errors.EmptyDataError, UnicodeDecodeError) as error:
        raise UserError(
            f"'{file}' is not a readable table ({' '.join(str(error).split())}): unpack the data set again"
        ) from error
    if missing := [name for name in COLUMNS if name not in frame.columns]:
        raise UserError(f"'{file}' lacks the column '{missing[0]}': unpack the data set again")
    for name, allowed in (("y", (0, 1)), ("place", (0, 1)), ("split", (0, 1, 2))):
        wrong = (~frame[name].isin(allowed)).to_numpy().nonzero()[0]
        if len(wrong):
            raise UserError(
                f"row {wrong[0] + 2} of '{file}' has {name} {frame[name].iloc[wrong[0]]!r}, which should be one of {', '.join(map(str, allowed))}"
            )
    for row, name in enumerate(frame["img_filename"]):
        path = root / str(name)
        if not path.resolve().is_relative_to(root.resolve()):
            raise UserError(
                f"row {row + 2} of '{file}' names '{name}', which lies outside '{root}': paths may not leave the data folder"
            )
        if not path.is_file():
            raise UserError(f"row {row + 2} of '{file}' names '{name}', which is missing: unpack the data set again")
    return frame


def waterbirds_split(root: Path, name: str, params: WaterbirdsParams, threads: int) -> Split:
    """One of the published splits.

    Raises:
        UserError: the folder is not as published; reading raises it for a file that is no whole image.
    """
    frame = _rows(root, name)
    files = [root / str(one) for one in frame["img_filename"]]

    def read(index: np.ndarray) -> torch.Tensor:
        with ThreadPoolExecutor(threads) as pool:
            return torch.stack(
                list(pool.map(lambda i: squared(decoded(files[i]), params.image_size, params.resize), index))
            )

    listing = "\n".join(str(file.relative_to(root)) for file in files)
    labels = torch.from_numpy(frame["y"].to_numpy(dtype=np.int64))
    return Split(
        name,
        labels,
        CLASSES,
        params.image_size,
        read,
        fingerprint(f"waterbirds {name}", params.model_dump_json(), listing),
    )


def groups(root: Path, name: str) -> Int64[Tensor, "images"]:
    """The group of each image of a split, an index into GROUPS.

    Raises:
        UserError: as table.
    """
    frame = _rows(root, name)
    return torch.from_numpy((2 * frame["y"] + frame["place"]).to_numpy(dtype=np.int64))


def _rows(root: Path, name: str) -> pd.DataFrame:
    frame = table(root)
    return frame[frame["split"] == SPLITS[name]]
