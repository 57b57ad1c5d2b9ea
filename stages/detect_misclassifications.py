"""Stage 8, detect_misclassifications: which predictions of the base are wrong, told from the filters that they use.

Reads   the base classifier, its filter bank, the training and validation splits, and the test splits.
Writes  OUT/detection.json, OUT/by_class.csv, OUT/history.jsonl.
Paper   arXiv 2501.11087, section on detection; the controls are ours.  Cost: about 20 s on two cores.
"""

from pathlib import Path

import pandas as pd

from everycause.artifacts import fingerprint, write_json
from everycause.device import start
from everycause.evaluation.detection import detection, flat
from everycause.explanation.filters import FilterBank
from everycause.models import load, model_fingerprint
from everycause.params import read
from stages.entry import recorded, run


def main(seed: int, base: Path, filters: Path, out: Path, cache: Path = Path(".cache/corruptions")) -> None:
    """Judge every detector on every split.

    Args:
        seed: Seed of the random filters.
        base: Folder of the base classifier.
        filters: Folder of its filter bank.
        out: Folder to write.
        cache: Folder for corrupted images, where evaluation.keep_corrupted keeps them.
    """
    params = read("run", "tracking", "data", "filters", "detection", "evaluation")
    device = start(params.run, seed)
    classifier, bank = load(base, device), FilterBank.load(filters, model_fingerprint(base))
    with recorded(
        "detect_misclassifications/base", params, out, seed, device, fingerprint(params.data.model_dump_json())
    ) as (folder, record):
        report = detection(
            classifier,
            bank,
            params.data,
            params.filters,
            params.detection,
            params.evaluation,
            params.run.threads,
            seed,
            cache,
        )
        record(flat(report), 0)
        pd.DataFrame(report["test"]["by_class"]).to_csv(folder / "by_class.csv", index=False)
        write_json(folder / "detection.json", report)


if __name__ == "__main__":
    run(main)
