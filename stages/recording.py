"""The record of a stage: its artifact whole or absent, one MLflow run, and what a killed run goes on from."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import torch

from everycause import ranks, tracking
from everycause.artifacts import HISTORY, UNFINISHED, atomic_folder, code_fingerprint, fingerprint
from everycause.errors import memory_errors
from everycause.params import flattened

RUN = f"{UNFINISHED}run.jsonl"
"""File in an unfinished artifact: the MLflow run that records it."""

BATCHES = {
    "train_base": "training.batch_size",
    "accumulate_filters": "filters.heads.batch_size",
    "generate_masks": "masks.batch_size",
    "retrain": "retraining.batch_size",
    "measure_faithfulness": "masks.batch_size",
}
"""Stage → the parameter that decides how much memory it takes."""


def resume_key(stage: str, params: SimpleNamespace, sources: dict[str, str], *made_from: str | Path) -> str:
    """A hash of everything that finished parts of a stage's work follow from: nothing else is gone on with.

    Args:
        stage: The stage.
        params: The sections that it reads; `tracking` changes no result.
        sources: Data source → module that reads it.
        made_from: What else the work is made from: fingerprints, seeds, the contents of files.
    """
    sections = [section.model_dump_json() for name, section in vars(params).items() if name != "tracking"]
    code = code_fingerprint(f"stages.{stage}", sources[params.data.source])
    return fingerprint(torch.__version__, code, *made_from, *sections)


@contextmanager
def recorded(
    name: str,
    params: SimpleNamespace,
    out: Path,
    seed: int,
    device: torch.device,
    data: str,
    resume: str | None = None,
) -> Iterator[tuple[Path, tracking.Record]]:
    """A folder that becomes `out`, and the record of the run that fills it.

    Of several processes the first one makes the folder, records, and ends when all have ended. The others get the same
    folder and a record that keeps nothing.

    Args:
        name: stage/row.
        params: The sections that the stage reads; they are logged.
        out: The folder.
        seed: The training seed.
        device: Where the stage computes.
        data: Fingerprint of its data.
        resume: With this key, a killed run goes on where it was.
    """
    if not ranks.is_first():
        yield ranks.decided(Path), tracking.unrecorded()
        ranks.wait()
        return
    sections = {key: value.model_dump() for key, value in vars(params).items() if hasattr(value, "model_dump")}
    tags = {"stage": name.split("/")[0], "row": name.split("/")[-1], "seed": str(seed)}
    tags |= tracking.identity(device, data)
    if (world := getattr(getattr(getattr(params, "data", None), "section", None), "world", None)) is not None:
        tags["world"] = world  # of Codebirds
    run_name, logged = f"{name}/seed-{seed}", flattened(sections)
    shown = f"{tags['row']} · {tags['stage']} · seed {seed}"  # MLflow cuts long names: the row comes first
    with (
        atomic_folder(out, run_name, resume and fingerprint(run_name, resume)) as folder,
        tracking.run(shown, params.tracking, tags, logged, folder / HISTORY, trail=folder / RUN) as record,
        memory_errors(tags["stage"], device.type == "cuda", BATCHES.get(tags["stage"], ""), logged),
    ):
        ranks.decided(lambda: folder)
        yield folder, record
        ranks.wait()
        record.artifacts(folder)
