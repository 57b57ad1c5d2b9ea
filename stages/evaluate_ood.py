"""Stage 6, evaluate_ood: one model on the test split and on every shifted one.

Reads   a classifier and the test splits, which no stage before this one touches.
Writes  OUT/predictions.safetensors (the answers on every view), OUT/metrics.json, OUT/data.json (class names, and the
        code of rendered images), OUT/history.jsonl; for the base also OUT/pictures.safetensors (the contact sheet).
        A killed run goes on after its last finished view.
Paper   the protocols stand in reports/deviations.md.  Cost: about 30 s on two cores.
"""

from itertools import chain
from pathlib import Path
from pkgutil import resolve_name
from typing import Literal

from everycause import ranks
from everycause.artifacts import write_json
from everycause.data.shifts import views
from everycause.data.sources import SOURCES, class_names, open_split
from everycause.device import start
from everycause.evaluation.metrics import metrics
from everycause.evaluation.ood import ContactSheet, data_description, evaluate
from everycause.inference import open_classifier
from everycause.models import weights_fingerprint
from everycause.params import read
from stages.entry import run
from stages.recording import recorded, resume_key

PROTOCOLS = {"cue_conflict": "stages.cue_conflict:main"}
"""Protocols with data of their own, imported when asked for: no other evaluation depends on them."""


def main(
    row: str,
    seed: int,
    model: str,
    out: Path,
    cache: Path = Path(".cache/corruptions"),
    protocol: Literal["splits", "cue_conflict"] = "splits",
    images: Path = Path("data/cue_conflict"),
    weights: str | None = None,
) -> None:
    """Evaluate one model.

    Args:
        row: The row that the model belongs to.
        seed: The model's seed, for the record; evaluation draws nothing.
        model: Folder of one of our models, timm:NAME for published weights, or a state dict of model.name (.pth, .pt,
            .safetensors).
        out: Folder to write.
        cache: Folder for corrupted images, where evaluation.keep_corrupted keeps them.
        protocol: `splits`, the test splits of params.yaml; or `cue_conflict`, shape or texture (stages/cue_conflict).
        images: Folder of the images of the other protocols.
        weights: Where published weights are, for the other protocols: cache, package or a file; left out, as
            model.weights says.
    """
    if protocol in PROTOCOLS:
        if ranks.is_first():
            with ranks.alone():
                resolve_name(PROTOCOLS[protocol])(
                    row=row, seed=seed, model=model, out=out, images=images, weights=weights
                )
        return
    params = read("run", "tracking", "data", "model", "evaluation")
    device, evaluation, threads = start(params.run, seed), params.evaluation, params.run.threads
    names = class_names(params.data, threads)
    classifier = open_classifier(model, params.model, names, params.data.image_size, device)
    data, kept = params.data.seen_by(classifier.framing), cache if evaluation.keep_corrupted else None
    shifted = views(data, evaluation.corruptions, evaluation.severities, threads, kept)
    test = next(shifted)
    identity, shown = test.split.identity, row == "base"
    key = resume_key("evaluate_ood", params, SOURCES, model, weights_fingerprint(classifier), identity)
    with recorded(f"evaluate_ood/{row}", params, out, seed, device, identity, key) as (folder, record):
        sheet = ContactSheet(open_split(data, "train", threads), evaluation.severities) if shown else None
        stored = evaluate(classifier, chain([test], shifted), folder, sheet, evaluation.precision)
        if sheet is not None:
            sheet.save(folder)
        if ranks.is_first():
            measures = metrics(stored, data.code)
            record({f"test/{name}": value for name, value in measures.items()}, 0)
            stored.save(folder)
            write_json(folder / "metrics.json", measures)
            write_json(folder / "data.json", data_description(data, test.split))


if __name__ == "__main__":
    run(main, divided=True)
