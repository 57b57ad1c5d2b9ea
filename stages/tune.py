"""tune: a resumable Optuna study over loss weights and thresholds (`make sweep`), or an ablation's grid (`make ablation name=…`).

Reads   the base, its filters and its masks (they are reused; filters are counted or trained again where a trial changes how), the training and
        validation splits.
Writes  tuning/journal.log (the study); OUT/best_params.yaml (proposed, not adopted) or OUT/NAME/grid.png, with trials.csv and figures.
Paper   ranges and grids of arXiv 2501.11087.  Cost: about 40 s a trial on two cores.
"""

from pathlib import Path

from everycause import tracking, tuning
from everycause.artifact import published
from everycause.data.dataset import open_split
from everycause.evaluation.selection import rules_of
from everycause.model import load, model_fingerprint
from everycause.params import read
from everycause.runtime import start
from everycause.training.rows import ROWS, Recipe
from everycause.training.trial import Shared, TrialParams, with_values
from stages.entry import run


def main(artifacts: Path, out: Path, journal: Path = Path("tuning/journal.log"), ablation: str = "") -> None:
    """Run the study until it has all its trials, then write what came out.

    Args:
        artifacts: Folder of all artifacts.
        out: Folder to write.
        journal: The study's file; delete it to begin anew.
        ablation: A grid of tuning.ablations instead of the sweep.
    """
    params = read("run", "tracking", "data", "filters", "masks", "fill", "objective", "retraining", "tuning")
    rule, seed = tuning.ablation(params.tuning, ablation) if ablation else params.tuning, params.tuning.seed
    if rule.row not in ROWS:
        raise ValueError(f"tuning: '{rule.row}' is not a retraining row (known: {', '.join(ROWS)})")
    device = start(params.run, seed)
    present = TrialParams(filters=params.filters, fill=params.fill, objective=params.objective, retraining=params.retraining)
    defaults = tuning.defaults(present.model_dump(), rule)
    with_values(present, defaults)
    train, validation = (open_split(params.data, name, params.run.threads) for name in ("train", "validation"))
    shared = Shared.open(artifacts, seed, train, validation, params.filters, device)
    recipe = Recipe(params.data, params.masks, params.fill, params.objective, params.filters.frequency_threshold, params.run.threads)
    subject = {"data": train.identity, "model": model_fingerprint(shared.base), "masks": params.masks.model_dump(), "rule": rule.rule, "row": rule.row}
    subject |= {"parameters": {path: bounds.model_dump() for path, bounds in rule.parameters.items()}, "params": present.model_dump()}
    study = tuning.open_study(journal, rule, subject, defaults)
    own = params.tracking.model_copy(update={"experiment": f"{params.tracking.experiment}-tuning"})
    with tracking.run(f"study/{rule.study}", own, {"stage": "tune", "rule": rule.rule, **tracking.identity(device, train.identity)}, {}) as parent:

        def measures_of(number: int, chosen: dict[str, float]) -> dict[str, float]:
            tags, last = {"stage": "tune", "row": rule.row, "study": rule.study}, {}
            with tracking.run(f"{rule.study}/trial-{number}", own, tags, dict(chosen), parent=parent.run_id) as record:
                trial = shared.trial(rule.row, with_values(present, chosen), recipe, seed, device)
                for epoch in trial.epochs:
                    record(epoch.measures, epoch.number)
                    last = epoch.measures
                measures = rules_of(trial.classifier, params.data, validation, params.run.threads)
                record({f"best/{name.replace(' ', '_')}": value for name, value in measures.items()}, params.retraining.epochs)
                return measures | last | trial.filters

        tuning.optimize(study, rule, measures_of)
        with published(out / ablation if ablation else out) as folder:
            if ablation:
                continued = artifacts / "models" / "continued" / f"seed-{seed}"
                reference = rules_of(load(continued, device), params.data, validation, params.run.threads) if continued.is_dir() else {}
                tuning.write_grid(study, rule, reference, folder)
            else:
                tuning.write_proposal(study, rule, folder)
            parent.artifacts(folder)


if __name__ == "__main__":
    run(main)
