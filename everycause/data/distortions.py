"""The fifteen common corruptions as functions of a batch: noise, blur, weather, digital.

Each takes images in [0, 1], the constants of a severity, and one generator per image, so that an image is corrupted alike in
whatever batch it is read. What they do follows Hendrycks and Dietterich, arXiv 1903.12261; where their public code has quirks
that the released data show (glass blur copies instead of swapping, impulses hit channels one by one), so has this.
Frost is procedural: the photographs of the original are not ours to ship.
"""

import io
from collections.abc import Callable, Sequence
from functools import lru_cache

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn.functional import conv2d, grid_sample, pad

Generators = list[np.random.Generator]
Distortion = Callable[[Tensor, Sequence[float], Generators], Tensor]
"""Images (batch × 3 × side × side, in [0, 1]), constants, generators → images; beyond [0, 1] they are clipped later."""


def gaussian_noise(images: Tensor, level: Sequence[float], generators: Generators) -> Tensor:
    """Normal noise on every value."""
    return images + level[0] * drawn(generators, lambda one: one.standard_normal(images.shape[1:], dtype=np.float32))


def shot_noise(images: Tensor, level: Sequence[float], generators: Generators) -> Tensor:
    """Poisson noise of a number of photons."""
    expected = (images * level[0]).numpy()
    return (
        torch.from_numpy(
            np.stack([one.poisson(image).astype(np.float32) for image, one in zip(expected, generators, strict=True)])
        )
        / level[0]
    )


def impulse_noise(images: Tensor, level: Sequence[float], generators: Generators) -> Tensor:
    """Values that become 0 or 1, channel by channel."""
    draw = drawn(generators, lambda one: one.random(images.shape[1:], dtype=np.float32))
    return torch.where(draw < level[0] / 2, 1.0, torch.where(draw < level[0], 0.0, images))


def defocus_blur(images: Tensor, level: Sequence[float], _generators: Generators) -> Tensor:
    """A disk with a softened edge."""
    return _filtered(images, _disk(*level), "reflect")


def glass_blur(images: Tensor, level: Sequence[float], generators: Generators) -> Tensor:
    """Blurred, then pixel by pixel replaced by a near one, then blurred again."""
    deviation, reach, passes = level[0], int(level[1]), int(level[2])
    grains = (_gaussian(images, deviation) * 255).to(torch.uint8).permute(0, 2, 3, 1).contiguous().numpy()
    side, everyone = grains.shape[1], np.arange(len(grains))
    places = np.arange(side - reach, reach, -1)
    moves = np.stack([one.integers(-reach, reach, (passes, len(places), len(places), 2)) for one in generators])
    for turn in range(passes):
        for i, row in enumerate(places):
            for j, column in enumerate(places):
                grains[:, row, column] = grains[
                    everyone, row + moves[:, turn, i, j, 1], column + moves[:, turn, i, j, 0]
                ]
    return _gaussian(torch.from_numpy(grains).permute(0, 3, 1, 2).float() / 255, deviation)


def motion_blur(images: Tensor, level: Sequence[float], generators: Generators) -> Tensor:
    """A one-sided Gaussian along a line, at most 45° from the horizontal."""
    return _moved(images, int(level[0]), level[1], np.array([one.uniform(-45, 45) for one in generators]))


def zoom_blur(images: Tensor, level: Sequence[float], _generators: Generators) -> Tensor:
    """The mean of the image and its enlargements."""
    factors = np.arange(1, level[0], level[1])
    total = images.clone()
    for factor in factors:
        matrix = _enlargement(images.shape[-1], float(factor))
        total += matrix @ images @ matrix.T
    return total / (len(factors) + 1)


def snow(images: Tensor, level: Sequence[float], generators: Generators) -> Tensor:
    """Flakes that fall at an angle, before a whitened image."""
    mean, deviation, zoom, threshold, radius, spread, share = level
    side = images.shape[-1]
    flakes = drawn(generators, lambda one: one.normal(mean, deviation, (1, side, side)).astype(np.float32))
    matrix = _enlargement(side, zoom)
    flakes = matrix @ flakes @ matrix.T
    flakes = torch.where(flakes < threshold, 0.0, flakes).clamp(0, 1)
    angles = np.array([one.uniform(-135, -45) for one in generators])
    flakes = (_moved((flakes * 255).to(torch.uint8).float() / 255, int(radius), spread, angles) * 255).round() / 255
    white = (images * torch.tensor([0.299, 0.587, 0.114])[:, None, None]).sum(dim=1, keepdim=True) * 1.5 + 0.5
    return share * images + (1 - share) * torch.maximum(images, white) + flakes + flakes.rot90(2, dims=(2, 3))


def frost(images: Tensor, level: Sequence[float], generators: Generators) -> Tensor:
    """Ice crystals, grown procedurally, before the image."""
    return level[0] * images + level[1] * ice(images.shape[-1], generators)


