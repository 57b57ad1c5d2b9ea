"""Stage 4, retrain: one row of the results table, trained from the base classifier on.

Reads   the base classifier, the training and validation splits; its filters and masks, and the prior, if the row needs
        them. Rows without filter terms record the values of these terms if there are filters. Rows with rounds on
        Codebirds also read erasures of validation images, to record which causes the model uses.
Writes  OUT/model.safetensors, OUT/row.json (what the row adds to the continued base), OUT/history.jsonl. A row with
        counterfactual images also OUT/pictures.safetensors (examples, everycause/training/examples.py), a row with
        rounds OUT/round-*.safetensors (Masks) and OUT/rounds.json. A killed run goes on within its epoch.
Paper   arXiv 2511.12100, 2501.11087; rounds are this project's own. Cost: about 40 s on two cores, 110 s with rounds.
"""

from pathlib import Path
from types import SimpleNamespace

import torch

from everycause import ranks
from everycause.artifacts import write_json
from everycause.data.erasures import ValidationErasures
from everycause.data.sources import SOURCES, open_split
from everycause.device import start
from everycause.errors import UserError
from everycause.evaluation.faithfulness import round_metrics
from everycause.explanation.filters import FILE, FilterBank
from everycause.explanation.masks import Masks
from everycause.explanation.prior_training import inpainting_prior
from everycause.inference import check_fits
from everycause.models import Classifier, load, model_fingerprint
from everycause.params import read
from everycause.training.counterfactuals import Recipe, Upstream
from everycause.training.examples import save_pictures
from everycause.training.rounds import Observe
from everycause.training.rows import ROWS, retrain
from stages.entry import PRIOR, run
from stages.recording import recorded, resume_key

HEADLINE = ("masks", "joint")  # rows whose models are logged to MLflow, beside the base


def main(row: str, seed: int, base: Path, filters: Path, masks: Path, out: Path) -> None:
    """Retrain the base classifier as one row of the table says.

    Args:
        row: A row of everycause.training.rows.
        seed: Seed of order, augmentation, backgrounds and dropout.
        base: Folder of the base classifier.
        filters: Folder of its filter bank.
        masks: Folder of its masks.
        out: Folder to write.
    """
    params = read(
        "run", "tracking", "data", "filters", "masks", "background", "exchange", "loss", "retraining", "rounds"
    )
    if row not in ROWS:
        raise UserError(f"'{row}' is not a retraining row (known: {', '.join(ROWS)})")
    if out.resolve() in {place.resolve() for place in (base, filters, masks)}:
        raise UserError(f"--out '{out}' is what this stage reads: name another folder")
    device = start(params.run, seed)
    upstream = opened(params, base, filters, masks, device)
    classifier, data, threshold = upstream.base, params.data, params.filters.frequency_threshold
    recipe = Recipe(data, params.masks, params.background, params.exchange, params.loss, threshold, params.run.threads)
    retraining = retrain(row, upstream, recipe, params.retraining, params.rounds, seed)
    places = (masks, filters, PRIOR)
    files = [file for place in places for file in sorted(place.glob("*.safetensors")) if "heads-" not in file.name]
    identities = (upstream.model, upstream.train.identity, upstream.validation.identity)
    key = resume_key("retrain", params, SOURCES, row, str(seed), *identities, *files)
    with recorded(f"retrain/{row}", params, out, seed, device, upstream.train.identity, key) as (folder, record):
        rounds = []
        for epoch in retraining.epochs(folder, observer(params, seed)):
            record(epoch.measures, epoch.number)
            rounds += [epoch.measures] if "round/round" in epoch.measures else []
        if ranks.is_first():
            if rounds:
                write_json(folder / "rounds.json", rounds)
            write_json(folder / "row.json", {"row": row, "meaning": ROWS[row].meaning})
            if (pictures := retraining.pictures()) is not None:
                models = {"base": load(base, device), row: classifier}
                save_pictures(folder, pictures, models, params.data, params.run.threads)
            classifier.save(folder)
        if params.tracking.log_models and row in HEADLINE:
            record.model(classifier)


def opened(params: SimpleNamespace, base: Path, filters: Path, masks: Path, device: torch.device) -> Upstream:
    """The base classifier, the splits, and what opens its masks and filters when a row needs them.

    Raises:
        UserError: there is no base, or the data are not those that it was made for.
    """
    classifier, model = load(base, device), model_fingerprint(base)
    data = params.data.seen_by(classifier.framing)
    train, validation = (open_split(data, name, params.run.threads) for name in ("train", "validation"))
    check_fits(classifier, train)
    return Upstream(
        base=classifier,
        model=model,
        train=train,
        validation=validation,
        open_masks=lambda: Masks.load(masks, model, train.identity, len(train)),
        open_filters=lambda: FilterBank.load(filters, model),
        watch_filters=(filters / FILE).is_file(),
        open_prior=lambda: inpainting_prior(PRIOR, train, device),
    )


def observer(params: SimpleNamespace, seed: int) -> Observe:
    """Measures the model after each round: the search, and on Codebirds the causes that the model uses."""
    data, threads = params.data, params.run.threads
    erasures = ValidationErasures(data, threads) if data.code is not None else None

    def observe(number: int, classifier: Classifier, masks: Masks | None) -> dict[str, float]:
        return round_metrics(number, classifier, masks, data, erasures, threads, seed)

    return observe


if __name__ == "__main__":
    run(main, divided=True)
