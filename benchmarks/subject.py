"""The classifier that the benchmarks of explanations explain: the default base, trained if its artifact is absent."""

from pathlib import Path
from typing import NamedTuple

import torch
import yaml

from everycause.data.images import normalized
from everycause.data.sources import DataParams, open_split
from everycause.data.split import Split
from everycause.explanation.masks import select_images
from everycause.explanation.objectives import log_odds, runner_up
from everycause.explanation.regions import MaskedImages, grid
from everycause.explanation.search import SearchInputs
from everycause.models import Classifier, ModelParams, load
from everycause.networks import evaluating
from everycause.training.fit import BaseParams, train_base

ROOT = Path(__file__).parents[1]
RAW = yaml.safe_load((ROOT / "params.yaml").read_text())
CONFIDENCE = 0.75


class Subject(NamedTuple):
    """A model and the images that it is asked about."""

    classifier: Classifier
    train: Split


def subject() -> Subject:
    """The base of artifacts/, or the same trained here, about a minute."""
    torch.manual_seed(0)
    torch.set_num_threads(RAW["run"]["threads"])
    data = DataParams(**RAW["data"])
    train = open_split(data, "train", RAW["run"]["threads"])
    device = "cuda" if torch.cuda.is_available() else "cpu"
    artifact = ROOT / "artifacts" / "models" / "base" / "seed-0"
    if artifact.is_dir():
        return Subject(load(artifact, device), train)
    validation, model = open_split(data, "validation", 1), ModelParams(**RAW["model"])
    classifier, epochs = train_base(model, BaseParams(**RAW["training"]), train, validation, 0, torch.device(device))
    for _ in epochs:
        pass
    return Subject(classifier.eval(), train)


def task_of(subject: Subject, cells: int, images: int) -> SearchInputs:
    """Correct and confident training images, evenly over the classes, on a grid."""
    classifier, train = subject
    index = select_images(classifier, train, CONFIDENCE, images).index
    shown = normalized(train.read(index.numpy()), classifier.statistics, classifier.device)
    with torch.inference_mode(), evaluating(classifier):
        logits = torch.cat([classifier(chunk).float() for chunk in shown.split(64)])
    labels = train.labels[index].to(classifier.device)
    return SearchInputs(
        MaskedImages(shown, grid(train.image_size, cells)[None].to(classifier.device), cells**2, shared=True),
        labels,
        runner_up(logits, labels),
        log_odds(logits, labels),
    )
