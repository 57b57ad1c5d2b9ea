"""Stage 3, generate_masks: the few regions whose removal flips a prediction.

Reads   the base classifier and the training split.
Writes  OUT/masks.safetensors (Masks), OUT/summary.json, OUT/history.jsonl.
Paper   arXiv 2511.12100 (SS-CA), Counterfactual LIMA.  Cost: about 60 s on two cores.
"""

from pathlib import Path

from everycause.artifact import write_json
from everycause.data.dataset import open_split
from everycause.evaluation.faithfulness import against_truth
from everycause.explanation.masks import generate
from everycause.model import load, model_fingerprint
from everycause.params import read
from everycause.runtime import start
from stages.entry import recorded, run


def main(seed: int, base: Path, out: Path) -> None:
    """Search the counterfactual regions of training images.

    Args:
        seed: Seed of the base classifier, for the record; the search draws nothing.
        base: Folder of the base classifier.
        out: Folder to write.
    """
    params = read("run", "tracking", "data", "masks")
    device = start(params.run, seed)
    classifier = load(base, device)
    train = open_split(params.data, "train", params.run.threads)
    with recorded("generate_masks/masks", params, out, seed, device, train.identity) as (folder, record):
        masks = generate(classifier, train, params.masks, model_fingerprint(base))
        summary = masks.summary() | against_truth(masks, params.data, params.run.threads, seed)
        record(summary, 0)
        masks.save(folder)
        write_json(folder / "summary.json", summary)


if __name__ == "__main__":
    run(main)
