"""The state of unfinished work, from which a run that was killed goes on.

States and finished units lie in the folder of `artifacts.atomic_folder`, beside the finished parts of the artifact. The
key of that folder says what the work is made from, so the state of other work is never found there. They are gone when
the artifact is whole.
"""

import io
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import torch

from everycause import ranks
from everycause.artifacts import UNFINISHED, is_whole, part
from everycause.errors import UserError

SECONDS = "EVERYCAUSE_CHECKPOINT_SECONDS"
"""Environment variable: the fewest seconds between two states. It changes no result, so it is no parameter."""
FEWEST_SECONDS = 30.0
"""The same where the variable is not set."""
DEAREST = 20
"""A state is written no sooner than after so many times what the last one took: at most 5 % of the time goes there."""
T = TypeVar("T")


class Unfinished:
    """The state of one piece of work, in one file; without a folder nothing is kept and nothing found."""

    def __init__(
        self, folder: Path | None = None, name: str = "training", remedy: str = "the training starts again"
    ) -> None:
        self.file = None if folder is None else folder / f"{UNFINISHED}{name}.pt"
        self._remedy = remedy
        self._seconds = seconds_between()
        self._next = time.monotonic() + self._seconds

    def due(self) -> bool:
        """Whether the last state is old enough for another one to be worth its time."""
        return self.file is not None and ranks.is_first() and time.monotonic() >= self._next

    def save(self, state: dict[str, Any], own: bool = False) -> None:
        """Replace the state.

        Args:
            state: Tensors, numbers, text, and lists and mappings of them.
            own: Whether it is that of this process alone. Otherwise the first of the processes that share a stage
                writes, and the others, whose state is the same, go on from what it wrote.

        Raises:
            OSError: the disk is full or cannot be written; the last state stays.
        """
        if self.file is None or not (own or ranks.is_first()):
            return
        began, buffer = time.monotonic(), io.BytesIO()
        torch.save(state, buffer)  # into memory: on a full disk torch raises a RuntimeError that does not say so
        with part(self.file) as writing:
            writing.write_bytes(buffer.getbuffer())
        ended = time.monotonic()
        self._next = ended + max(self._seconds, DEAREST * (ended - began))

    def load(self, device: torch.device | str = "cpu") -> dict[str, Any] | None:
        """The last state, its tensors on a device; None where there is none, or a damaged one, which is reported."""
        if self.file is None or not is_whole(self.file, self._remedy):
            return None
        # without map_location a run that was killed on a GPU could not go on on a CPU
        state: dict[str, Any] = torch.load(self.file, map_location=device, weights_only=True)
        return state


def kept(folder: Path | None, name: str, make: Callable[[], T]) -> T:
    """What `make` returns, kept in a folder: a run that goes on reads it there and does not make it again.

    Args:
        folder: Where it is kept; None: it is not.
        name: A name of its own within the folder.
        make: Makes tensors, numbers, text, or lists and mappings of them.
    """
    unfinished = Unfinished(folder, name, "it is made again")
    if (state := unfinished.load()) is not None:
        found: T = state["value"]
        return found
    value = make()
    unfinished.save({"value": value}, own=True)
    return value


def seconds_between() -> float:
    """The fewest seconds between two states.

    Raises:
        UserError: the environment variable is no number of seconds.
    """
    told = os.environ.get(SECONDS, "").strip()
    try:
        seconds = float(told or FEWEST_SECONDS)
    except ValueError:
        seconds = -1.0
    if not seconds >= 0:
        raise UserError(f"the environment variable {SECONDS} is '{told}': set it to a number of seconds, or unset it")
    return seconds
