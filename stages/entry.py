"""How every stage starts and ends: a user's mistake is a sentence, an artifact whole or absent, a run recorded."""

import logging
import sys
from collections.abc import Callable
from pathlib import Path

import tyro

from everycause import ranks
from everycause.artifacts import (
    atomic_folder,
    read_json,
    write_json,
)
from everycause.errors import UserError, disk_trouble
from stages.launching import launch, leave, processes_to_start

PRIOR = Path("artifacts/prior")
"""Where train_prior writes unless told otherwise; retrain reads it if background.source is `prior`."""
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


def written(file: Path, text: str) -> None:
    """Write a file whole or not at all."""
    partial = file.with_suffix(".partial")
    partial.write_text(text, encoding="utf-8")
    partial.rename(file)