def fog(images: Tensor, level: Sequence[float], generators: Generators) -> Tensor:
    """A fractal cloud; the brightest value stays as it was."""
    brightest = images.amax(dim=(1, 2, 3), keepdim=True)
    return (images + level[0] * plasma(images.shape[-1], level[1], generators)) * brightest / (brightest + level[0])


def brightness(images: Tensor, level: Sequence[float], _generators: Generators) -> Tensor:
    """Adds to the value of HSV: all channels by one factor, black to gray."""
    value = images.amax(dim=1, keepdim=True)
    return torch.where(value > 0, images * ((value + level[0]).clamp_max(1) / value.clamp_min(1e-6)), level[0])


def contrast(images: Tensor, level: Sequence[float], _generators: Generators) -> Tensor:
    """Towards each channel's mean."""
    mean = images.mean(dim=(2, 3), keepdim=True)
    return (images - mean) * level[0] + mean


def elastic_transform(images: Tensor, level: Sequence[float], generators: Generators) -> Tensor:
    """A random affine map, then smooth random displacements."""
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
    shifts = _gaussian(shifts, smoothness, truncate=3.0, border="symmetric") * size
    return _sampled(images, columns + shifts[:, 0], rows + shifts[:, 1], folds_at_centers=False)


def pixelate(images: Tensor, level: Sequence[float], _generators: Generators) -> Tensor:
    """Averaged over boxes and enlarged again."""
    side = images.shape[-1]
    small = int(side * level[0])
    return _by_picture(
        images,
        lambda picture: picture.resize((small, small), Image.Resampling.BOX).resize((side, side), Image.Resampling.BOX),
    )


def jpeg_compression(images: Tensor, level: Sequence[float], _generators: Generators) -> Tensor:
    """Stored as JPEG and read again."""

    def stored(picture: Image.Image) -> Image.Image:
        buffer = io.BytesIO()
        picture.save(buffer, "JPEG", quality=int(level[0]))
        return Image.open(buffer)

    return _by_picture(images, stored)


DISTORTIONS: dict[str, Distortion] = {
    one.__name__: one
    for one in (
        gaussian_noise, shot_noise, impulse_noise, defocus_blur, glass_blur, motion_blur, zoom_blur, snow, frost, fog, brightness, contrast, elastic_transform,
        pixelate, jpeg_compression,
    )
}  # fmt: skip


def drawn(generators: Generators, draw: Callable[[np.random.Generator], np.ndarray]) -> Tensor:
    """One draw for each image."""
    return torch.from_numpy(np.stack([draw(one) for one in generators]))


def plasma(side: int, decay: float, generators: Generators) -> Tensor:
    """Diamond-square fractals in [0, 1], batch × 1 × side × side."""
    size = 1 << (side - 1).bit_length()
    draws = drawn(generators, lambda one: one.random(size * size * 2, dtype=np.float32)) * 2 - 1
    cloud, used, step, wobble = torch.zeros(len(generators), size, size), 0, size, 100.0

    def wobbled(total: Tensor) -> Tensor:
        nonlocal used
        count = total[0].numel()
        noise = draws[:, used : used + count].view_as(total)
        used += count
        return total / 4 + wobble * wobble * noise

    while step >= 2:
        half = step // 2
        corners = cloud[:, ::step, ::step]
        across = corners + corners.roll(-1, 1)
        cloud[:, half::step, half::step] = wobbled(across + across.roll(-1, 2))
        middles = cloud[:, half::step, half::step]
        up_and_down = middles + middles.roll(1, 1)
        left_and_right = corners + corners.roll(-1, 2)
        cloud[:, ::step, half::step] = wobbled(up_and_down + left_and_right)
        beside = middles + middles.roll(1, 2)
        over_and_under = corners + corners.roll(-1, 1)
        cloud[:, half::step, ::step] = wobbled(beside + over_and_under)
        step, wobble = half, wobble / decay
    cloud -= cloud.amin(dim=(1, 2), keepdim=True)
    return (cloud / cloud.amax(dim=(1, 2), keepdim=True))[:, None, :side, :side]


