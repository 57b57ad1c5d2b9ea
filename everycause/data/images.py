"""Image files: found in folders, decoded to squares of one size, and identified by their content.

All readers of photographs (folder, cub, imagenet, waterbirds) use this module. It needs numpy, torch, torchvision and
Pillow alone, so that an image can be explained without the rest of the project.
"""

import io
import stat
import struct
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor
from torchvision.transforms.v2 import functional

from everycause.data.digests import content_digest, image_files, visible_entries, within
from everycause.errors import UserError
from everycause.shapes import Bool, Float, Int64, UInt8

__all__ = [
    "Framing",
    "Images",
    "Statistics",
    "check_decodable",
    "content_digest",
    "decoded",
    "held_out",
    "image_files",
    "normalized",
    "read_files",
    "squared",
    "visible_entries",
    "within",
]

Images = UInt8[Tensor, "batch 3 height width"]
Item = TypeVar("Item")

UNREADABLE = (
    OSError,
    SyntaxError,
    ValueError,
    TypeError,
    AttributeError,
    ArithmeticError,
    LookupError,
    EOFError,
    MemoryError,
    RuntimeError,
    AssertionError,
    ImportError,
    struct.error,
    zlib.error,
    Image.DecompressionBombError,
)
"""What Pillow is known to raise on damaged files: it parses hundreds of formats and has no error class of its own."""
ORIENTATION = 0x0112
"""EXIF tag."""
UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""EXIF orientation → the transposition that turns the picture upright."""
BITS_PER_SAMPLE, PHOTOMETRIC, LARGEST_SAMPLE, PLANES, SAMPLE_FORMAT = 258, 262, 281, 284, 339
"""TIFF tags."""
DARKEST = 1 / 4
"""A deep picture darker than this share of white probably means another white: 10, 12 and 14 bits stored in 16."""
LONGEST = 16
"""Sides in a longer ratio than this are cut before resizing, which would make a huge picture of a thin one."""
SIGNATURE = b"\x89PNG\r\n\x1a\n"


class Statistics(NamedTuple):
    """Channel means and standard deviations of a data set, in units of white."""

    mean: tuple[float, float, float]
    standard_deviation: tuple[float, float, float]


class Framing(NamedTuple):
    """How photographs become the squares that a pretrained network was judged on, in timm's words."""

    interpolation: str
    """bicubic or bilinear."""
    crop: float
    """Share of the resized picture's side that the square keeps."""
    mode: str
    """`center` cuts the square out of the center, `squash` ignores the picture's proportions, `border` pads."""


def normalized(
    images: UInt8[Tensor, "batch 3 height width"], statistics: Statistics, device: torch.device
) -> Float[Tensor, "batch 3 height width"]:
    """Images with zero mean and unit deviation per channel; 0 is the data set's mean color."""
    mean = torch.tensor(statistics.mean, device=device)[:, None, None] * 255
    scale = 1 / (torch.tensor(statistics.standard_deviation, device=device)[:, None, None] * 255)
    return (images.to(device, non_blocking=True) - mean).mul_(scale).contiguous(memory_format=torch.channels_last)


def held_out(labels: Int64[np.ndarray, "images"], share: float, seed: int) -> Bool[np.ndarray, "images"]:
    """Which training images are held out for validation: a share of each class, one at least, and never all of them."""
    chosen, generator = np.zeros(len(labels), dtype=bool), np.random.default_rng(seed)
    for label in range(int(labels.max()) + 1):
        own = (labels == label).nonzero()[0]
        assert len(own) > 1, label
        chosen[generator.permutation(own)[: min(max(1, round(share * len(own))), len(own) - 1)]] = True
    return chosen


def read_files(items: Sequence[Item], decode: Callable[[Item], UInt8[Tensor, "3 side side"]], threads: int) -> Images:
    """Images of one size, decoded on several threads, in order."""
    with ThreadPoolExecutor(threads) as pool:
        return torch.stack(list(pool.map(decode, items)))


