"""Processes that do one stage together: which of them this is, and what they tell each other.

`torchrun` starts them and says in the environment who each one is (its rank, from 0). The first one writes and records;
the others compute. Where there is one process alone, nothing is exchanged and every function gives back what it got.

All processes must call the functions below in the same order: each call waits for the others.
"""

import io
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from datetime import timedelta
from typing import TypeVar

import torch
from torch import distributed
from tqdm import tqdm

from everycause.errors import UserError
from everycause.shapes import Int64

LONGEST_WAIT = timedelta(days=30)
"""How long one process waits for another. One that dies is noticed at once; a slow one may take days for its share."""
LOST = "another process of this stage has ended, so this one stopped: run it again, finished parts are kept"
_together: ContextVar[bool] = ContextVar("together", default=False)
Piece, Result, Value = TypeVar("Piece"), TypeVar("Result"), TypeVar("Value")


def launched() -> bool:
    """Whether torchrun has started this process."""
    return "RANK" in os.environ and "WORLD_SIZE" in os.environ


@contextmanager
def together() -> Iterator[None]:
    """Join the processes that torchrun has started, and leave them after the block; nothing where it has started none.

    Raises:
        UserError: another process ended while this one waited for it.
    """
    if not launched():
        yield
        return
    try:
        distributed.init_process_group(
            "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo", timeout=LONGEST_WAIT
        )
        token = _together.set(True)
        try:
            yield
        finally:
            _together.reset(token)
    except RuntimeError as error:  # gloo has no class of its own for it
        if is_loss(error):
            raise UserError(LOST) from error
        raise
    distributed.destroy_process_group()


def is_loss(error: BaseException) -> bool:
    """Whether an error says that another process could not be reached."""
    said = str(error)
    return isinstance(error, distributed.DistError) or any(
        word in said for word in ("gloo", "Connection closed by peer", "Connection reset by peer")
    )


@contextmanager
def alone() -> Iterator[None]:
    """Within the block this process counts as the only one: for work that is not divided."""
    token = _together.set(False)
    try:
        yield
    finally:
        _together.reset(token)


def count() -> int:
    """Number of processes."""
    return distributed.get_world_size() if _together.get() else 1


def number() -> int:
    """Which process this is, from 0."""
    return distributed.get_rank() if _together.get() else 0


def is_first() -> bool:
    """Whether this process writes and records."""
    return number() == 0


def local_number() -> int:
    """Which process of its machine this is, from 0."""
    return int(os.environ.get("LOCAL_RANK", number())) if _together.get() else 0


def local_count() -> int:
    """Number of processes on this machine."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", count())) if _together.get() else 1


def wait() -> None:
    """Wait until every process has come here."""
    gathered(None)


def gathered(value: Value) -> list[Value]:
    """The value of every process, by rank."""
    if count() == 1:
        return [value]
    packed: list[bytes] = [b""] * count()
    written = io.BytesIO()
    torch.save(value, written)  # distributed's own way of packing does not know tensors of uint16
    distributed.all_gather_object(packed, written.getvalue())
    return [torch.load(io.BytesIO(one), weights_only=False) for one in packed]


def decided(decide: Callable[[], Value]) -> Value:
    """What the first process decides, for all of them; the others decide nothing."""
    return gathered(decide() if is_first() else None)[0]  # type: ignore[return-value]


def without_progress() -> bool | None:
    """What tqdm's `disable` is to be: only the first process shows a bar, and only on a terminal (None)."""
    return None if is_first() else True


def own_part(index: Int64[torch.Tensor, "images"]) -> Int64[torch.Tensor, "own"]:
    """The images of this process: one of as many parts of equal size as there are processes."""
    return index.tensor_split(count())[number()]


def joined(own: list[Value]) -> list[Value]:
    """The entries of all processes' lists, by rank."""
    return [one for part in gathered(own) for one in part]


def mapped(function: Callable[[Piece], Result], pieces: Sequence[Piece], title: str | None = None) -> list[Result]:
    """The results of a function for every piece, in order; the pieces are divided among the processes.

    Args:
        function: What to do with a piece. It must not depend on which process does it.
        pieces: The pieces, the same ones in every process.
        title: Of the progress bar; without it there is none.
    """
    own = range(number(), len(pieces), count())
    hidden = True if title is None else without_progress()
    found = {place: function(pieces[place]) for place in tqdm(own, desc=title, disable=hidden, leave=False)}
    if count() > 1:
        found = {place: one for part in gathered(found) for place, one in part.items()}
    return [found[place] for place in range(len(pieces))]
