"""How every stage starts and ends: a user's mistake is a sentence, an artifact whole or absent, a run recorded."""

import logging
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import torch
import tyro

from everycause import tracking
from everycause.artifacts import (
    HISTORY,
    UNFINISHED,
    atomic_folder,
    code_fingerprint,
    fingerprint,
    read_json,
    write_json,
)
from everycause.errors import UserError, disk_trouble, memory_errors
from everycause.params import flattened

PRIOR = Path("artifacts/prior")
"""Where train_prior writes unless told otherwise; retrain reads it if background.source is `prior`."""
KEY = ".key"
"""File in the artifacts of stages outside of dvc.yaml: the fingerprint of what they are made from."""
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


def run(main: Callable[..., None]) -> None:
    """Make a stage's signature its command line. A user's error, or that of a disk, becomes a sentence and status 1."""
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s: %(message)s")
    try:
        tyro.cli(main)
    except UserError as error:
        sys.exit(f"error: {error}")
    except OSError as error:
        if sentence := disk_trouble(error, Path.cwd()):
            sys.exit(f"error: {sentence}")
        raise
    except KeyboardInterrupt:
        sys.exit("stopped")


def asked(inputs: Path | None) -> bool:
    """Whether params.yaml asks for a stage, as check_inputs wrote it; a stage called by hand is asked for."""
    return inputs is None or not inputs.is_file() or bool(read_json(inputs, "check_inputs", "asked")["asked"])


def leave_out(out: Path, owner: str) -> None:
    """Write the artifact of a stage that params.yaml does not ask for: a summary that says so, and nothing else."""
    with atomic_folder(out, owner) as folder:
        write_json(folder / "summary.json", {"asked": False})


def finished(out: Path, key: str) -> bool:
    """Whether a stage outside of dvc.yaml has written OUT already, from what `key` is the fingerprint of."""
    return (out / KEY).is_file() and (out / KEY).read_text(errors="replace") == key


def finish(folder: Path, key: str) -> None:
    """Note what an artifact is made from, as `finished` reads it."""
    (folder / KEY).write_text(key)


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

    Args:
        name: stage/row.
        params: The sections that the stage reads; they are logged.
        out: The folder.
        seed: The training seed.
        device: Where the stage computes.
        data: Fingerprint of its data.
        resume: With this key, a killed run goes on where it was.
    """
    sections = {key: value.model_dump() for key, value in vars(params).items() if hasattr(value, "model_dump")}
    tags = {"stage": name.split("/")[0], "row": name.split("/")[-1], "seed": str(seed)}
    tags |= tracking.identity(device, data)
    run_name, logged = f"{name}/seed-{seed}", flattened(sections)
    shown = f"{tags['row']} · {tags['stage']} · seed {seed}"  # MLflow cuts long names: the row comes first
    with (
        atomic_folder(out, run_name, resume and fingerprint(run_name, resume)) as folder,
        tracking.run(shown, params.tracking, tags, logged, folder / HISTORY, trail=folder / RUN) as record,
        memory_errors(tags["stage"], device.type == "cuda", BATCHES.get(tags["stage"], ""), logged),
    ):
        yield folder, record
        record.artifacts(folder)
