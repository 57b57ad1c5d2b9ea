"""Counterfactual images of many images of a split, in shards: a killed run goes on after its last finished one."""

from dataclasses import dataclass, fields
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from everycause import ranks
from everycause.artifacts import is_whole, load_explanation, part, save_tensors
from everycause.data.split import Split
from everycause.errors import UserError
from everycause.explanation.image_selection import evenly_over_classes
from everycause.explanation.latent_factors import FactorBatch
from everycause.explanation.steering import Attack, Targets, chosen_targets, counterfactuals
from everycause.inference import logits_of, logits_of_images, readout_of
from everycause.models import Classifier
from everycause.shapes import Bool, Float, Int64, UInt8

FILE = "counterfactuals-{:05d}.safetensors"
SEEDS = 1_000_003
"""Seeds of images of one run lie closer together than this."""


@dataclass(frozen=True)
class CounterfactualImages:
    """What each image became, one row per image."""

    index: Int64[Tensor, "images"]
    """Index of the image in the split."""
    prediction: Int64[Tensor, "images"]
    """What the classifier sees in the original."""
    target: Int64[Tensor, "images"]
    """What it was to see."""
    attacked: UInt8[Tensor, "images 3 height width"]
    """Before the refinement."""
    kept: Bool[Tensor, "images height width"]
    """Places where the counterfactual is the original."""
    images: UInt8[Tensor, "images 3 height width"]
    """The counterfactual images."""
    before: Float[Tensor, "images 2"]
    """Probabilities of prediction and target in the original."""
    after: Float[Tensor, "images 2"]
    """The same in the counterfactual image."""
    reached: Bool[Tensor, "images"]
    """Whether the classifier sees the target in the counterfactual image."""

    def summary(self) -> dict[str, float]:
        """The images in a few numbers."""
        return {
            "images": float(len(self.index)),
            "reached": float(self.reached.double().mean()),
            "kept": float(self.kept.double().mean()),
            "target_before": float(self.before[:, 1].double().mean()),
            "target_after": float(self.after[:, 1].double().mean()),
        }

    def save(self, path: Path, model: str, data: str) -> None:
        """Write everything into one file, with the fingerprints of the explained model and of the split."""
        save_tensors(path, vars(self), {"model": model, "data": data})

    @classmethod
    def load(cls, folder: Path, model: str, data: str) -> "CounterfactualImages":
        """All shards in a folder, of the model and the split with these fingerprints.

        Raises:
            UserError: there are none, they are damaged, or they belong to another model or to other images.
        """
        names = [field.name for field in fields(cls)]
        files = sorted(folder.glob(FILE.format(0).replace("00000", "*")))
        if not files:
            raise UserError(f"{folder} holds no counterfactual images: run `make counterfactuals` first")
        shards = [load_explanation(file, "generate_counterfactuals", model, data) for file in files]
        for file, shard in zip(files, shards, strict=True):
            if set(shard) != set(names):
                raise UserError(f"{file} was written by another version: run generate_counterfactuals again")
        return cls(**{name: torch.cat([shard[name] for shard in shards]) for name in names})


def training_features(classifier: Classifier, split: Split, attribute: Int64[Tensor, "images"] | None) -> FactorBatch:
    """What the factors are trained on: features and probabilities of all images, where the classifier lies."""
    readout = readout_of(classifier, split)
    found = (readout.activations, readout.logits.softmax(dim=1), split.labels)
    known = None if attribute is None else attribute.to(classifier.device)
    return FactorBatch(*(value.to(classifier.device) for value in found), known)


def explained_images(attack: Attack, split: Split) -> Targets:
    """The images that are changed, evenly over the classes, and what they are to become.

    Raises:
        UserError: as chosen_targets.
    """
    logits = logits_of(attack.classifier, split)
    found = chosen_targets(logits, split.labels, attack.params.target, split.class_names)
    rows = evenly_over_classes(found.rows, split.labels, attack.params.images)
    place = torch.full((len(split),), -1)
    place[found.rows] = torch.arange(len(found.rows))
    return Targets(rows, found.classes[place[rows]])


def generate(attack: Attack, split: Split, folder: Path, model: str, seed: int) -> CounterfactualImages:
    """Change images of a split, write the shards that are not in `folder` yet, and read all shards back.

    Several processes divide the batches of each shard among them, and the first one writes it.

    Args:
        attack: How.
        split: The images.
        folder: The folder of the shards.
        model: Fingerprint of the classifier.
        seed: Seed of the noise.

    Raises:
        UserError: as explained_images.
    """
    rows, classes = explained_images(attack, split)
    size, params = attack.params.shard, attack.params
    for number, chosen in enumerate(torch.arange(len(rows)).split(size)):
        file = folder / FILE.format(number)
        if not ranks.decided(partial(is_whole, file)):
            title = f"counterfactual images, shard {number + 1}"
            found = ranks.mapped(
                lambda some: _changed(attack, split, rows[some], classes[some], seed),
                chosen.split(params.batch_size), title,
            )  # fmt: skip
            names = [field.name for field in fields(CounterfactualImages)]
            joined = {name: torch.cat([getattr(one, name) for one in found]) for name in names}
            if ranks.is_first():
                with part(file) as writing:
                    CounterfactualImages(**joined).save(writing, model, split.identity)
    ranks.wait()
    return CounterfactualImages.load(folder, model, split.identity)


def _changed(
    attack: Attack, split: Split, rows: Int64[Tensor, "batch"], targets: Int64[Tensor, "batch"], seed: int
) -> CounterfactualImages:
    originals = split.read(rows.numpy())
    seeds = [seed * SEEDS + row for row in rows.tolist()]
    found = counterfactuals(attack, originals, targets, seeds)
    before, after = (logits_of_images(attack.classifier, images).softmax(dim=1) for images in (originals, found.images))
    prediction = before.argmax(dim=1)
    pair = torch.stack([prediction, targets], dim=1)
    return CounterfactualImages(
        rows, prediction, targets, *found, before.gather(1, pair), after.gather(1, pair), after.argmax(dim=1) == targets
    )
