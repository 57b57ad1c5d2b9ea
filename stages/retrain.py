"""Stage 4, retrain: one row of the results table, from the base classifier on.

Reads   the base classifier, its filters and masks, the training and validation splits.
Writes  OUT/model.safetensors, OUT/history.jsonl.
Paper   arXiv 2511.12100 (counterfactual images), arXiv 2501.11087 (filter terms).  Cost: about 40 s on two cores.
"""

from pathlib import Path

from everycause.data.sources import open_split
from everycause.device import start
from everycause.errors import UserError
from everycause.explanation.filters import FilterBank
from everycause.explanation.masks import Masks
from everycause.models import load, model_fingerprint
from everycause.params import read
from everycause.training.fit import fit
from everycause.training.rows import ROWS, Recipe, Upstream, goal_of
from stages.entry import recorded, run

HEADLINE = ("masks", "joint")
"""Rows whose models are logged to MLflow, beside the base."""


def main(row: str, seed: int, base: Path, filters: Path, masks: Path, out: Path) -> None:
    """Retrain the base classifier as one row of the table says.

    Args:
        row: A row of everycause.training.rows.
        seed: Seed of order, augmentation and backgrounds.
        base: Folder of the base classifier.
        filters: Folder of its filter bank.
        masks: Folder of its masks.
        out: Folder to write.
    """
    params = read("run", "tracking", "data", "filters", "masks", "background", "loss", "retraining")
    if row not in ROWS:
        raise UserError(f"'{row}' is not a retraining row (known: {', '.join(ROWS)})")
    device = start(params.run, seed)
    classifier, model = load(base, device), model_fingerprint(base)
    train = open_split(params.data, "train", params.run.threads)
    validation = open_split(params.data, "validation", params.run.threads)
    upstream = Upstream(classifier, FilterBank.load(filters, model), Masks.load(masks, model, train.identity), train)
    recipe = Recipe(
        params.data,
        params.masks,
        params.background,
        params.loss,
        params.filters.frequency_threshold,
        params.run.threads,
    )
    goal = goal_of(ROWS[row], upstream, recipe, seed)
    with recorded(f"retrain/{row}", params, out, seed, device, train.identity) as (folder, record):
        for epoch in fit(classifier, train, validation, params.retraining, seed, goal, row):
            record(epoch.measures, epoch.number)
        classifier.save(folder)
        if params.tracking.log_models and row in HEADLINE:
            record.model(classifier)


if __name__ == "__main__":
    run(main)
