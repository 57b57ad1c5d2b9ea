"""The region search with the default model and params, against the model's own speed and against the plain way to do it."""

from collections.abc import Iterator
from pathlib import Path

import torch
import yaml

from benchmarks.timing import median_seconds
from everycause.data.batches import Statistics
from everycause.explanation.masks import MaskParams, search
from everycause.explanation.regions import grid
from everycause.model import Classifier, ModelParams

IMAGES, PLAIN_IMAGES, CLASSES, SIZE = 128, 2, 16, 64


def plain_search(classifier: Classifier, images: torch.Tensor, labels: torch.Tensor, partition: torch.Tensor, steps: int) -> None:
    """Exhaustive greedy, one image and one candidate at a time, composed on the host."""
    for image, label in zip(images, labels.tolist(), strict=True):
        chosen: list[int] = []
        for _ in range(steps):
            scores = {}
            for region in range(int(partition.max()) + 1):
                if region not in chosen:
                    masked = image.numpy().copy()
                    for removed in [*chosen, region]:
                        masked[:, (partition == removed).numpy()] = 0
                    scores[region] = float(classifier(torch.from_numpy(masked)[None]).softmax(dim=1)[0, label])
            chosen.append(min(scores, key=scores.__getitem__))


@torch.inference_mode()
def measures() -> Iterator[tuple[str, float]]:
    """Utilization (candidates per second over the bare model's images per second) and speed-up per image."""
    raw = yaml.safe_load((Path(__file__).parents[1] / "params.yaml").read_text())
    params = MaskParams(**raw["masks"])
    torch.manual_seed(0)
    torch.set_num_threads(raw["run"]["threads"])
    names = tuple(map(str, range(CLASSES)))
    classifier = Classifier(ModelParams(**raw["model"]), names, SIZE, Statistics((0.5, 0.5, 0.5), (0.2, 0.2, 0.2)))
    classifier.to(memory_format=torch.channels_last).eval()
    classifier.network.get_classifier().bias[0] = 1e4  # a prediction that never flips: every image takes all steps
    images = torch.randn(IMAGES, 3, SIZE, SIZE)
    labels = torch.zeros(IMAGES, dtype=torch.int64)
    partition, regions, steps = grid(SIZE, params.grid), params.grid**2, params.largest_set
    candidates = sum(regions - step for step in range(steps))
    batch = torch.randn(params.batch_size, 3, SIZE, SIZE).contiguous(memory_format=torch.channels_last)
    forward = median_seconds(lambda: classifier(batch)) / params.batch_size
    searched = median_seconds(lambda: search(classifier, images, labels, labels + 1, torch.ones(IMAGES), partition, params), 3) / IMAGES
    plain = median_seconds(lambda: plain_search(classifier, images[:PLAIN_IMAGES], labels[:PLAIN_IMAGES], partition, steps), 1) / PLAIN_IMAGES
    yield "search.utilization", candidates * forward / searched
    yield "search.speedup", plain / searched
    yield "search.images_per_second", 1 / searched
