"""Stage 7, detect_misclassifications: which predictions of the base are wrong, told from the filters that they use.

Reads   the base classifier, its filter bank, the training and validation splits, and the test splits.
Writes  OUT/detection.json, OUT/by_class.csv, OUT/history.jsonl. Where params.yaml asks for no filters, OUT/summary.json
        alone, which says so. A killed run goes on after its last finished split.
Paper   arXiv 2501.11087, section on detection; the controls are ours.  Cost: about 20 s on two cores.
"""

from itertools import chain
from pathlib import Path

import pandas as pd

from everycause.artifacts import write_json
from everycause.data.shifts import views
from everycause.data.sources import SOURCES, open_split
from everycause.device import start
from everycause.evaluation.detection import DetectionReport, Explained, detect
from everycause.explanation.filters import FilterBank
from everycause.models import load, model_fingerprint
from everycause.params import read
from stages.entry import asked, leave_out, run
from stages.recording import recorded, resume_key

NAME = "detect_misclassifications/base"


def main(
    seed: int,
    base: Path,
    filters: Path,
    out: Path,
    inputs: Path | None = None,
    cache: Path = Path(".cache/corruptions"),
) -> None:
    """Judge every detector on every split.

    Args:
        seed: Seed of the random filters.
        base: Folder of the base classifier.
        filters: Folder of its filter bank.
        out: Folder to write.
        inputs: File of check_inputs, which says whether params.yaml asks for detection.
        cache: Folder for corrupted images, where evaluation.keep_corrupted keeps them.
    """
    if not asked(inputs):
        leave_out(out, f"{NAME}/seed-{seed}")
        return
    params = read("run", "tracking", "data", "filters", "detection", "evaluation")
    device, evaluation, threads = start(params.run, seed), params.evaluation, params.run.threads
    classifier = load(base, device)
    data = params.data.seen_by(classifier.framing)
    model = model_fingerprint(base)
    bank = FilterBank.load(filters, model)
    kept = cache if evaluation.keep_corrupted else None
    train, validation = (open_split(data, name, threads) for name in ("train", "validation"))
    shifted = views(data, evaluation.corruptions, evaluation.severities, threads, kept)
    test = next(shifted)
    made_from = (
        model,
        train.identity,
        validation.identity,
        test.split.identity,
        *sorted(filters.glob("*.safetensors")),
    )
    key = resume_key("detect_misclassifications", params, SOURCES, str(seed), *made_from)
    with recorded(NAME, params, out, seed, device, train.identity, key) as (folder, record):
        explained = Explained(classifier, bank, train, validation)
        report = detect(explained, chain([test], shifted), params.filters, params.detection, seed, folder)
        record(flat(report), 0)
        pd.DataFrame(report["test"]["by_class"]).to_csv(folder / "by_class.csv", index=False)
        write_json(folder / "detection.json", report)


def flat(report: DetectionReport) -> dict[str, float]:
    """The measures of the detectors under one name each, for records."""
    return {
        f"detection/{split}/{name}/{measure}": value
        for split, content in report.items()
        for name, measured in content["detectors"].items()
        for measure, value in measured.items()
    }


if __name__ == "__main__":
    run(main)
