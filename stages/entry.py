"""How every stage starts and ends: a user's mistake is one sentence, an artifact is whole or absent, a run is recorded."""

import logging
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import torch
import tyro

from everycause import tracking
from everycause.artifacts import atomic_folder
from everycause.errors import UserError
from everycause.params import flattened


def run(main: Callable[..., None]) -> None:
    """Make a stage's signature its command line; a ValueError becomes a sentence and exit code 1, a Ctrl-C a word."""
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s: %(message)s")
    try:
        tyro.cli(main)
    except UserError as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        sys.exit("stopped")


@contextmanager
def recorded(
    name: str, params: SimpleNamespace, out: Path, seed: int, device: torch.device, data: str, resume: str | None = None
) -> Iterator[tuple[Path, tracking.Record]]:
    """A folder that becomes `out`, and the record of the run that fills it; with a `resume` key a killed run goes on."""
    sections = {key: value.model_dump() for key, value in vars(params).items()}
    tags = {
        "stage": name.split("/")[0],
        "row": name.split("/")[-1],
        "seed": str(seed),
        **tracking.identity(device, data),
    }
    with (
        atomic_folder(out, resume) as folder,
        tracking.run(
            f"{name}/seed-{seed}", params.tracking, tags, flattened(sections), folder / tracking.HISTORY
        ) as record,
    ):
        yield folder, record
        record.artifacts(folder)
