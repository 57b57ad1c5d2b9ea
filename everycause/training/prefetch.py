"""The next steps of training are drawn in a thread while a GPU computes; their order and their images do not change."""

import threading
from collections.abc import Callable, Iterator
from dataclasses import fields, replace
from queue import Queue
from typing import TypeVar

import torch

from everycause.training.steps import Drawn, Step

Piece = TypeVar("Piece")
AHEAD = 3
"""Steps that wait at most; each takes as much memory as a batch."""


def prefetched(
    steps: Iterator[Step], count: int, device: torch.device, drawn: Callable[[], Drawn]
) -> Iterator[tuple[Step, Drawn]]:
    """Some steps, drawn ahead and in pinned memory where the device is a GPU; elsewhere drawn when asked for.

    No more than `count` steps are drawn, so that random numbers are where they were without a thread.

    Args:
        steps: All that follow.
        count: How many to draw.
        device: Where they are needed.
        drawn: Says where order and generator stand; it is asked after each step is drawn.
    """
    told = ((step, drawn()) for step in steps)
    if device.type != "cuda":
        for _ in range(count):
            yield next(told)
        return
    yield from ahead(told, count, lambda pair: (pinned(pair[0]), pair[1]))


def ahead(steps: Iterator[Piece], count: int, prepared: Callable[[Piece], Piece]) -> Iterator[Piece]:
    """Some steps, drawn and prepared in a thread; what goes wrong there is raised here."""
    waiting: Queue[Piece | BaseException] = Queue(AHEAD)
    stopped = threading.Event()

    def draw() -> None:
        try:
            for _ in range(count):
                if stopped.is_set():
                    return
                waiting.put(prepared(next(steps)))
        except BaseException as error:  # whatever it is, the training must end with it
            waiting.put(error)

    thread = threading.Thread(target=draw, name="prefetch", daemon=True)
    thread.start()
    try:
        for _ in range(count):
            step = waiting.get()
            if isinstance(step, BaseException):
                raise step
            yield step
    finally:
        stopped.set()
        while thread.is_alive():  # it may wait for room
            if not waiting.empty():
                waiting.get_nowait()
            thread.join(0.01)


def pinned(step: Step) -> Step:
    """The same step in memory that a GPU copies from while it computes."""
    return replace(step, **{field.name: getattr(step, field.name).pin_memory() for field in fields(step)})
