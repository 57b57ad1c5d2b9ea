"""A folder of sample photographs of ImageNet, one for each class: to be explained, never to be trained on.

    root/n01440764_tench.jpg      a file name begins with the WordNet id of its class

They are in circulation as a sample of the training images, so a network is right on most of them because it has seen
them. They serve as validation images; asked for a training or a test split, this source says no.
"""

import os
from pathlib import Path

import torch

from everycause.artifacts import code_fingerprint, fingerprint
from everycause.data.imagenet import synsets
from everycause.data.images import content_digest, decoded, image_files, read_files, squared
from everycause.data.split import PhotographParams, Split
from everycause.errors import UserError


class ImageNetSamplesParams(PhotographParams):
    """How the sample photographs are read; they are cut to squares as the network wants them."""


PARAMS = ImageNetSamplesParams


def open_split(root: Path, name: str, params: ImageNetSamplesParams, threads: int) -> Split:
    """The photographs as validation images, in the order of their names.

    Raises:
        UserError: another split is asked for, the folder is missing or empty, or a name begins with no WordNet id of
            ImageNet.
    """
    if name != "validation":
        raise UserError(
            "the sample photographs of ImageNet (data.source imagenet_samples) are explained, and nothing is trained "
            "or tested on them: run make imagenet-samples instead of dvc repro"
        )
    found, place = files(root, params), {one: number for number, one in enumerate(synsets())}
    size, framing = params.image_size, params.framing
    return Split(
        name=name,
        labels=torch.tensor([place[class_id(file)] for file in found]),
        class_names=synsets(),
        image_size=size,
        read=lambda index: read_files(
            [found[number] for number in index], lambda file: squared(decoded(file), size, 0, framing), threads
        ),
        identity=fingerprint(
            f"imagenet samples {params.described()}", code_fingerprint(__name__), content_digest(found, root)
        ),
    )


def files(root: Path, _params: ImageNetSamplesParams) -> list[Path]:
    """Every photograph.

    Raises:
        UserError: the folder is missing or empty, or a name begins with no WordNet id of ImageNet.
    """
    if not os.path.isdir(root):
        raise UserError(f"data.root is '{root}', which is no folder: point it at photographs n01440764_….jpg")
    if not (found := image_files(root)):
        raise UserError(
            f"'{root}' is empty: put photographs there whose names begin with a WordNet id, n01440764_….jpg"
        )
    for file in found:
        if class_id(file) not in synsets():
            raise UserError(f"'{file}' begins with no WordNet id of ImageNet's 1,000 classes: name it n01440764_….jpg")
    return found


def class_id(file: Path) -> str:
    """What stands before the first underscore of a file name."""
    return file.stem.partition("_")[0]
