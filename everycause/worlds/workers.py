"""The workers of a study: several processes measure what is missing, cell by cell, each on one thread."""

import multiprocessing
import os
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from types import SimpleNamespace

from tqdm import tqdm

from everycause.device import start
from everycause.errors import UserError
from everycause.worlds.cells import Cell
from everycause.worlds.measurement import Laboratory

ROW_SECONDS = 60
"""About how long one row takes on one core, its share of base and masks included."""
PATIENCE = 5.0
"""Seconds that a worker has to end when it is asked to."""


def train(laboratory: Laboratory, asked: list[Cell], rows: list[str], workers: int) -> None:
    """Measure every missing row, cell by cell, in several processes.

    Raises:
        UserError: a row cannot be trained, or a process was killed.
    """
    missing = {cell: laboratory.missing(cell, rows) for cell in asked}
    todo = {cell: names for cell, names in missing.items() if names}
    count = sum(map(len, todo.values()))
    if not count:
        return
    hours = count * ROW_SECONDS / workers / 3600
    tqdm.write(
        f"{count} rows to train and measure in {len(todo)} cells: about {hours:.1f} hours with {workers} workers"
    )
    os.environ |= {"OMP_NUM_THREADS": "1", "TQDM_DISABLE": "1"}  # for the workers alone: a bar of each would be a mess
    pool = ProcessPoolExecutor(
        workers, multiprocessing.get_context("spawn"), initializer=_begin, initargs=(laboratory.params,)
    )
    try:
        with tqdm(total=count, desc="rows", disable=None) as bar:
            running = {pool.submit(laboratory.measure, cell, rows): cell for cell in todo}
            for done in as_completed(running):
                done.result()
                cell = running.pop(done)
                bar.update(len(todo[cell]))
                if cell.where.images not in {other.where.images for other in running.values()}:
                    laboratory.forget(cell.where)
    except BaseException as error:
        alive = multiprocessing.active_children()
        for worker in alive:
            worker.terminate()  # finished rows are kept, the row that it was at is done again
        for worker in alive:
            worker.join(PATIENCE)
            worker.kill()  # one that waits for a GPU does not hear the first request
        if isinstance(error, BrokenProcessPool):
            raise UserError(
                f"a worker was killed: is there memory for {workers} of them? Run this again: it goes on"
            ) from error
        raise
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _begin(params: SimpleNamespace) -> None:
    """Prepare a worker."""
    start(params.run.model_copy(update={"threads": 1}), 0)
