"""Stage 1, train_base: the classifier that everything else explains and retrains.

Reads   the training and validation splits.
Writes  OUT/model.safetensors, OUT/history.jsonl.
Paper   plain cross-entropy, the starting point of both papers.  Cost: about 100 s on two cores.
"""

from pathlib import Path

import torch

from everycause.data.sources import open_split
from everycause.data.split import statistics
from everycause.device import start
from everycause.models import Classifier
from everycause.params import read
from everycause.training.fit import fit_base
from stages.entry import recorded, run


def main(seed: int, out: Path) -> None:
    """Train the base classifier.

    Args:
        seed: Seed of initialization, order and augmentation.
        out: Folder to write.
    """
    params = read("run", "tracking", "data", "model", "training")
    device = start(params.run, seed)
    train = open_split(params.data, "train", params.run.threads)
    validation = open_split(params.data, "validation", params.run.threads)
    classifier = Classifier(params.model, train.class_names, train.image_size, statistics(train))
    classifier.to(device=device, memory_format=torch.channels_last)
    with recorded("train_base/base", params, out, seed, device, train.identity) as (folder, record):
        for epoch in fit_base(classifier, train, validation, params.training, seed):
            record(epoch.measures, epoch.number)
        classifier.save(folder)
        if params.tracking.log_models:
            record.model(classifier)


if __name__ == "__main__":
    run(main)
