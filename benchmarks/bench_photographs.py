"""Our search beside the published greedy search on photographs of ImageNet, where they and the weights are at hand.

The same is measured on more photographs by `make imagenet-samples` (reports/photographs).
"""

import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from benchmarks.subject import ROOT
from everycause.data.sources import open_split
from everycause.device import start
from everycause.errors import UserError
from everycause.evaluation.rankings import SEARCHES, Bench
from everycause.explanation.image_selection import select_images
from everycause.inference import TIMM, open_classifier
from everycause.params import read
from everycause.reporting.photographs import SPEEDUP, search_measures

PHOTOGRAPHS = 2
"""The published search of one takes a minute on one core."""
PROFILE = ROOT / "profiles" / "imagenet-samples.yaml"
PLACES = (ROOT / "data" / "imagenet_samples", ROOT.parent / "shared" / "data" / "imagenet_samples" / "images")


def measures() -> Iterator[tuple[str, float]]:
    """Ratios of seconds and forward passes, and the difference of flip rates."""
    try:
        bench, chosen = bench_of(next((place for place in PLACES if place.is_dir()), PLACES[0]))
    except UserError as error:
        sys.stderr.write(f"photographs: left out: {error}\n")
        return
    found = pd.concat([bench.search(chosen, name) for name in SEARCHES])
    for search, measure, value in search_measures(found):
        if measure == SPEEDUP:
            yield SPEEDUP, value
        elif "fast_" in measure or "_over_" in measure:
            yield f"photographs.{search}/{measure}", value


def bench_of(place: Path) -> tuple[Bench, torch.Tensor]:
    """The network of the profile, and the first of every hundredth photograph that it predicts rightly.

    Raises:
        UserError: photographs or weights are not there.
    """
    params = read("run", "data", "model", "masks", path=PROFILE)
    device, threads = start(params.run, 0), params.run.threads
    data = params.data.model_copy(update={"root": str(place)})
    names = open_split(data, "validation", threads).class_names
    classifier = open_classifier(f"{TIMM}{params.model.name}", params.model, names, data.image_size, device)
    split = open_split(data.seen_by(classifier.framing), "validation", threads)
    split = split.subset(np.arange(0, len(split), 100))
    chosen = select_images(classifier, split, params.masks.confidence, PHOTOGRAPHS).index
    return Bench(classifier, split, params.masks), chosen


if __name__ == "__main__":
    for name, value in measures():
        sys.stdout.write(f"{name}: {value:.4g}\n")
