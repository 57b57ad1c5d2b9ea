"""Several processes that do something together, as torchrun would start them."""

import multiprocessing
import os
import pickle
import socket
from collections.abc import Callable
from typing import Any

import torch

from everycause import ranks


def together(function: Callable[..., Any], *arguments: Any, processes: int = 2) -> list[Any]:
    """The results of a function that several processes run together, by rank; it must return what can be pickled.

    The processes are copies of this one, which spares them the imports.
    """
    context = multiprocessing.get_context("fork")
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    ends = []
    for rank in range(processes):
        here, there = context.Pipe()
        work = context.Process(target=_run, args=(there, rank, processes, port, function, arguments))
        work.start()
        there.close()
        ends.append((here, work))
    results = []
    for here, work in ends:
        try:
            results.append(pickle.loads(here.recv_bytes()))
        except EOFError as error:
            raise RuntimeError("a process ended without a result: its traceback is above") from error
        work.join()
    return results


def _run(there: Any, rank: int, processes: int, port: int, function: Callable[..., Any], arguments: tuple) -> None:
    places = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": processes, "LOCAL_WORLD_SIZE": processes}
    os.environ |= {name: str(value) for name, value in places.items()}
    os.environ |= {"MASTER_ADDR": "localhost", "MASTER_PORT": str(port)}
    torch.set_num_threads(1)
    with ranks.together():
        there.send_bytes(pickle.dumps(function(*arguments)))  # by value: torch would share memory that ends here
