"""tune: a resumable Optuna study over any params of one row (`make sweep`), or an ablation's grid (`make ablation name=…`).

Reads   the base, its filters and its masks (each is made again only where a trial changes it), the training and validation splits.
Writes  the study (--storage), OUT (a proposal with its report, or NAME/grid.png; trials.csv, figures), tuning/upstream (what trials made anew).
Paper   ranges, published values and grids of arXiv 2501.11087.  Cost: about 40 s a trial on two cores.
"""

from pathlib import Path

import torch

from everycause import tracking
from everycause.artifacts import atomic_folder
from everycause.device import start
from everycause.errors import UserError
from everycause.params import read
from everycause.tuning.loop import RUN, lost, optimize
from everycause.tuning.report import write_grid, write_proposal
from everycause.tuning.space import starts
from everycause.tuning.study import open_storage, open_study
from everycause.tuning.trial import prepared
from everycause.tuning.workers import run_workers
from stages.entry import run


def main(
    artifacts: Path,
    out: Path,
    storage: str = "tuning/journal.log",
    kept: Path = Path("tuning/upstream"),
    ablation: str = "",
    workers: int = 1,
    worker: int | None = None,
) -> None:
    """Run the study until it has all its trials, then write what came out.

    Args:
        artifacts: Folder of all artifacts.
        out: Folder to write.
        storage: A journal file, a database URL (sqlite:///study.db, postgresql://host/name), or grpc://host:port.
        kept: Folder of what trials had to make anew.
        ablation: A grid of tuning.ablations instead of the sweep.
        workers: Processes on this machine; they share out run.threads, or the GPUs.
        worker: Set by this program: which of these processes it is.
    """
    if workers < 1:
        raise UserError(f"--workers {workers} must be 1 or more")
    params = read(
        "seeds",
        "run",
        "tracking",
        "data",
        "model",
        "training",
        "filters",
        "masks",
        "background",
        "loss",
        "retraining",
        "rounds",
        "tuning",
    )
    plan = params.tuning.plan(ablation)
    threads = params.run.threads if worker is None else max(1, params.run.threads // workers)
    device = start(params.run.model_copy(update={"threads": threads}), plan.seed)
    sweep = prepared(params, plan, artifacts, kept, threads, device)
    opened = open_storage(storage, lambda study, trial: lost(study, plan, trial, tracking.close))
    study = open_study(opened, plan, sweep.subject, starts(plan, sweep.present), kept.parent / "study.lock")
    if worker is not None:
        optimize(
            study,
            plan,
            sweep.present,
            lambda asked: sweep.measures(asked, study.user_attrs.get(RUN)),
            sweep.steps,
            tracking.close,
            worker,
        )
        return
    tags = sweep.tags | {
        "study": plan.study,
        "row": plan.row,
        "objectives": ", ".join(plan.objectives),
        "sampler": plan.sampler,
        "pruner": plan.pruner,
    }
    with tracking.run(f"study/{plan.study}", sweep.tracked, tags, {}, resume=study.user_attrs.get(RUN)) as parent:
        study.set_user_attr(RUN, parent.run_id)
        if workers == 1:
            optimize(
                study,
                plan,
                sweep.present,
                lambda asked: sweep.measures(asked, parent.run_id),
                sweep.steps,
                tracking.close,
            )
        else:
            command = [
                "-m",
                "stages.tune",
                "--artifacts",
                str(artifacts),
                "--out",
                str(out),
                "--storage",
                storage,
                "--kept",
                str(kept),
            ]
            command += ["--workers", str(workers), *(["--ablation", ablation] if ablation else [])]
            run_workers(study, plan, command, workers, params.run.threads, torch.cuda.device_count(), tracking.close)
        with atomic_folder(out / ablation if ablation else out) as folder:
            if ablation:
                write_grid(study, plan, sweep.reference(), folder)
            else:
                write_proposal(study, plan, sweep.present, folder)
            parent.artifacts(folder)


if __name__ == "__main__":
    run(main)
