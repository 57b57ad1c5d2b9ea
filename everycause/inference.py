"""Classifiers in use: opened from anywhere, held against the data, applied to images and to whole splits."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from everycause import ranks
from everycause.data.images import Images, Statistics, normalized
from everycause.data.split import Split, batches, parts
from everycause.errors import UserError
from everycause.models import FILE, Classifier, ModelParams, Readout, load
from everycause.networks import evaluating, own_framing, own_statistics
from everycause.shapes import Float, Int64
from everycause.weights import UNREADABLE, not_finite, published

BATCH = {"cpu": 64, "cuda": 512}
"""Images per forward pass. On a CPU the activations of a small batch stay in the cache: 64 is 1.6 times as fast as
256 (measured)."""
READ_TOGETHER = 4096
"""Images whose logits and activations are held at once: a multiple of every batch size, so that batches are the same as
without. Those of a ResNet-50 on ImageNet take 50 MB."""


def batch_size(classifier: Classifier) -> int:
    """Images per forward pass on the classifier's device."""
    return BATCH.get(classifier.device.type, 256)


def check_fits(classifier: Classifier, split: Split) -> None:
    """Refuse images of another size, or with other classes, than those that a classifier was made for.

    Raises:
        UserError: they differ; the sentence names both.
    """
    if split.class_names != classifier.class_names:
        ours, theirs = classifier.class_names, split.class_names
        other = next((name for name in theirs if name not in ours), None)
        named = f", such as '{other}', which the model does not know" if other is not None else ""
        raise UserError(
            f"the model knows {len(ours)} classes, and they are not the {len(theirs)} of '{split.name}'{named}: "
            "use it on its own data, or train a base on these (`dvc repro train_base`)"
        )
    if split.image_size != classifier.image_size:
        raise UserError(
            f"the model was made for images of {classifier.image_size} pixels, and those of '{split.name}' have "
            f"{split.image_size}: set the data source's image_size to {classifier.image_size}, or train a base anew"
        )


def normalized_chunks(classifier: Classifier, images: Images) -> Iterator[Float[Tensor, "batch 3 height width"]]:
    """Images normalized as the classifier expects them, a batch at a time."""
    for chunk in images.split(batch_size(classifier)):
        yield normalized(chunk, classifier.statistics, classifier.device)


@torch.inference_mode()
def logits_of_images(
    classifier: Classifier, images: Images, network: nn.Module | None = None
) -> Float[Tensor, "images classes"]:
    """Logits of images, on the CPU. `network` is the classifier's own, or a folded copy of it."""
    network = classifier.network if network is None else network
    with evaluating(network):
        return torch.cat([network(chunk).float().cpu() for chunk in normalized_chunks(classifier, images)])


def logit_batches(
    classifier: Classifier, split: Split, network: nn.Module | None = None
) -> Iterator[Float[Tensor, "batch classes"]]:
    """Logits of a split in order, on the CPU, some hundred images at a time. `network` as in logits_of_images.

    Raises:
        UserError: the split's images or classes are not those that the classifier was made for.
    """
    check_fits(classifier, split)
    for batch in batches(split, 8 * batch_size(classifier)):
        yield logits_of_images(classifier, batch.images, network)


def logits_of(
    classifier: Classifier, split: Split, network: nn.Module | None = None
) -> Float[Tensor, "images classes"]:
    """All logits of a split, on the CPU. `network` as in logits_of_images.

    Raises:
        UserError: the split's images or classes are not those that the classifier was made for.
    """
    return torch.cat(list(logit_batches(classifier, split, network)))


def readouts(classifier: Classifier, split: Split) -> Iterator[tuple[Readout, Int64[Tensor, "images"]]]:
    """Logits and pooled activations of a split with its labels, on the CPU, at most READ_TOGETHER images at a time.

    Raises:
        UserError: the split's images or classes are not those that the classifier was made for.
    """
    check_fits(classifier, split)
    for start in range(0, len(split), READ_TOGETHER):
        rows = np.arange(start, min(start + READ_TOGETHER, len(split)))
        read = batches(split, batch_size(classifier), rows)
        yield (
            joined([readout_of_images(classifier, batch.images) for batch in read]),
            split.labels[torch.as_tensor(rows)],
        )


def readout_of(classifier: Classifier, split: Split) -> Readout:
    """Logits and pooled activations of a whole split, on the CPU.

    Raises:
        UserError: the split's images or classes are not those that the classifier was made for.
    """
    return joined([readout for readout, _ in readouts(classifier, split)])


def logits_divided(
    classifier: Classifier, split: Split, network: nn.Module | None = None
) -> Float[Tensor, "images classes"]:
    """As logits_of, and bit by bit the same; several processes, which must all call it, divide the images among them.

    Raises:
        UserError: as logits_of.
    """
    if ranks.count() == 1:
        return logits_of(classifier, split, network)
    check_fits(classifier, split)
    rows = parts(len(split), batch_size(classifier))
    return torch.cat(ranks.mapped(lambda some: logits_of_images(classifier, split.read(some), network), rows))


@torch.inference_mode()
def readout_of_images(classifier: Classifier, images: Images) -> Readout:
    """Logits and pooled activations of one batch of images, on the CPU."""
    with evaluating(classifier):
        readout = classifier.readout(normalized(images, classifier.statistics, classifier.device))
        return Readout(readout.logits.cpu(), readout.activations.cpu())


def joined(parts: list[Readout]) -> Readout:
    """The readout of several batches."""
    return Readout(*(torch.cat(columns) for columns in zip(*parts, strict=True)))


TIMM = "timm:"
IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
"""Channel means and standard deviations of ImageNet, for networks of which timm knows none."""


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
    state = _state(path)
    try:
        classifier.network.load_state_dict(state)
    except (RuntimeError, TypeError) as error:
        lines = str(error).strip().splitlines()
        first = lines[min(1, len(lines) - 1)].strip()
        raise UserError(
            f"--model: '{path}' is no state dict of {params.name} with {len(class_names)} classes ({first[:160]}): "
            "set model.name and model.head to what it was trained as"
        ) from error
    if broken := not_finite(state):
        raise UserError(f"--model: '{path}' holds weights that are not finite ('{broken}'): take another checkpoint")
    return classifier


def _foreign(params: ModelParams, class_names: tuple[str, ...], image_size: int, device: torch.device) -> Classifier:
    """A classifier with weights that were not trained here: it sees images as timm's description says."""
    statistics = own_statistics(params.name) or Statistics(*IMAGENET)
    classifier = Classifier(params, class_names, image_size, statistics, own_framing(params.name))
    return classifier.to(device=device, memory_format=torch.channels_last).eval()


def _same_classes(name: str, class_names: tuple[str, ...]) -> None:
    """Published weights have a head of their own: with another number of classes it would be random."""
    described = published(name)
    if described is not None and described.num_classes != len(class_names):
        raise UserError(
            f"--model: the published {name} has {described.num_classes} classes and the data {len(class_names)}: "
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
