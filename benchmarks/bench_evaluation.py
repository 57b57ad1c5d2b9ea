"""Evaluation against the bare forward pass on images in memory, and the corruptions against an independent package.

The package is imagecorruptions-imaug (`pip install imagecorruptions-imaug`, not among our requirements). Without it the
speedup is left out. It has one table of constants, so both apply severities 1 to 5 under their own constants, to the
same images on one core.
"""

import importlib.util
import statistics
import time
from collections.abc import Iterator

import numpy as np
import torch
from PIL import Image
from skimage import data as photographs

from benchmarks.subject import subject
from benchmarks.timing import median_seconds
from everycause.data.corruptions import CORRUPTIONS
from everycause.data.images import normalized
from everycause.inference import batch_size, logits_of
from everycause.networks import folded

IMAGES = 64


def measures() -> Iterator[tuple[str, float]]:
    """Utilization, speedup by folding, milliseconds per image, and the ratio to the package."""
    yield "evaluation.utilization", utilization()
    yield "evaluation.folding_speedup", folding_speedup()
    torch.set_num_threads(1)
    for size in (64, 224):
        images = natural(size)
        spent = {name: seconds(name, size, images) / len(images) * 1e3 for name in CORRUPTIONS}
        yield f"corruptions.ms_per_image_{size}", sum(spent.values())
        for name, milliseconds in spent.items():
            yield f"corruptions.{name}_ms_{size}", milliseconds
        if size == 64 and importlib.util.find_spec("imagecorruptions") is not None:
            yield "corruptions.speedup", theirs(images[:8]) / 8 / (sum(spent.values()) / 1e3)
    torch.set_num_threads(2)


def utilization() -> float:
    """Evaluation's throughput over that of the bare model on normalized batches that lie on the device."""
    classifier, train = subject()
    split = train.kept_in_memory(4096)
    size = batch_size(classifier)
    ready = [
        normalized(split.read(np.arange(start, start + size)), classifier.statistics, classifier.device)
        for start in range(0, 1024, size)
    ]
    some = split.subset(np.arange(1024))

    def bare() -> None:
        with torch.inference_mode():
            for batch in ready:
                classifier(batch).float().cpu()

    # side by side, turn by turn: the machine's other work hits both alike
    return statistics.median(
        median_seconds(bare, 1) / median_seconds(lambda: logits_of(classifier, some), 1) for _ in range(15)
    )


def folding_speedup() -> float:
    """Duration of inference by the stored network over that of the folded copy that evaluation runs."""
    classifier, train = subject()
    some = train.kept_in_memory(4096).subset(np.arange(1024))
    network = folded(classifier.network)
    return statistics.median(
        median_seconds(lambda: logits_of(classifier, some), 1)
        / median_seconds(lambda: logits_of(classifier, some, network), 1)
        for _ in range(7)
    )


def natural(size: int) -> torch.Tensor:
    """Photographs that scikit-image ships, cut and repeated."""
    pictures = [
        Image.fromarray(one).resize((size, size), Image.Resampling.BICUBIC)
        for one in (photographs.astronaut(), photographs.coffee())
    ]
    images = np.stack([np.asarray(picture) for picture in pictures] * (IMAGES // 2))
    return torch.from_numpy(images).permute(0, 3, 1, 2)


def seconds(name: str, size: int, images: torch.Tensor) -> float:
    """One corruption at all five severities."""
    start = time.perf_counter()
    for level in CORRUPTIONS[name].levels[size]:
        generators = [np.random.default_rng(number) for number in range(len(images))]
        CORRUPTIONS[name].distort(images.float() / 255, level, generators)
    return time.perf_counter() - start


def theirs(images: torch.Tensor) -> float:
    """All fifteen corruptions at all severities by the package."""
    from imagecorruptions import corrupt

    pictures = images.permute(0, 2, 3, 1).contiguous().numpy()
    for name in CORRUPTIONS:  # compiled functions are compiled before the clock runs
        corrupt(pictures[0], severity=1, corruption_name=name)
    start = time.perf_counter()
    for name in CORRUPTIONS:
        for severity in range(1, 6):
            for picture in pictures:
                corrupt(picture, severity=severity, corruption_name=name)
    return time.perf_counter() - start