def ice(side: int, generators: Generators) -> Tensor:
    """Bluish needles on a cloudy pane, batch × 3 × side × side; mean and spread are those that the published distortions imply."""
    cloud = plasma(side, 1.9, generators)
    grain = drawn(generators, lambda one: one.standard_normal((1, side, side), dtype=np.float32))
    needles = torch.stack(
        [
            _moved(grain, max(2, side // 10), side / 20, np.array([one.uniform(-180, 180) for one in generators]))
            for _ in range(3)
        ]
    ).amax(dim=0)
    pane = cloud + 0.8 * needles / needles.std(dim=(2, 3), keepdim=True).clamp_min(1e-6) * cloud.std(
        dim=(2, 3), keepdim=True
    )
    pane = (pane - pane.mean(dim=(2, 3), keepdim=True)) / pane.std(dim=(2, 3), keepdim=True)
    return (ICE_MEAN + ICE_SPREAD * pane + torch.tensor([-0.04, 0.0, 0.04])[:, None, None]).clamp(0, 1)


ICE_MEAN, ICE_SPREAD = 0.6, 0.2


def _by_picture(images: Tensor, change: Callable[[Image.Image], Image.Image]) -> Tensor:
    """A change of each image as Pillow sees it."""
    pictures = (images * 255).round().to(torch.uint8).permute(0, 2, 3, 1).numpy()
    changed = np.stack([np.asarray(change(Image.fromarray(picture))) for picture in pictures])
    return torch.from_numpy(changed).permute(0, 3, 1, 2).float() / 255


@lru_cache(maxsize=64)
def _disk(radius: float, alias: float) -> Tensor:
    """A disk of this radius, normalized, its edge softened over three pixels (five for a large one)."""
    reach, soft = (8, 1) if radius <= 8 else (int(radius), 2)
    places = torch.arange(-reach, reach + 1).double()
    disk = (places[:, None].square() + places.square() <= radius**2).double()
    disk /= disk.sum()
    edge = torch.exp(-torch.arange(-soft, soft + 1).double().square() / (2 * alias**2))
    edge /= edge.sum()
    around = pad(disk[None, None], (soft,) * 4, mode="reflect")
    return conv2d(around, (edge[:, None] * edge)[None, None])[0, 0].float()


def _filtered(images: Tensor, kernel: Tensor, mode: str) -> Tensor:
    """Every channel filtered."""
    batch, channels, side, _ = images.shape
    reach = kernel.shape[0] // 2
    around = pad(images, (reach,) * 4, mode=mode).flatten(0, 1)[:, None]
    return conv2d(around, kernel[None, None]).view(batch, channels, side, side)


def _gaussian(images: Tensor, deviation: float, truncate: float = 4.0, border: str = "replicate") -> Tensor:
    """A Gaussian blur, one direction after the other."""
    reach = int(truncate * deviation + 0.5)
    if reach == 0:
        return images
    weights = torch.exp(-torch.arange(-reach, reach + 1).float().square() / (2 * deviation**2))
    weights /= weights.sum()
    side = images.shape[-1]
    places = torch.arange(-reach, side + reach)
    folded = places.clamp(0, side - 1) if border == "replicate" else _symmetric(places, side)
    matrix = torch.zeros(side, side)
    for offset in range(2 * reach + 1):  # a blur with its border is a matrix, and small sides make it a small one
        matrix[torch.arange(side), folded[offset : offset + side]] += weights[offset]
    return matrix @ images @ matrix.T


def _symmetric(places: Tensor, side: int) -> Tensor:
    """Places folded at the outer edges of the border pixels, which count twice."""
    around = places % (2 * side)
    return torch.where(around >= side, 2 * side - 1 - around, around)


def _moved(images: Tensor, radius: int, deviation: float, angles: np.ndarray) -> Tensor:
    """A one-sided Gaussian along a line through each image's pixels, at its own angle in degrees; beyond the border its pixels repeat."""
    width, side = 2 * radius + 1, images.shape[-1]
    weights = np.exp(-(np.arange(width) ** 2) / (2 * deviation**2))
    weights /= weights.sum()
    radians = np.deg2rad(angles)
    everyone, places, total = torch.arange(len(images))[:, None, None], torch.arange(side), torch.zeros_like(images)
    last = images.permute(0, 2, 3, 1)
    for step, weight in enumerate(weights.tolist()):
        if weight < 1e-7:
            break
        right = torch.from_numpy(np.ceil(step * np.cos(radians) - 0.5)).long()
        down = torch.from_numpy(np.ceil(step * np.sin(radians) - 0.5)).long()
        rows, columns = ((places + shift[:, None]).clamp(0, side - 1) for shift in (down, right))
        total += weight * last[everyone, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)
    return total


@lru_cache(maxsize=256)
def _enlargement(side: int, factor: float) -> Tensor:
    """One direction of the enlargement of the center, bilinear between the outermost pixels, as a matrix."""
    inner = int(np.ceil(side / factor))
    outer = round(inner * factor)
    top, trim = (side - inner) // 2, (outer - side) // 2
    position = (np.arange(side) + trim) * ((inner - 1) / max(outer - 1, 1))
    low = np.floor(position).astype(int).clip(0, inner - 1)
    high, share = np.minimum(low + 1, inner - 1), position - low
    matrix = np.zeros((side, side), dtype=np.float32)
    np.add.at(matrix, (np.arange(side), top + low), 1 - share)
    np.add.at(matrix, (np.arange(side), top + high), share)
    return torch.from_numpy(matrix)


def _sampled(images: Tensor, x: Tensor, y: Tensor, folds_at_centers: bool) -> Tensor:
    """Bilinear samples at places in pixels; beyond the border the image is mirrored, at the centers or at the edges of its outermost pixels."""
    side = images.shape[-1]
    scale = side - 1 if folds_at_centers else side
    grid = torch.stack([(2 * value + (0 if folds_at_centers else 1)) / scale - 1 for value in (x, y)], dim=-1)
    return grid_sample(images, grid, padding_mode="reflection", align_corners=folds_at_centers)
