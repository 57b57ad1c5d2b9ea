"""Stage 1, train_base: the classifier that all other stages explain and retrain.

Reads   the training and validation splits.
Writes  OUT/model.safetensors, OUT/history.jsonl. A killed run goes on within its epoch.
Paper   plain cross-entropy, the starting point of both papers.  Cost: about 100 s on two cores.
"""

from pathlib import Path

from everycause import ranks
from everycause.data.sources import SOURCES, open_split
from everycause.device import start
from everycause.models import framing_of
from everycause.params import read
from everycause.training.fit import train_base
from everycause.weights import said
from stages.entry import run
from stages.recording import recorded, resume_key


def main(seed: int, out: Path) -> None:
    """Train the base classifier.

    Args:
        seed: Seed of initialization, order and augmentation.
        out: Folder to write.
    """
    params = read("run", "tracking", "data", "model", "training")
    device, data = start(params.run, seed), params.data.seen_by(framing_of(params.model))
    train, validation = (open_split(data, name, params.run.threads) for name in ("train", "validation"))
    key = resume_key("train_base", params, SOURCES, train.identity, validation.identity, str(seed))
    with recorded("train_base/base", params, out, seed, device, train.identity, key) as (folder, record):
        classifier, epochs = train_base(params.model, params.training, train, validation, seed, device, folder)
        if params.model.pretrained:
            record.tag({"weights": said(params.model.name, params.model.weights)})
        for epoch in epochs:
            record(epoch.measures, epoch.number)
        if ranks.is_first():
            classifier.save(folder)
        if params.tracking.log_models:
            record.model(classifier)


if __name__ == "__main__":
    run(main, divided=True)
