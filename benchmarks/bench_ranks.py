"""Two processes that share the search, one thread each, against one: by the clock, and by what their processors did."""

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

PROCESSES = 2


def seconds(processes: int) -> dict[str, float]:
    """Wall-clock and processor seconds of the search by so many processes."""
    alone = [sys.executable, "-m", "benchmarks.ranks_part"]
    several = [sys.executable, "-m", "torch.distributed.run", f"--nproc_per_node={processes}", "-m", alone[-1]]
    command = alone if processes == 1 else several
    done = subprocess.run(command, cwd=Path(__file__).parents[1], capture_output=True, text=True, check=True)
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def measures() -> Iterator[tuple[str, float]]:
    """How many times as fast, and how much more processor time."""
    one, two = seconds(1), seconds(PROCESSES)
    yield "ranks.search_speedup", one["wall"] / two["wall"]
    yield "ranks.search_processor_ratio", two["processor"] / one["processor"]
    yield "ranks.search_seconds", two["wall"]
