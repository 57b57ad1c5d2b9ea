"""The images and networks that users hand to `explain`, checked and brought into one form.

Images become RGB pictures of eight bits per channel. Networks become `Preprocessing`: how a picture is resized, cropped
and normalized for this network. Everything that does not fit is refused in one sentence.
"""

import math
import operator
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import timm.data
import torch
from PIL import Image, ImageOps
from torch import Tensor, nn
from torchvision.transforms.v2 import functional

from everycause.data.images import UNREADABLE, Statistics, decoded, squared
from everycause.errors import UserError
from everycause.shapes import UInt8

ACCEPTED = "a PIL image, a path, or an array or tensor of H × W, H × W × 3 or 3 × H × W (uint8, or floats in [0, 1])"
IMAGENET = "mean=(0.485, 0.456, 0.406), standard_deviation=(0.229, 0.224, 0.225)"
TORCHVISION_SIZE, TORCHVISION_RESIZE = 224, 256
"""Center crop and short side before it, as torchvision's presets have them for almost all of its networks."""
ROUNDING = 1e-4
"""By how much floats may leave [0, 1]: resizing and conversions round."""
SIXTEEN_BITS = range(4096, 65536)
"""Largest values of integers that are taken for 16 bits; as in files, smaller ones would be read as nearly black."""
LARGEST_SIDE = 16384
"""Pixels; a larger image_size is a mistake."""


def rgb_picture(image: Any) -> Image.Image:
    """Anything that holds one image, as an upright RGB picture; one channel is repeated, transparency is dropped.

    Raises:
        UserError: it is no image, or not one image; the sentence says what was expected.
    """
    if isinstance(image, str | os.PathLike):
        return _from_file(Path(image))
    if isinstance(image, Image.Image):
        try:
            return _upright(image)
        except UserError:
            raise
        except UNREADABLE as error:  # Pillow reads pixels late: a damaged or closed image is found here
            raise UserError(f"the image cannot be decoded ({_cause(error)}): give a whole one") from error
    if isinstance(image, Tensor):
        try:
            plain = image.detach().cpu().to_dense()
            plain = plain.float() if plain.is_floating_point() and plain.dtype != torch.float64 else plain
            return _from_array(plain.numpy(), channels_first=True)
        except (RuntimeError, TypeError) as error:  # torch: a tensor without values, or of a type that numpy lacks
            raise UserError(f"the image's values cannot be read ({_cause(error)}): give {ACCEPTED}") from error
    if isinstance(image, np.ndarray):
        return _from_array(image, channels_first=False)
    raise UserError(f"the image is a {type(image).__name__}: give {ACCEPTED}")


def _from_file(path: Path) -> Image.Image:
    try:
        missing = not path.is_file()
    except OSError as error:
        raise UserError(
            f"the image '{str(path)[:80]}' cannot be read ({error.strerror}): give an image file"
        ) from error
    if missing:
        raise UserError(f"the image '{path}' is {'a folder' if path.is_dir() else 'missing'}: give an image file")
    return decoded(path)


def _cause(error: Exception) -> str:
    return " ".join(str(error).split())[:160] or type(error).__name__


def _upright(image: Image.Image) -> Image.Image:
    if 0 in image.size:
        raise UserError(f"the image is empty ({image.size[0]} × {image.size[1]} pixels): give an image with pixels")
    try:
        image = ImageOps.exif_transpose(image)
    except Exception:  # broken EXIF data fail in many ways inside Pillow, and then say nothing about a rotation
        image = image.copy()
    if image.mode.startswith(("I", "F")):
        return _from_array(np.asarray(image), channels_first=False)
    return image.convert("RGB")


