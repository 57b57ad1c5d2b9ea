"""How every stage starts and ends: a user's mistake is a sentence, an artifact whole or absent, a run recorded."""

import logging
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import torch
import tyro

from everycause import ranks, tracking
from everycause.artifacts import HISTORY, atomic_folder, read_json, write_json
from everycause.errors import UserError, disk_trouble
from everycause.params import flattened
from stages.launching import launch, leave, processes_to_start

KEY = ".key"
"""File in the artifacts of stages outside of dvc.yaml: the fingerprint of what they are made from."""


def run(main: Callable[..., None], divided: bool = False) -> None:
    """Make a stage's signature its command line. A user's error, or that of a disk, becomes a sentence and status 1.

    Args:
        main: The stage.
        divided: Whether `run.processes` processes can share its work.
    """
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s: %(message)s")
    try:
        if divided and (processes := processes_to_start()) > 1:
            launch(processes)
            return
        if ranks.launched() and not divided:
            raise UserError("this stage runs in one process: start it without torchrun")
        with ranks.together():
            tyro.cli(main)
    except UserError as error:
        leave(str(error))
    except OSError as error:
        if sentence := disk_trouble(error, Path.cwd()):
            leave(sentence)
        raise
    except KeyboardInterrupt:
        sys.exit("stopped")
    except SystemExit as ended:
        if ranks.launched() and ended.code == "terminated":
            sys.exit(143)  # who told this process to stop says why
        raise


def asked(inputs: Path | None) -> bool:
    """Whether params.yaml asks for a stage, as check_inputs wrote it; a stage called by hand is asked for."""
    return inputs is None or not inputs.is_file() or bool(read_json(inputs, "check_inputs", "asked")["asked"])


def leave_out(out: Path, owner: str) -> None:
    """Write the artifact of a stage that params.yaml does not ask for: a summary that says so, and nothing else."""
    if ranks.is_first():
        with atomic_folder(out, owner) as folder:
            write_json(folder / "summary.json", {"asked": False})


def finished(out: Path, key: str) -> bool:
    """Whether a stage outside of dvc.yaml has written OUT already, from what `key` is the fingerprint of."""
    return (out / KEY).is_file() and (out / KEY).read_text(errors="replace") == key


def finish(folder: Path, key: str) -> None:
    """Note what an artifact is made from, as `finished` reads it."""
    (folder / KEY).write_text(key)


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
    run_name, logged = f"{name}/seed-{seed}", flattened(sections)
    shown = f"{tags['row']} · {tags['stage']} · seed {seed}"  # MLflow cuts long names: the row comes first
    with (
        atomic_folder(out, run_name, resume) as folder,
        tracking.run(shown, params.tracking, tags, logged, folder / HISTORY) as record,
    ):
        ranks.decided(lambda: folder)
        yield folder, record
        ranks.wait()
        record.artifacts(folder)
