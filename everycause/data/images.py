"""Image files: found in folders, decoded to squares of one size, and identified by their content.

All readers of photographs (folder, cub, imagenet, waterbirds) use this module. It needs numpy, torch, torchvision and
Pillow alone, so that an image can be explained without the rest of the project.
"""

import io
import os
import struct
import zlib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple, TypeVar

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor
from torchvision.transforms.v2 import functional

from everycause.data.digests import content_digest
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
BITS_PER_SAMPLE, LARGEST_SAMPLE = 258, 281
"""TIFF tags."""
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
    return (images.to(device) - mean).mul_(scale).contiguous(memory_format=torch.channels_last)


def image_files(folder: Path) -> list[Path]:
    """Every file below a folder but hidden ones, sorted; a file that is no image is an error only when it is read.

    Raises:
        UserError: as visible_entries, or a link leads back to a folder that holds it.
    """
    return sorted(_visible_files(folder, (folder.resolve(),)))


def _visible_files(folder: Path, opened: tuple[Path, ...]) -> Iterator[Path]:
    """The visible files below a folder; `opened` are the real paths of the folders that led here."""
    for entry in visible_entries(folder):
        if not entry.is_dir():
            yield entry
            continue
        real = entry.resolve()
        if real in opened:
            target = os.readlink(entry)
            raise UserError(
                f"the symbolic link '{entry}' to '{target}' leads back to a folder that holds it: remove it"
            )
        yield from _visible_files(entry, (*opened, real))


def visible_entries(folder: Path) -> list[Path]:
    """The files and folders in a folder but hidden ones, sorted; symbolic links stand for what they lead to.

    Raises:
        UserError: the folder cannot be listed, a link is broken, or a name is no UTF-8.
    """
    try:
        entries = sorted(entry for entry in folder.iterdir() if not entry.name.startswith("."))
    except OSError as error:
        raise UserError(f"the folder '{folder}' cannot be listed ({error.strerror}): check its permissions") from error
    for entry in entries:
        try:
            entry.name.encode()
        except UnicodeEncodeError as error:
            name = os.fsencode(entry.name)
            raise UserError(f"the name {name!r} in '{folder}' is no UTF-8: rename it") from error
        if entry.is_symlink() and not entry.exists():
            raise UserError(f"the symbolic link '{entry}' to '{os.readlink(entry)}' is broken: mend or remove it")
    return entries


def within(root: Path, place: str, key: str) -> Path:
    """A file or folder below a data folder.

    Args:
        root: The data folder.
        place: Path relative to it.
        key: What names the path, for the message: a dotted path of params.yaml, or a row and file.

    Raises:
        UserError: the path leaves the data folder.
    """
    path = root / place
    if not path.resolve().is_relative_to(root.resolve()):
        raise UserError(f"{key}: '{place}' lies outside '{root}': paths may not leave the data folder")
    return path


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
    try:
        try:
            return _upright_rgb(file, file)
        except (ValueError, SyntaxError):
            # Pillow refuses whole PNG files for what stands beside the picture: long texts, broken color profiles.
            with file.open("rb") as stream:
                if stream.read(len(SIGNATURE)) != SIGNATURE:
                    raise
            return _upright_rgb(io.BytesIO(_picture_chunks(file.read_bytes())), file)
    except UserError:
        raise
    except UNREADABLE as error:
        raise _refusal(file, error) from error


def _refusal(file: Path, error: Exception) -> UserError:
    """The sentence about a file that could not be decoded."""
    if isinstance(error, UnidentifiedImageError):
        return UserError(f"'{file}' is not an image that Pillow can read: remove it from the data folder")
    if isinstance(error, FileNotFoundError):
        return UserError(f"'{file}' is missing: restore it, or remove what names it")
    if isinstance(error, OSError) and error.errno is not None:
        return UserError(f"'{file}' could not be read ({error.strerror}): check the drive and run this again")
    if isinstance(error, Image.DecompressionBombError):
        limit = 2 * (Image.MAX_IMAGE_PIXELS or 0) / 1e6
        return UserError(f"'{file}' has more than {limit:.0f} megapixels: make it smaller or remove it")
    cause = " ".join(str(error).split()) or type(error).__name__
    return UserError(f"'{file}' is truncated or damaged ({cause}): replace it or remove it from the data folder")


