"""Stage 3, generate_masks: the few regions whose removal flips a prediction.

Reads   the base classifier and the training split.
Writes  OUT/masks-*.safetensors (Masks, a file per shard), OUT/summary.json, OUT/history.jsonl. A killed run goes on.
Paper   arXiv 2511.12100 (SS-CA), Counterfactual LIMA.  Cost: about 30 s on two cores.
"""

from pathlib import Path

from everycause.artifacts import fingerprint, write_json
from everycause.data.sources import open_split
from everycause.device import code_fingerprint, start
from everycause.evaluation.faithfulness import against_truth
from everycause.explanation.filters import FilterBank
from everycause.explanation.masks import generate
from everycause.models import load, model_fingerprint
from everycause.params import read
from stages.entry import recorded, run


def main(seed: int, base: Path, out: Path, filters: Path | None = None) -> None:
    """Search the counterfactual regions of training images.

    Args:
        seed: Seed of the base classifier, for the record; the search draws nothing.
        base: Folder of the base classifier.
        out: Folder to write.
        filters: Folder of the base's filter bank, which only the selector `filter_cam` needs.
    """
    params = read("run", "tracking", "data", "masks")
    device = start(params.run, seed)
    classifier, model = load(base, device), model_fingerprint(base)
    train = open_split(params.data, "train", params.run.threads)
    key = fingerprint(model, train.identity, params.masks.model_dump_json(), code_fingerprint())
    with recorded("generate_masks/masks", params, out, seed, device, train.identity, resume=key) as (folder, record):
        chosen = FilterBank.load(filters, model).global_filters(0.0) if filters is not None else None
        masks = generate(classifier, train, params.masks, folder, model, chosen)
        summary = masks.summary() | against_truth(masks, params.data, params.run.threads, seed)
        record(summary, 0)
        write_json(folder / "summary.json", summary)


if __name__ == "__main__":
    run(main)