def _from_array(values: np.ndarray, channels_first: bool) -> Image.Image:
    """An array as an RGB picture; where both layouts are possible, `channels_first` decides."""
    shape = " × ".join(map(str, values.shape)) or "one number"
    if values.size == 0:
        raise UserError(f"the image is empty ({shape}): give {ACCEPTED}")
    if values.ndim == 4 and len(values) == 1:
        values = values[0]
    if values.ndim == 4:
        raise UserError(f"a batch of {len(values)} images was given ({shape}): explain one image at a time")
    first, last = (values.ndim == 3 and values.shape[axis] in (1, 3, 4) for axis in (0, -1))
    if values.ndim == 3 and first and (channels_first or not last):
        values = values.transpose(1, 2, 0)
    elif values.ndim != 2 and not last:
        raise UserError(f"the image has the shape {shape}: give {ACCEPTED}")
    pixels = np.ascontiguousarray(_eight_bits(values))
    return Image.fromarray(pixels[:, :, 0] if pixels.ndim == 3 and pixels.shape[2] == 1 else pixels).convert("RGB")


def _eight_bits(values: np.ndarray) -> UInt8[np.ndarray, "..."]:
    """Pixel values as uint8: floats from [0, 1] and integers of 16 bits are scaled, other integers are 0 … 255."""
    if not (np.issubdtype(values.dtype, np.floating) or np.issubdtype(values.dtype, np.integer)):
        raise UserError(f"the image holds {values.dtype} values: give uint8 from 0 to 255, or floats from 0 to 1")
    if not np.isfinite(values).all():
        raise UserError("the image holds NaN or infinite values: give uint8 from 0 to 255, or floats from 0 to 1")
    low, high = float(values.min()), float(values.max())
    if np.issubdtype(values.dtype, np.integer):
        if low >= 0 and high in SIXTEEN_BITS:
            return (values // 257).astype(np.uint8)
        if low < 0 or high > 255:
            raise UserError(
                f"the image holds {values.dtype} values from {low:g} to {high:g}, and integers must lie in 0 … 255 or "
                "fill 16 bits: scale it"
            )
        return values.astype(np.uint8)
    if low < -ROUNDING or high > 1 + ROUNDING:
        raise UserError(
            f"the image holds floats from {low:.4g} to {high:.4g}, and floats must lie in [0, 1]: give the image "
            "before normalization, or as uint8 where its values go to 255"
        )
    return np.rint(values.clip(0, 1).astype(np.float64) * 255).astype(np.uint8)


@dataclass(frozen=True)
class Preprocessing:
    """How a network sees pictures: geometry, and normalization."""

    image_size: int | None
    """Side of the square that the network sees, in pixels; None where a square picture is taken as it is."""
    statistics: Statistics
    resize: Callable[[Image.Image], UInt8[Tensor, "3 side side"]] | None
    """Brings a picture of any size to a square of `image_size`."""

    def __call__(self, picture: Image.Image) -> UInt8[Tensor, "3 side side"]:
        """The square that the network sees: a picture of its size as it is, any other one resized and cropped.

        Raises:
            UserError: the picture is not square and nothing says which size the network takes.
        """
        width, height = picture.size
        if width == height and self.image_size in (None, width):
            return functional.pil_to_tensor(picture)
        if self.resize is None:
            raise UserError(
                f"the image has {width} × {height} pixels, and the size that the network takes is not known: "
                "give image_size (the short side is resized to it and the center square is cut out) or a square image"
            )
        return self.resize(picture)


def preprocessing_of(
    model: nn.Module, mean: Sequence[float] | None, deviation: Sequence[float] | None, image_size: int | None
) -> Preprocessing:
    """The preprocessing of a network: what is given, else what the network says of itself.

    Our classifiers hold their statistics, size and framing; timm networks hold them in `pretrained_cfg`. For any other
    network mean and standard deviation must be given. A torchvision network takes 224 pixels, cut out of a picture
    whose short side is 256; any other one the short side resized to `image_size` (bicubic).

    Raises:
        UserError: something is missing or makes no sense.
    """
    if (mean is None) != (deviation is None):
        raise UserError("mean and standard_deviation belong together: give both or neither")
    if image_size is not None:
        given, image_size = image_size, whole_number(image_size)
        if image_size is None or not 1 <= image_size <= LARGEST_SIDE:
            raise UserError(f"image_size is {given!r}: give the side of the network's square images in pixels")
    known, resize, framing = None, None, None
    config = getattr(model, "pretrained_cfg", None)
    if (own := getattr(model, "statistics", None)) is not None and hasattr(model, "image_size"):
        known, image_size, framing = own, image_size or model.image_size, getattr(model, "framing", None)
    elif config and (config.get("mean") if isinstance(config, dict) else getattr(config, "mean", None)):
        data = timm.data.resolve_data_config({}, model=model)
        known, size = Statistics(tuple(data["mean"]), tuple(data["std"])), data["input_size"][1:]
        if image_size is None and size[0] != size[1]:
            raise UserError(f"the network takes images of {size[0]} × {size[1]} pixels: only square ones are explained")
        image_size = image_size or size[0]
        keys = ("interpolation", "crop_pct", "crop_mode")
        resize = timm.data.create_transform(image_size, **{key: data[key] for key in keys}, normalize=False)
    elif type(model).__module__.startswith("torchvision.models") and image_size is None:
        image_size = TORCHVISION_SIZE

        def resize(picture: Image.Image) -> Tensor:
            return squared(picture, TORCHVISION_SIZE, TORCHVISION_RESIZE)

    if mean is None and known is None:
        raise UserError(
            f"a {type(model).__name__} does not say how its images are normalized: give mean and standard_deviation "
            f"(for ImageNet weights of torchvision {IMAGENET})"
        )
    statistics = known if mean is None else _statistics(mean, deviation)
    if resize is None and image_size is not None:
        side = image_size

        def resize(picture: Image.Image) -> Tensor:
            return squared(picture, side, framing=framing)

    return Preprocessing(image_size, statistics, resize)


def whole_number(value: Any) -> int | None:
    """An integer of Python, numpy or torch as Python's; None for anything else, a truth value included."""
    try:
        return None if isinstance(value, bool) else operator.index(value)
    except (TypeError, ValueError, RuntimeError):
        return None


def _statistics(mean: Any, deviation: Any) -> Statistics:
    values = []
    for name, given in (("mean", mean), ("standard_deviation", deviation)):
        try:
            three = tuple(float(value) for value in given)
        except (TypeError, ValueError):
            three = ()
        if len(three) != 3 or not all(math.isfinite(value) for value in three):
            raise UserError(f"{name} is {given!r}: give three numbers, for red, green and blue, such as {IMAGENET}")
        if max(map(abs, three)) > 2 or (name != "mean" and min(three) <= 0):
            above = "" if name == "mean" else " and above zero"
            raise UserError(f"{name} is {three}: give it in units of white (1, not 255){above}")
        values.append(three)
    return Statistics(*values)


def device_of(model: nn.Module, asked: torch.device | str | None) -> torch.device:
    """The one device where a network lies.

    Raises:
        UserError: it has no weights, or lies on several devices, or not on the one that is asked for.
    """
    devices = sorted({str(value.device) for value in [*model.parameters(), *model.buffers()]})
    if "meta" in devices:
        raise UserError("the network lies on the device 'meta', without weights: load its weights before explaining it")
    if len(devices) > 1:
        raise UserError(f"the network lies on several devices ({', '.join(devices)}): move it to one of them")
    found = torch.device(devices[0] if devices else (asked or "cpu"))
    if asked is not None:
        try:
            wanted = torch.device(asked)
        except (RuntimeError, TypeError) as error:
            raise UserError(f"device is {asked!r}, which torch does not know: give 'cpu' or 'cuda'") from error
        if wanted.type != found.type or wanted.index not in (None, found.index):
            raise UserError(
                f"the network lies on '{found}' and device is '{wanted}': move it with model.to('{wanted}'), or leave "
                "device out"
            )
    return found
