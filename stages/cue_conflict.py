"""cue_conflict: does a model follow the shape of an object or its texture? (`evaluate_ood --protocol cue_conflict`)

Reads   a classifier and the cue conflict images; of params.yaml the sections run and tracking, and model for weights.
Writes  OUT/shape_bias.csv (columns model, class, measure, value, low, high), OUT/decisions.csv (the decision on every
        image), OUT/history.jsonl. `python -m stages.photographs` draws them.
Paper   Geirhos et al., ICLR 2019 (arXiv 1811.12231).  Cost: about 90 s for EfficientNet-Lite0 on one core.
"""

from pathlib import Path

import pandas as pd
import torch
from timm.data import ImageNetInfo

from everycause.data.cue_conflict import CATEGORIES, cue_conflicts
from everycause.device import start
from everycause.errors import UserError
from everycause.evaluation.shape_bias import category_probabilities, findings, members
from everycause.inference import TIMM, logits_of_images, open_classifier
from everycause.models import Classifier, ModelParams, load
from everycause.networks import folded
from everycause.params import read
from everycause.weights import published
from stages.entry import run
from stages.recording import recorded

COLUMNS = ["model", "class", "measure", "value", "low", "high"]


def main(
    row: str, seed: int, model: str, out: Path, images: Path = Path("data/cue_conflict"), weights: str | None = None
) -> None:
    """Count for how many images a model decides for the shape, and for how many for the texture.

    Args:
        row: Name of the model in tables.
        seed: The model's seed, for the record; evaluation draws nothing but the bootstrap's samples.
        model: Folder of one of our models, timm:NAME for published weights of ImageNet, or a state dict of model.name.
        out: Folder to write.
        images: Folder of the cue conflict images.
        weights: Where published weights are: cache, package or a file; left out, as model.weights says.
    """
    params = read("run", "tracking", "model")
    device, threads = start(params.run, seed), params.run.threads
    chosen = params.model if weights is None else params.model.model_copy(update={"weights": weights})
    classifier = opened(model, chosen, device)
    belonging = members(classifier.class_names)
    conflicts = cue_conflicts(images, classifier.image_size, classifier.framing, threads)
    with recorded(f"cue_conflict/{row}", params, out, seed, device, conflicts.images.identity) as (folder, record):
        decisions = decided(classifier, conflicts.images.all(), belonging)
        shapes, textures = conflicts.images.labels, conflicts.textures
        found = findings(decisions.numpy(), shapes.numpy(), textures.numpy())
        record({f"{one.class_name}/{one.measure}": one.interval.mean for one in found}, 0)
        table = pd.DataFrame([(row, one.class_name, one.measure, *one.interval) for one in found], columns=COLUMNS)
        table.to_csv(folder / "shape_bias.csv", index=False, float_format="%.5f")
        named = {"shape": shapes, "texture": textures, "decision": decisions}
        listed = {name: [CATEGORIES[number] for number in column.tolist()] for name, column in named.items()}
        pd.DataFrame({"image": [file.name for file in conflicts.files]} | listed).to_csv(
            folder / "decisions.csv", index=False
        )


def opened(place: str, params: ModelParams, device: torch.device) -> Classifier:
    """A classifier with the classes and the image size that it has: those of its folder, or ImageNet's 1,000.

    Args:
        place: A stage's folder, `timm:NAME`, or the path of a state dict of `model.name`.
        params: `weights` says where published weights are.
        device: Where it shall lie.

    Raises:
        UserError: as open_classifier, or the network was published for other classes than ImageNet's 1,000.
    """
    if not place.startswith(TIMM) and (Path(place).is_dir() or not Path(place).suffix):
        return load(Path(place), device)
    name = place.removeprefix(TIMM) if place.startswith(TIMM) else params.name
    described, names = published(name), tuple(ImageNetInfo("imagenet-1k").label_names())
    if described is None:
        raise UserError(f"--model: timm does not say which images {name} sees: name a network that it describes")
    if described.num_classes != len(names):
        raise UserError(
            f"--model: the published {name} has {described.num_classes} classes, not ImageNet's 1,000: "
            "name weights that were trained on ImageNet-1k"
        )
    # nothing is explained here: the last layer exists whatever the network is
    last = described.classifier if isinstance(described.classifier, str) else params.explained_layer
    chosen = params.model_copy(update={"explained_layer": last, "head": "published"})
    return open_classifier(place, chosen, names, described.input_size[1], device)


def decided(classifier: Classifier, images: torch.Tensor, belonging: list[torch.Tensor]) -> torch.Tensor:
    """The most probable of the 16 classes for each image; the first one of equals."""
    logits = logits_of_images(classifier, images, folded(classifier.network))
    return category_probabilities(logits, belonging).argmax(dim=1)


if __name__ == "__main__":
    run(main)
