"""Where and how the mathematics runs: device, threads, determinism."""

import random
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from pydantic import Field

from everycause.artifacts import fingerprint
from everycause.errors import UserError
from everycause.params import Section


class RunParams(Section):
    """The machine that a stage runs on."""

    device: Literal["auto", "cpu", "cuda"]
    """`auto` takes a GPU where there is one."""
    threads: int = Field(ge=1)
    """CPU threads. Another number may give other bytes."""


def start(params: RunParams, seed: int) -> torch.device:
    """Fix threads, seeds and deterministic algorithms, and name the device.

    Raises:
        UserError: CUDA was asked for where there is none.
    """
    if params.device == "cuda" and not torch.cuda.is_available():
        raise UserError("run.device is 'cuda', but torch sees no CUDA device here: set run.device to 'auto' or 'cpu'")
    torch.set_num_threads(params.threads)
    torch.use_deterministic_algorithms(True, warn_only=True)
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)
    automatic = "cuda" if torch.cuda.is_available() else "cpu"
    return torch.device(automatic if params.device == "auto" else params.device)


def device_name(device: torch.device) -> str:
    """The device in words, for records."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"


def code_fingerprint() -> str:
    """Identifies the code of the package: what was half done by other code is not gone on with."""
    return fingerprint(*sorted(Path(__file__).parent.rglob("*.py")))
