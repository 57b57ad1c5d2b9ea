"""The front door: the regions of one image whose removal changes a network's prediction, for any torch classifier.

    explanation = explain(timm.create_model("resnet18", pretrained=True), "photo.jpg")
    explanation.plot("explanation.png")

`Explainer` prepares a network once, for many images; `explain` does it for one. The network is left exactly as it was.
The search is that of everycause.explanation.search; every flip is confirmed by the network itself in float32.

This module and what it imports need torch, torchvision, timm, numpy and Pillow alone.
Paper: arXiv 2511.12100. Cost: about 100 forward passes per image with 49 regions, 400 where no set is found fast.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import numpy as np
import torch
from torch import Tensor, nn

from everycause.data.images import normalized
from everycause.errors import UserError
from everycause.explanation.inputs import device_of, preprocessing_of, rgb_picture, whole_number
from everycause.explanation.objectives import ObjectiveName, log_odds, runner_up
from everycause.explanation.regions import (
    BaselineName,
    MaskedImages,
    PartitionKind,
    is_shared,
    largest_set,
    masked_images,
    partitions,
)
from everycause.explanation.scoring import Scorer
from everycause.explanation.search import Method, SearchInputs, search
from everycause.shapes import Bool, Float, Int64, UInt8

if TYPE_CHECKING:
    from matplotlib.figure import Figure

CLOSE = 1e-2
"""Largest difference of logits, relative to the largest, between the accelerated copy and the network."""


@dataclass(frozen=True, eq=False)
class Explanation:
    """The regions of one image whose removal changes a network's prediction."""

    label: int
    """The predicted class."""
    flipped: bool
    """Whether a set was found whose removal changes the prediction."""
    order: list[int]
    """The regions of the set, in the order of their removal."""
    regions: Bool[np.ndarray, "height width"]
    """The pixels of the set."""
    probabilities: Float[np.ndarray, "steps classes"]
    """Of the whole image, then after each removal."""
    partition: Int64[np.ndarray, "height width"]
    """The region of each pixel."""
    forwards: int
    """Forward passes spent on the search."""
    image: UInt8[np.ndarray, "3 height width"]
    """The image as the network saw it, before normalization."""
    class_names: tuple[str, ...] | None
    """The classes, where they are known."""

    def name_of(self, label: int) -> str:
        """The name of a class, or its number where names are not known."""
        return f"class {label}" if self.class_names is None else self.class_names[label]

    def plot(self, path: str | Path | None = None) -> "Figure":
        """Draw the image, the regions with their order, and the probability of the label after each removal.

        Args:
            path: Where the figure is saved, if anywhere.

        Raises:
            UserError: it cannot be saved there.
        """
        from matplotlib.figure import Figure  # here, because only drawing needs matplotlib

        name = self.name_of(self.label).replace("$", r"\$")
        figure = Figure(figsize=(10, 3.4), layout="constrained")
        whole, removed, curve = figure.subplots(1, 3)
        picture = self.image.transpose(1, 2, 0)
        whole.imshow(picture)
        whole.set_title(f"{name}, p = {self.probabilities[0, self.label]:.2f}")
        removed.imshow(np.where(self.regions[:, :, None], picture // 3, picture))
        for step, region in enumerate(self.order, 1):
            rows, columns = (self.partition == region).nonzero()
            removed.text(columns.mean(), rows.mean(), str(step), color="white", ha="center", va="center")
        after = self.name_of(int(self.probabilities[-1].argmax())).replace("$", r"\$")
        removed.set_title(f"without these: {after}" if self.flipped else "no set found: the prediction stays")
        for axis in (whole, removed):
            axis.set_axis_off()
        curve.plot(self.probabilities[:, self.label], "o-")
        curve.set(xlabel="regions removed", ylabel=f"p({name})", ylim=(0, 1.02), xticks=range(len(self.order) + 1))
        if path is not None:
            try:
                figure.savefig(path, dpi=150)
            except (OSError, ValueError) as error:
                raise UserError(f"the figure cannot be saved as '{path}' ({error}): name another file") from error
        return figure


class Explainer:
    """Explains the predictions of one network, which is prepared once.

    The search uses an accelerated copy of the network; flips are confirmed by the network itself. Make a new Explainer
    after the network was trained further.

    Args:
        model: Any module that maps normalized images to logits: a timm or torchvision network, your own, or one of
            our classifiers.
        mean: Of each channel, in units of white; left out, it is taken from timm's configuration or our classifier.
        standard_deviation: Likewise.
        image_size: Side of the square that the network sees, in pixels; likewise. An image of this size is taken as it
            is; any other is resized and its center square cut out, as the network's configuration says.
        class_names: Of the logits, in order.
        regions: Regions of an image; a square number for a grid.
        partition: `grid`, or `slico` superpixels (needs scikit-image).
        baseline: Baseline pixel values for removed regions: `mean` color, `zeros` (black) or `blur`.
        max_regions: The most regions of a set; at most a quarter of all regions is removed.
        batch_size: The most masked images per forward pass.
        device: Where the network is expected to lie; by default wherever it lies.
        search: `fast`, or `exhaustive` (every region is tried in every step), or `greedy` (without pruning). The search
            is exhaustive where `fast` finds no set, and where a network gives no gradients.
        objective: The set function that the search maximizes: `deletion`, `counterfactual` or `factual`.

    Raises:
        UserError: the network gives no logits or is not prepared for images, or an option makes no sense.
    """

    @torch.inference_mode(False)  # the fast search needs gradients, and is also called from code that switches them off
    def __init__(
        self,
        model: nn.Module,
        *,
        mean: Sequence[float] | None = None,
        standard_deviation: Sequence[float] | None = None,
        image_size: int | None = None,
        class_names: Sequence[str] | None = None,
        regions: int = 49,
        partition: str = "grid",
        baseline: str = "mean",
        max_regions: int = 12,
        batch_size: int = 64,
        device: torch.device | str | None = None,
        search: str = "fast",
        objective: str = "deletion",
    ) -> None:
        if not isinstance(model, nn.Module):
            raise UserError(f"the model is a {type(model).__name__}: give a torch.nn.Module that returns logits")
        _check_choices(partition, baseline, search, objective)
        self.regions = _at_least("regions", regions, 4)
        self.partition, self.baseline, self.method, self.objective = partition, baseline, search, objective
        self.largest = largest_set(self.regions, _at_least("max_regions", max_regions, 1))
        batch_size = _at_least("batch_size", batch_size, 1)
        self.device = device_of(model, device)
        self.preprocessing = preprocessing_of(model, mean, standard_deviation, image_size)
        self.class_names = _names(class_names if class_names is not None else getattr(model, "class_names", None))
        network = model.network if hasattr(model, "statistics") and hasattr(model, "network") else model
        self.exact = Scorer(network, batch_size, self.device, padded=False)
        self.fast: Scorer | None = None
        if self.preprocessing.image_size is not None:
            self._prepare(self.preprocessing.image_size)

    @torch.inference_mode(False)
    def __call__(self, image: Any, label: int | None = None) -> Explanation:
        """Explain the prediction for one image.

        Args:
            image: A PIL image, a path, or an array or tensor of H × W, H × W × 3 or 3 × H × W, as uint8 or as floats in
                [0, 1].
            label: The true class: the image is refused where the network predicts another one.

        Raises:
            UserError: the image cannot be read or does not fit, or is misclassified already.
        """
        pixels = self.preprocessing(rgb_picture(image))
        if self.fast is None:
            self._prepare(pixels.shape[-1])
        masking = self._masking(pixels)
        only = torch.zeros(1, dtype=torch.int64, device=self.device)
        whole = self._logits(masking, torch.ones_like(masking.exists))
        prediction = int(whole.argmax())
        self._check_label(label, prediction, whole.shape[1])
        labels = only + prediction
        inputs = SearchInputs(masking, labels, runner_up(whole, labels), log_odds(whole, labels))
        found = search(inputs, self.fast, self.exact, self.objective, self.largest, self.method)
        if self.method == "fast" and not bool(found.flipped[0]):  # what derivatives miss, trying every region may find
            again = search(inputs, self.fast, self.exact, self.objective, self.largest, "exhaustive")
            found = again._replace(forwards=found.forwards + again.forwards)
        order = [region for region in found.order[0].tolist() if region >= 0]
        kept = torch.ones(len(order) + 1, self.regions, dtype=torch.bool, device=self.device)
        for step, region in enumerate(order, 1):
            kept[step:, region] = False
        probabilities = self._logits(masking, kept).softmax(dim=1).cpu().numpy()
        partition = masking.partition[0].cpu().numpy()
        return Explanation(
            label=prediction,
            flipped=bool(found.flipped[0]),
            order=order,
            regions=np.isin(partition, order),
            probabilities=probabilities,
            partition=partition,
            forwards=int(found.forwards[0]) + 2,  # the whole image and the final set
            image=pixels.numpy(),
            class_names=self.class_names,
        )

    def _masking(self, pixels: UInt8[Tensor, "3 side side"]) -> MaskedImages:
        """The image with its partition and baseline, on the network's device."""
        statistics, images = self.preprocessing.statistics, pixels[None]
        partition, shared = partitions(self.partition, images, self.regions), is_shared(self.partition)
        return masked_images(images, statistics, self.device, partition, self.regions, self.baseline, shared)

    def _logits(self, masking: MaskedImages, kept: Tensor) -> Float[Tensor, "sets classes"]:
        """Logits of the image with the regions `kept`, by the network itself."""
        owner = torch.zeros(len(kept), dtype=torch.int64, device=self.device)
        logits = self.exact.logits(masking, owner, kept)
        if not bool(logits.isfinite().all()):
            raise UserError(
                "the network gives NaN or infinite logits for this image: check its weights and normalization"
            )
        return logits

    def _prepare(self, image_size: int) -> None:
        """Check on two images of noise what the network returns, and accelerate a copy of it for the search."""
        shape = (2, 3, image_size, image_size)
        pixels = torch.randint(0, 256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
        partitions(self.partition, pixels[:1], self.regions)  # refuses regions that do not fit the size
        images = normalized(pixels, self.preprocessing.statistics, self.device)
        expected = _checked_logits(self.exact, images)
        _checked_logits(self.exact, images[:1])  # a network that drops dimensions of size 1 fails with one image alone
        if self.class_names is not None and len(self.class_names) != expected.shape[1]:
            raise UserError(
                f"class_names holds {len(self.class_names)} names and the network has {expected.shape[1]} classes: "
                "give one name for each"
            )
        try:
            self.fast = Scorer(self.exact.network, self.exact.batch_size, self.device, fast=True, padded=False)
            found = _checked_logits(self.fast, images)
            trusted = bool((found - expected).abs().max() <= CLOSE * expected.abs().max())
        except Exception:  # tracing and copying run foreign code, which may fail in any way: only speed is lost
            trusted = False
        self.fast = self.fast if trusted else self.exact
        if self.method == "fast" and not (self.exact.has_gradients(images) and self.fast.has_gradients(images)):
            self.method = "exhaustive"

    def _check_label(self, given: Any, prediction: int, classes: int) -> None:
        label = whole_number(given)
        if given is None or label == prediction:
            return
        if label is None or not 0 <= label < classes:
            raise UserError(f"label is {given!r}: give the number of a class, 0 … {classes - 1}")
        names = self.class_names or [f"class {number}" for number in range(classes)]
        raise UserError(
            f"the image is already misclassified ('{names[prediction]}' instead of '{names[label]}'), so there is no "
            "prediction to flip"
        )


def explain(model: nn.Module, image: Any, *, label: int | None = None, **options: Any) -> Explanation:
    """Explain the prediction of any torch classifier for one image.

    Args:
        model: Any module that maps normalized images to logits.
        image: As for an Explainer.
        label: The true class: the image is refused where the network predicts another one.
        options: As for an Explainer.

    Raises:
        UserError: as for an Explainer.
    """
    return Explainer(model, **options)(image, label)


def _check_choices(partition: Any, baseline: Any, search: Any, objective: Any) -> None:
    if baseline == "background":
        raise UserError("one image has no other images to take background from: choose another baseline")
    for name, value, known in (
        ("partition", partition, get_args(PartitionKind)),
        ("baseline", baseline, get_args(BaselineName)[:-1]),
        ("search", search, get_args(Method)),
        ("objective", objective, get_args(ObjectiveName)),
    ):
        if value not in known:
            raise UserError(f"{name} is {value!r}: give one of {', '.join(known)}")


def _at_least(name: str, given: Any, least: int) -> int:
    """An option that is a whole number of at least so much."""
    value = whole_number(given)
    if value is None or value < least:
        raise UserError(f"{name} is {given!r}: give a whole number, at least {least}")
    return value


def _names(given: Any) -> tuple[str, ...] | None:
    """The names of the classes as text."""
    if given is None:
        return None
    if isinstance(given, str | Mapping) or not hasattr(given, "__iter__"):
        raise UserError(f"class_names is a {type(given).__name__}: give a list of names in the order of the logits")
    return tuple(map(str, given))


def _checked_logits(scorer: Scorer, images: Float[Tensor, "batch 3 side side"]) -> Float[Tensor, "batch classes"]:
    """Logits of one or two images, checked for their form."""
    size, given = images.shape[-1], "two images" if len(images) == 2 else "one image"
    try:
        output = scorer.output(images)
    except Exception as error:  # the network is foreign code: whatever it raises over the images is about their form
        cause = " ".join(str(error).split())[:160] or type(error).__name__
        raise UserError(
            f"the network cannot take a batch of images of 3 × {size} × {size} values ({cause}): give the image_size "
            "that it was made for, and a network of three channels"
        ) from error
    expected = "it must return logits, a tensor of images × classes"
    if not isinstance(output, Tensor):
        raise UserError(f"the network returns a {type(output).__name__}: {expected}, so wrap it in a module that does")
    shape = " × ".join(map(str, output.shape))
    if output.ndim != 2 or len(output) != len(images) or not output.is_floating_point():
        raise UserError(f"the network returns {shape} values ({output.dtype}) for {given}: {expected}")
    if output.shape[1] < 2:
        raise UserError(f"the network returns one value per image ({shape} for {given}): {expected}, at least two")
    return output.float()