def squared(
    image: Image.Image, size: int, resize: int | None = 0, framing: Framing | None = None
) -> UInt8[Tensor, "3 side side"]:
    """The center square of an image.

    Args:
        image: In RGB.
        size: Side of the square, in pixels.
        resize: Pixels to which the short side is resized before; 0 for what `framing` says, or for `size` without it;
            None for no resizing.
        framing: As a pretrained network was shown photographs; None resizes bicubically.
    """
    if resize is not None and (framing is None or framing.mode == "center"):
        width, height = (min(side, LONGEST * min(image.size)) for side in image.size)
        if (width, height) != image.size:
            left, top = (image.size[0] - width) // 2, (image.size[1] - height) // 2
            image = image.crop((left, top, left + width, top + height))
    if framing is not None and resize == 0:
        return _framed(framing, size)(image)
    if resize is not None:
        kind = functional.InterpolationMode(framing.interpolation if framing is not None else "bicubic")
        image = functional.resize(image, [resize or size], interpolation=kind, antialias=True)
    return functional.pil_to_tensor(functional.center_crop(image, [size, size]))


@lru_cache
def _framed(framing: Framing, size: int) -> Callable[[Image.Image], UInt8[Tensor, "3 side side"]]:
    """timm's own transform of a photograph, without the normalization."""
    from timm.data import create_transform  # here, because it takes a second that reports do not need

    return create_transform(
        size, interpolation=framing.interpolation, crop_pct=framing.crop, crop_mode=framing.mode, normalize=False
    )


def decoded(file: Path) -> Image.Image:
    """One picture in RGB, turned upright as its EXIF data say; of an animation the first picture, without transparency.

    Raises:
        UserError: the file cannot be decoded, or nothing says which of its values is white; the sentence names it.
    """
    return _decoded(file, quick=False)


def check_decodable(file: Path) -> None:
    """Refuse what `decoded` refuses; JPEG files are decoded at an eighth of their size, from all of their bytes.

    Raises:
        UserError: as decoded.
    """
    _decoded(file, quick=True)


def _decoded(file: Path, quick: bool) -> Image.Image:
    try:
        if not stat.S_ISREG(file.stat().st_mode):
            raise UserError(f"'{file}' is {'a folder' if file.is_dir() else 'no file'}: an image file is needed")
        return _upright_rgb(file, file, quick)
    except UserError:
        raise
    except UNREADABLE as error:
        try:  # Pillow refuses whole PNG files for what stands beside the picture: long texts, broken color profiles
            return _upright_rgb(io.BytesIO(_picture_chunks(file.read_bytes())), file, quick)
        except UserError:
            raise
        except UNREADABLE:
            raise _refusal(file, error) from error


def _refusal(file: Path, error: Exception) -> UserError:
    """The sentence about a file that could not be decoded."""
    if isinstance(error, UnidentifiedImageError):
        return UserError(f"'{file}' is not an image that Pillow can read: store it as PNG or JPEG, or remove it")
    if isinstance(error, FileNotFoundError):
        return UserError(f"'{file}' is missing: restore it, or remove what names it")
    if isinstance(error, OSError) and error.errno is not None:
        return UserError(f"'{file}' could not be read ({error.strerror}): check the drive and run this again")
    if isinstance(error, Image.DecompressionBombError):
        limit = 2 * (Image.MAX_IMAGE_PIXELS or 0) / 1e6
        return UserError(f"'{file}' has more than {limit:.0f} megapixels: make it smaller or remove it")
    cause = " ".join(str(error).split()) or type(error).__name__
    return UserError(f"'{file}' is truncated or damaged ({cause}): replace it or remove it from the data folder")


def _upright_rgb(source: Path | io.BytesIO, file: Path, quick: bool) -> Image.Image:
    """The picture of an open file, in RGB and upright."""
    with Image.open(source) as opened:
        if quick:
            opened.draft(None, (1, 1))
        deep = any(";16" in str(tile[3]) for tile in opened.tile)
        opened.load()
        try:
            orientation = opened.getexif().get(ORIENTATION)
        except UNREADABLE:  # EXIF data that cannot be read say nothing: many cameras and editors write broken ones
            orientation = None
        image = _rgb(opened, deep, file)
        turn = UPRIGHT.get(orientation) if isinstance(orientation, int) else None
        return image if turn is None else image.transpose(turn)