def _upright_rgb(source: Path | io.BytesIO, file: Path) -> Image.Image:
    """The picture of an open file, in RGB and upright."""
    with Image.open(source) as opened:
        opened.load()
        try:
            orientation = opened.getexif().get(ORIENTATION)
        except UNREADABLE:  # EXIF data that cannot be read say nothing: many cameras and editors write broken ones
            orientation = None
        image = _eight_bit(opened, file) if opened.mode.startswith(("I", "F")) else opened.convert("RGB")
        turn = UPRIGHT.get(orientation) if isinstance(orientation, int) else None
        return image if turn is None else image.transpose(turn)


def _eight_bit(image: Image.Image, file: Path) -> Image.Image:
    """A gray picture of integers or floats in RGB, scaled by what the file says of its white, else by its range.

    Pillow would clip such values to 0 … 255 instead of scaling them.

    Raises:
        UserError: neither the file nor the range of the values says which value is white.
    """
    values = np.asarray(image, dtype=np.float64)
    low, high = float(values.min()), float(values.max())
    tags = getattr(image, "tag_v2", {})
    white = tags.get(LARGEST_SAMPLE)
    white = white[0] if isinstance(white, tuple) else white
    bits = tags.get(BITS_PER_SAMPLE, (16,))[0]
    if white is None and image.mode.startswith("I;") and bits < 16:
        white = 2**bits - 1
    if white is None and image.mode == "F":
        white = 1.0 if high <= 1 else 255.0 if high <= 255 else None
    elif white is None and image.mode == "I" and bits == 32 and high <= 255:
        white = 255
    elif white is None and high <= 65535:
        white = None if 0 < high < 4096 else 65535  # as large as 12 bits allow: would be read as black
    if white is None or not (np.isfinite(values).all() and low >= 0 and high <= white):
        raise UserError(
            f"'{file}' holds {'fractions' if image.mode == 'F' else 'whole numbers'} from {low:g} to {high:g}, and "
            "nothing says which value is white: store it with 8 bits per channel"
        )
    scaled = values // 257 if white == 65535 else np.rint(values * (255 / white))
    return Image.fromarray(scaled.astype(np.uint8)).convert("RGB")


def _chunks(content: bytes) -> Iterator[tuple[bytes, bytes]]:
    """The type and the bytes of each chunk of a PNG file."""
    start = len(SIGNATURE)
    while start + 12 <= len(content):
        end = start + 12 + int.from_bytes(content[start : start + 4], "big")
        yield content[start + 4 : start + 8], content[start:end]
        start = end


def _picture_chunks(content: bytes) -> bytes:
    """A PNG file without the chunks that do not change its pixels (their types begin with a small letter)."""
    kept = (chunk for kind, chunk in _chunks(content) if kind[:1].isupper() or kind in (b"tRNS", b"eXIf"))
    return SIGNATURE + b"".join(kept)


def check_decodable(file: Path) -> None:
    """Refuse a file that is no whole image, without decoding it where its format allows that.

    Raises:
        UserError: as decoded.
    """
    try:
        with Image.open(file) as opened:
            kind = opened.format
            if kind == "PNG" and not opened.mode.startswith("I"):
                opened.verify()  # checksums of all chunks: finds what is cut off or damaged
                return
        if kind == "JPEG":
            with file.open("rb") as stream:
                stream.seek(max(0, file.stat().st_size - 4096))
                if b"\xff\xd9" in stream.read():  # the end of the picture: nothing was cut off
                    return
    except UNREADABLE:
        pass  # decoding decides, and finds the sentence
    decoded(file)
