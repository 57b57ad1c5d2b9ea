"""Several processes for one stage, by torchrun's own agent, and in one sentence why one of them ended.

`torchrun --nproc_per_node=K -m stages.STAGE …` does the same by hand, on several machines too. What it needs of torch
is imported only where params.yaml asks for several processes.
"""

import json
import logging
import os
import signal
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from everycause import ranks
from everycause.errors import UserError
from everycause.params import raw_params, read

if TYPE_CHECKING:
    from torch.distributed.elastic.multiprocessing.errors import ProcessFailure

OURS = "EVERYCAUSE_LAUNCHED"
"""Set in the environment of processes that `launch` has started."""
ERROR_FILE = "TORCHELASTIC_ERROR_FILE"
"""Where torchrun's agent looks for what a process has to say about its end."""


def processes_to_start() -> int:
    """How many processes params.yaml asks for; 1 where they run already, or where there is no stage to run."""
    if ranks.launched() or {"-h", "--help"} & set(sys.argv) or not Path("params.yaml").is_file():
        return 1
    raw = raw_params()
    section = raw.get("run") if isinstance(raw, dict) else None
    if not isinstance(section, dict) or section.get("processes") in (1, None):
        return 1  # the stage reads the whole file and finds what is wrong with it
    return read("run").run.processes


def launch(processes: int) -> None:
    """Run this very command in several processes of this machine, and wait for them.

    Raises:
        UserError: one of them has failed; the others were stopped.
        SystemExit: this process was told to stop, and so were they.
    """
    from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)
    os.environ[OURS] = "1"
    spec = sys.modules["__main__"].__spec__
    command = [sys.argv[0]] if spec is None else ["-m", spec.name]
    with tempfile.TemporaryDirectory() as logs:
        config = LaunchConfig(
            min_nodes=1, max_nodes=1, nproc_per_node=processes, run_id=str(os.getpid()), max_restarts=0,
            rdzv_backend="c10d", rdzv_endpoint="localhost:0", local_addr="localhost",
            logs_specs=DefaultLogsSpecs(log_dir=logs),
        )  # fmt: skip
        try:
            elastic_launch(config, sys.executable)(*command, *sys.argv[1:])
        except ChildFailedError as error:
            raise UserError(cause(error.failures, processes)) from error
        except SignalException as stopped:
            raise SystemExit("stopped" if stopped.sigval == signal.SIGINT else "terminated") from stopped


def cause(failures: "dict[int, ProcessFailure]", processes: int) -> str:
    """Why the processes ended: a killed one comes before what the others say about it."""
    number, first = min(failures.items(), key=lambda one: (one[1].exitcode >= 0, said(one[1]) == ranks.LOST))
    if sentence := said(first):
        return sentence
    killed = first.exitcode < 0
    name = signal.Signals(-first.exitcode).name if killed else f"exit code {first.exitcode}, what is above says why"
    why = ", perhaps for want of memory" if -first.exitcode == signal.SIGKILL else ""
    return (
        f"process {number + 1} of {processes} has ended ({name}{why}), and the others were stopped: run it again, "
        "finished parts are kept"
    )


def said(failure: "ProcessFailure") -> str:
    """The sentence that a process has left; empty if it left none."""
    message = failure.error_file_data.get("message")
    return message.get("message", "") if isinstance(message, dict) else ""


def leave(sentence: str) -> NoReturn:
    """End with a sentence and status 1; a process that `launch` has started leaves the sentence to that one."""
    file = os.environ.get(ERROR_FILE)
    if OURS not in os.environ or not file:
        sys.exit(f"error: {sentence}")
    word = {"message": {"message": sentence, "extraInfo": {"timestamp": str(int(time.time()))}}}
    Path(file).write_text(json.dumps(word), encoding="utf-8")
    sys.exit(1)