def _rgb(image: Image.Image, deep: bool, file: Path) -> Image.Image:
    """A loaded picture in RGB; `deep` tells whether the file has 16 bits per channel.

    Raises:
        UserError: as _eight_bit.
    """
    tags = getattr(image, "tag_v2", {})
    if image.mode.startswith(("I", "F")) or (image.mode == "L" and _signed(tags)):
        return _eight_bit(image, tags, file)
    if tags.get(PLANES) == 2 and max(tags.get(BITS_PER_SAMPLE, (8,))) > 8:
        raise UserError(f"'{file}' holds 16 bits per channel in planes, which Pillow mixes up: store it with 8 bits")
    if deep:  # Pillow has kept the upper 8 bits of each value
        colors = len(image.getbands()) - image.mode.endswith("A")
        highest = int(np.asarray(image).reshape(*image.size[::-1], -1)[..., :colors].max())
        if highest < DARKEST * 255:
            raise _unknown_white(file, "16 bits per channel", 0, 257 * highest)
    if image.mode in ("La", "RGBa"):  # colors multiplied by the opacity, which Pillow takes back first
        image = image.convert(image.mode.upper())
    return image.convert("RGB")


def _signed(tags: Mapping[int, Any]) -> bool:
    return tags.get(SAMPLE_FORMAT, (1,))[0] == 2


def _eight_bit(image: Image.Image, tags: Mapping[int, Any], file: Path) -> Image.Image:
    """A gray picture of integers or floats in RGB, scaled by what the file says of its white, else by its range.

    Pillow would clip such values to 0 … 255 instead of scaling them.

    Raises:
        UserError: neither the file nor the range of the values says which value is white.
    """
    values = np.asarray(image)
    values = (values.view(np.int8) if image.mode == "L" else values).astype(np.float64)
    low, high = float(values.min()), float(values.max())
    white = tags.get(LARGEST_SAMPLE) or _white(image.mode, tags, high)
    white = white[0] if isinstance(white, tuple) else white
    if not (white and np.isfinite(values).all() and low >= 0 and high <= white):
        raise _unknown_white(file, "fractions" if image.mode == "F" else "whole numbers", low, high)
    if tags.get(PHOTOMETRIC) == 0:  # white is zero
        values = white - values
    scaled = values // 257 if white == 65535 else np.rint(values * (255 / white))
    return Image.fromarray(scaled.astype(np.uint8)).convert("RGB")


def _white(mode: str, tags: Mapping[int, Any], high: float) -> int | None:
    """The value that is white by the type of the values and the highest of them; None if another is as likely."""
    bits = tags.get(BITS_PER_SAMPLE, (16,))[0]
    if mode.startswith("I;") and bits < 16:
        return 2**bits - 1
    if _signed(tags) and bits <= 16:
        candidates = (2 ** (bits - 1) - 1,)
    else:
        candidates = (1, 255) if mode == "F" else (255, 65535) if bits == 32 else (65535,)
    white = next((one for one in candidates if high <= one), None)
    return None if white is None or 0 < high < DARKEST * white else white


def _unknown_white(file: Path, kind: str, low: float, high: float) -> UserError:
    return UserError(
        f"'{file}' holds {kind} from {low:g} to {high:g}, and nothing says which value is white: "
        "store it with 8 bits per channel"
    )


def _chunks(content: bytes) -> Iterator[tuple[bytes, bytes]]:
    """The type and the bytes of each chunk of a PNG file."""
    start = len(SIGNATURE)
    while start + 12 <= len(content):
        end = start + 12 + int.from_bytes(content[start : start + 4], "big")
        yield content[start + 4 : start + 8], content[start:end]
        start = end


def _picture_chunks(content: bytes) -> bytes:
    """A PNG file without the chunks that do not change its pixels (their types begin with a small letter).

    EXIF data, which say how the picture is turned, stay where they are whole. Of other files nothing is left.
    """
    whole = content if content.startswith(SIGNATURE) else b""
    kept = (
        chunk
        for kind, chunk in _chunks(whole)
        if kind[:1].isupper() or (kind == b"eXIf" and zlib.crc32(chunk[4:-4]) == int.from_bytes(chunk[-4:], "big"))
    )
    return SIGNATURE + b"".join(kept)
