"""Stage 2, accumulate_filters: the filters that each class cannot do without.

Reads   the base classifier and the training split.
Writes  OUT/filters.safetensors (a FilterBank), OUT/summary.json, OUT/history.jsonl.
Paper   arXiv 2501.11087, section 4.1, with the heads of arXiv 2501.06831.  Cost: about 30 s on two cores.
"""

from pathlib import Path

from everycause.artifact import write_json
from everycause.data.dataset import open_split
from everycause.explanation.filters import LinearHead, accumulate, quality
from everycause.explanation.heads import train_heads
from everycause.inference import readout_of
from everycause.model import load, model_fingerprint
from everycause.params import read
from everycause.runtime import start
from stages.entry import recorded, run


def main(seed: int, base: Path, out: Path) -> None:
    """Train the minimum-correct heads and accumulate global filters.

    Args:
        seed: Seed of the heads.
        base: Folder of the base classifier.
        out: Folder to write.
    """
    params = read("run", "tracking", "data", "filters")
    device = start(params.run, seed)
    classifier = load(base, device)
    train = open_split(params.data, "train", params.run.threads)
    head = LinearHead(*(value.cpu() for value in classifier.head()))
    with recorded("accumulate_filters/filters", params, out, seed, device, train.identity) as (folder, record):
        seen = readout_of(classifier, train)
        heads = train_heads(*(value.to(device) for value in (seen.activations, head.weight, head.bias)), params.filters.heads, seed)
        threshold = params.filters.confidence_threshold
        bank = accumulate(heads, head, seen, train.labels, train.class_names, threshold, model_fingerprint(base))
        summary = quality(heads, head, seen, train.labels, threshold, seed) | bank.summary(params.filters)
        record(summary, 0)
        bank.save(folder)
        write_json(folder / "summary.json", summary)


if __name__ == "__main__":
    run(main)
