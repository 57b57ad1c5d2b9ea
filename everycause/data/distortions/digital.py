"""Corruptions of the group digital: what processing and storing do to an image.

Source: Hendrycks and Dietterich, ICLR 2019, arXiv 1903.12261.
"""

import io
from collections.abc import Callable, Sequence

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn.functional import grid_sample

from everycause.data.distortions.operations import Generators, corruption, drawn, gaussian


@corruption(
    "digital",
    {
        32: ((0.75,), (0.5,), (0.4,), (0.3,), (0.15,)),
        64: ((0.4,), (0.3,), (0.2,), (0.1,), (0.05,)),
        224: ((0.4,), (0.3,), (0.2,), (0.1,), (0.05,)),
    },
)
def contrast(images: Tensor, level: Sequence[float], _generators: Generators) -> Tensor:
    """Every value is moved towards its channel's mean.

    Levels: factor on the distance from the mean.
    """
    mean = images.mean(dim=(2, 3), keepdim=True)
    return (images - mean) * level[0] + mean


@corruption(
    "digital",
    {
        32: ((0, 0, 0.08), (0.05, 0.2, 0.07), (0.08, 0.06, 0.06), (0.1, 0.04, 0.05), (0.1, 0.03, 0.03)),
        64: ((0, 0, 0.08), (0.05, 0.3, 0.06), (0.1, 0.08, 0.06), (0.1, 0.03, 0.03), (0.16, 0.03, 0.02)),
        224: tuple(
            (244 / 224 * size, 244 / 224 * smoothness, 244 / 224 * affine)
            for size, smoothness, affine in (
                (2, 0.7, 0.1),
                (2, 0.08, 0.2),
                (0.05, 0.01, 0.02),
                (0.07, 0.01, 0.02),
                (0.12, 0.01, 0.02),
            )
        ),
    },
)
def elastic_transform(images: Tensor, level: Sequence[float], generators: Generators) -> Tensor:
    """A random affine map, then smooth random displacements.

    Levels: size, smoothness and affine part of the displacements, as shares of the side.
    """
    side = images.shape[-1]
    size, smoothness, affine = (value * side for value in level)
    third, center = side // 3, side // 2
    corners = np.array(
        [[center + third, center + third, 1], [center + third, center - third, 1], [center - third, center - third, 1]],
        dtype=np.float64,
    )
    moved = [corners[:, :2] + one.uniform(-affine, affine, (3, 2)) for one in generators]
    # from the result to the image: the inverse of the map that takes the corners to where they are moved
    back = torch.from_numpy(
        np.stack([np.linalg.solve(np.column_stack([target, np.ones(3)]), corners[:, :2]).T for target in moved])
    ).float()
    rows, columns = torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij")
    flat = torch.stack([columns, rows, torch.ones_like(rows)]).float().flatten(1)
    x, y = (back @ flat).view(-1, 2, side, side).unbind(dim=1)
    images = _sampled(images, x, y, folds_at_centers=True)
    if size == 0:
        return images
    shifts = drawn(generators, lambda one: one.uniform(-1, 1, (2, side, side)).astype(np.float32))
    shifts = gaussian(shifts, smoothness, truncate=3.0, border="symmetric") * size
    return _sampled(images, columns + shifts[:, 0], rows + shifts[:, 1], folds_at_centers=False)


@corruption(
    "digital",
    {
        32: ((0.95,), (0.9,), (0.85,), (0.75,), (0.65,)),
        64: ((0.9,), (0.8,), (0.7,), (0.6,), (0.5,)),
        224: ((0.6,), (0.5,), (0.4,), (0.3,), (0.25,)),
    },
)
def pixelate(images: Tensor, level: Sequence[float], _generators: Generators) -> Tensor:
    """The image is averaged over boxes and enlarged again.

    Levels: share of the side that is left.
    """
    side = images.shape[-1]
    small = int(side * level[0])
    return _by_picture(
        images,
        lambda picture: picture.resize((small, small), Image.Resampling.BOX).resize((side, side), Image.Resampling.BOX),
    )


@corruption(
    "digital",
    {
        32: ((80,), (65,), (58,), (50,), (40,)),
        64: ((65,), (58,), (50,), (40,), (25,)),
        224: ((25,), (18,), (15,), (10,), (7,)),
    },
)
def jpeg_compression(images: Tensor, level: Sequence[float], _generators: Generators) -> Tensor:
    """The image is stored as JPEG and read again.

    Levels: quality.
    """

    def stored(picture: Image.Image) -> Image.Image:
        buffer = io.BytesIO()
        picture.save(buffer, "JPEG", quality=int(level[0]))
        return Image.open(buffer)

    return _by_picture(images, stored)


def _by_picture(images: Tensor, change: Callable[[Image.Image], Image.Image]) -> Tensor:
    """A change of each image as Pillow sees it."""
    pictures = (images * 255).round().to(torch.uint8).permute(0, 2, 3, 1).numpy()
    changed = np.stack([np.asarray(change(Image.fromarray(picture))) for picture in pictures])
    return torch.from_numpy(changed).permute(0, 3, 1, 2).float() / 255


def _sampled(images: Tensor, x: Tensor, y: Tensor, folds_at_centers: bool) -> Tensor:
    """Bilinear samples at places in pixels; the image is mirrored at the centers or the edges of its border pixels."""
    side = images.shape[-1]
    scale = side - 1 if folds_at_centers else side
    grid = torch.stack([(2 * value + (0 if folds_at_centers else 1)) / scale - 1 for value in (x, y)], dim=-1)
    return grid_sample(images, grid, padding_mode="reflection", align_corners=folds_at_centers)
