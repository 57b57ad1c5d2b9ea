"""Open any classifier: one of ours, a timm model with its published weights, or a state dict on disk."""

import pickle
from pathlib import Path

import timm
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from everycause.data.split import Statistics
from everycause.errors import UserError
from everycause.models import FILE, Classifier, ModelParams, load, own_statistics

TIMM = "timm:"
IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
"""Channel means and standard deviations of ImageNet, for networks of which timm knows none."""
UNREADABLE = (
    SafetensorError,
    OSError,
    RuntimeError,
    EOFError,
    ValueError,
    LookupError,
    AttributeError,
    pickle.UnpicklingError,
)
"""What the readers raise over a file that holds no weights; the unpickler fails in many ways."""


def open_classifier(
    place: str, params: ModelParams, class_names: tuple[str, ...], image_size: int, device: torch.device
) -> Classifier:
    """The classifier at `place`: a stage's folder, `timm:NAME`, or the path of a state dict for `model.name`.

    Weights from elsewhere see images normalized as timm's configuration of that model says.

    Raises:
        UserError: there is nothing there, or it has other classes or other layers; the sentence says what to do.
    """
    path = Path(place)
    if place.startswith(TIMM):
        chosen = params.model_copy(update={"name": place.removeprefix(TIMM), "pretrained": True, "head": "published"})
        _same_classes(chosen.name, class_names)
        return _foreign(chosen, class_names, image_size, device)
    if path.is_dir() or not path.suffix:
        return load(path, device)
    if not path.is_file():
        raise UserError(
            f"--model: '{path}' does not exist: give a folder with {FILE}, a state dict (.pth, .pt, .safetensors), "
            "or timm:NAME"
        )
    classifier = _foreign(params.model_copy(update={"pretrained": False}), class_names, image_size, device)
    try:
        classifier.network.load_state_dict(_state(path))
    except RuntimeError as error:
        lines = str(error).strip().splitlines()
        first = lines[min(1, len(lines) - 1)].strip()
        raise UserError(
            f"--model: '{path}' is no state dict of {params.name} with {len(class_names)} classes ({first[:160]}): "
            "set model.name and model.head to what it was trained as"
        ) from error
    return classifier


def _foreign(params: ModelParams, class_names: tuple[str, ...], image_size: int, device: torch.device) -> Classifier:
    statistics = own_statistics(params.name) or Statistics(*IMAGENET)
    classifier = Classifier(params, class_names, image_size, statistics)
    return classifier.to(device=device, memory_format=torch.channels_last).eval()


def _same_classes(name: str, class_names: tuple[str, ...]) -> None:
    """Published weights have a head of their own: with another number of classes it would be random."""
    published = timm.get_pretrained_cfg(name) if timm.is_model(name) else None
    if published is not None and published.num_classes != len(class_names):
        raise UserError(
            f"--model: the published {name} has {published.num_classes} classes and the data {len(class_names)}: "
            "retrain it on these data first"
        )


def _state(path: Path) -> dict[str, torch.Tensor]:
    """The tensors of a checkpoint file, without the wrappings that training scripts leave around them.

    Raises:
        UserError: it holds none.
    """
    try:
        found = (
            load_file(path)
            if path.suffix == ".safetensors"
            else torch.load(path, map_location="cpu", weights_only=True)
        )
    except UNREADABLE as error:
        raise UserError(
            f"--model: '{path}' cannot be read as weights ({type(error).__name__}): save a plain state dict"
        ) from error
    for key in ("state_dict", "model", "state_dict_ema"):
        if isinstance(found, dict) and isinstance(found.get(key), dict):
            found = found[key]
            break
    if not isinstance(found, dict) or not found or not all(isinstance(value, torch.Tensor) for value in found.values()):
        raise UserError(f"--model: '{path}' holds no state dict: save model.state_dict()")
    return {name.removeprefix("module."): value for name, value in found.items()}
