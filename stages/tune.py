"""tune: an Optuna study over parameters of one row (`make sweep`), or the grid of an ablation (`make ablation name=…`).

Reads   the base, its filters and its masks (made again only where a trial changes them), training, validation splits.
Writes  the study (--storage); OUT: a proposal with its report, or NAME/grid.png; trials.csv, figures; tuning/upstream:
        what trials made anew; tuning/trials: the measures of every epoch.
Paper   ranges, published values and grids of arXiv 2501.11087.  Cost: about 40 s a trial on two cores.
"""

from functools import partial
from pathlib import Path

import torch

from everycause import tracking
from everycause.artifacts import atomic_folder, check_replaceable
from everycause.device import start
from everycause.errors import UserError
from everycause.params import read
from everycause.tuning.loop import RUN, optimize, requeue, warn_of_running
from everycause.tuning.report import write_grid, write_proposal
from everycause.tuning.space import starts
from everycause.tuning.storages import open_storage
from everycause.tuning.study import open_study
from everycause.tuning.trial import prepared
from everycause.tuning.upstream import TrialParams
from everycause.tuning.workers import run_workers, visible_devices
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
    params = read("seeds", "run", "tracking", "data", "tuning", *TrialParams.model_fields)
    plan, place = params.tuning.plan(ablation), out / ablation if ablation else out
    if worker is None:
        check_replaceable(place, "tune")
    threads = params.run.threads if worker is None else max(1, params.run.threads // workers)
    device = start(params.run.model_copy(update={"threads": threads}), plan.seed)
    sweep = prepared(params, plan, artifacts, kept, threads, device)
    opened = open_storage(storage, lambda study, trial: requeue(study, plan, trial, tracking.close))
    study = open_study(opened, plan, sweep.subject, starts(plan, sweep.present), kept.parent / "study.lock")

    def work(parent: str | None) -> None:
        measures = partial(sweep.measures, parent=parent)
        optimize(study, plan, sweep.present, measures, sweep.steps, tracking.close, worker)

    if worker is not None:
        work(study.user_attrs.get(RUN))
        return
    tags = {"study": plan.study, "row": plan.row, "objectives": ", ".join(plan.objectives)}
    tags |= sweep.tags | {"sampler": plan.sampler, "pruner": plan.pruner}
    with tracking.run(f"{plan.study} · study", sweep.tracked, tags, {}, resume=study.user_attrs.get(RUN)) as parent:
        if parent.run_id is not None:  # during an outage the study keeps the run that it has
            study.set_user_attr(RUN, parent.run_id)
        if workers == 1:
            work(parent.run_id)
        else:
            command = ["-m", "stages.tune", "--artifacts", str(artifacts), "--out", str(out), "--storage", storage]
            command += ["--kept", str(kept), "--workers", str(workers), *(["--ablation", ablation] if ablation else [])]
            devices = visible_devices(torch.cuda.device_count())
            run_workers(study, plan, command, workers, params.run.threads, devices, tracking.close)
        warn_of_running(study, storage)
        with atomic_folder(place, "tune") as folder:
            if ablation:
                write_grid(study, plan, sweep.reference(), folder)
            else:
                write_proposal(study, plan, sweep.present, folder)
            parent.artifacts(folder)


if __name__ == "__main__":
    run(main)
