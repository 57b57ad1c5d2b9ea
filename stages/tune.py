"""tune: a resumable Optuna study over loss weights and thresholds (`make sweep`; not a stage of dvc.yaml).

Reads   the base, its filters and its masks (they are reused, never recomputed), the training and validation splits.
Writes  tuning/journal.log (the study), OUT/best_params.yaml, OUT/trials.csv, OUT/*.png. The winner is proposed, not adopted.
Paper   ranges of arXiv 2501.11087.  Cost: about 40 s a trial on two cores.
"""

from pathlib import Path

from everycause import tracking, tuning
from everycause.artifact import published
from everycause.data.dataset import open_split
from everycause.evaluation.selection import RULES
from everycause.model import model_fingerprint
from everycause.params import read
from everycause.runtime import start
from everycause.training.rows import Recipe
from everycause.training.trial import Shared, TrialParams, with_values
from stages.entry import run


def main(artifacts: Path, out: Path, journal: Path = Path("tuning/journal.log")) -> None:
    """Run the study until it has `tuning.trials` finished trials, then propose the winner.

    Args:
        artifacts: Folder of all artifacts.
        out: Folder to write.
        journal: The study's file; delete it to begin anew.
    """
    params = read("run", "tracking", "data", "filters", "masks", "fill", "objective", "retraining", "tuning")
    rule, seed = params.tuning, params.tuning.seed
    device = start(params.run, seed)
    present = TrialParams(filters=params.filters, fill=params.fill, objective=params.objective, retraining=params.retraining)
    defaults = tuning.defaults(present.model_dump(), rule)
    with_values(present, defaults)
    train, validation = (open_split(params.data, name, params.run.threads) for name in ("train", "validation"))
    shared = Shared.open(artifacts, seed, train, validation, device)
    recipe = Recipe(params.data, params.masks, params.fill, params.objective, params.filters.frequency_threshold, params.run.threads)
    subject = {"data": train.identity, "model": model_fingerprint(shared.base), "masks": params.masks.model_dump(), "rule": rule.rule, "row": rule.row}
    subject |= {"parameters": {path: bounds.model_dump() for path, bounds in rule.parameters.items()}, "params": present.model_dump()}
    study = tuning.open_study(journal, rule, subject, defaults)
    own = params.tracking.model_copy(update={"experiment": f"{params.tracking.experiment}-tuning"})
    with tracking.run(f"study/{rule.study}", own, {"stage": "tune", "rule": rule.rule, **tracking.identity(device, train.identity)}, {}) as parent:

        def value_of(number: int, chosen: dict[str, float]) -> float:
            tags = {"stage": "tune", "row": rule.row, "study": rule.study}
            with tracking.run(f"{rule.study}/trial-{number}", own, tags, dict(chosen), parent=parent.run_id) as record:
                classifier = shared.retrained(rule.row, with_values(present, chosen), recipe, seed, device, lambda epoch: record(epoch.measures, epoch.number))
                value = RULES[rule.rule](classifier, params.data, validation, params.run.threads)
                record({f"best/{rule.rule.replace(' ', '_')}": value}, params.retraining.epochs)
                return value

        tuning.optimize(study, rule, value_of)
        with published(out) as folder:
            tuning.write_proposal(study, rule, folder)
            parent.artifacts(folder)


if __name__ == "__main__":
    run(main)
