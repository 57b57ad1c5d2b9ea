"""Where and how the mathematics runs: device, threads, deterministic algorithms, full float32 precision."""

import os
import platform
import random
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from pydantic import Field
from torch import nn

from everycause import ranks
from everycause.errors import UserError
from everycause.params import Section


class RunParams(Section):
    """The machine that a stage runs on."""

    device: Literal["auto", "cpu", "cuda"]
    """`auto` takes a GPU where there is one."""
    threads: int = Field(ge=1)
    """CPU threads of each process, at most four per core of the machine that runs. Another number may give other
    bytes."""
    processes: int = Field(ge=1, le=1024)
    """Processes of this machine that share the work of a stage, one on each GPU where there are GPUs."""


def start(params: RunParams, seed: int) -> torch.device:
    """Set threads, seeds and deterministic algorithms, and return the device.

    Results are bitwise reproducible on CPUs of one kind with one number of threads. On a GPU the algorithms are
    deterministic as well and matrix products are true float32 (no TF32), but another kind of GPU gives other bytes.

    Raises:
        UserError: CUDA was asked for where there is none, or more threads than make sense on this machine.
    """
    if params.device == "cuda" and not torch.cuda.is_available():
        raise UserError("run.device is 'cuda', but torch sees no CUDA device here: set run.device to 'auto' or 'cpu'")
    cores = os.cpu_count() or 1
    together = ranks.local_count()
    if params.threads * together > 4 * cores:
        each = f" for each of {together} processes" if together > 1 else ""
        raise UserError(
            f"run.threads is {params.threads}{each}, and this machine has {cores} cores: set it to "
            f"{max(1, cores // together)} or less"
        )
    # cuBLAS reads this when CUDA starts; without it some of its products are not deterministic
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.set_float32_matmul_precision("highest")
    torch.backends.cudnn.allow_tf32 = False
    torch.set_num_threads(params.threads)
    torch.use_deterministic_algorithms(True, warn_only=True)
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)
    automatic = "cuda" if torch.cuda.is_available() else "cpu"
    device = torch.device(automatic if params.device == "auto" else params.device)
    return own_gpu(torch.cuda.device_count()) if device.type == "cuda" and ranks.count() > 1 else device


def own_gpu(gpus: int) -> torch.device:
    """The GPU of this process, one of several on a machine with `gpus` of them.

    Raises:
        UserError: there are fewer GPUs than processes.
    """
    if ranks.local_count() > gpus:
        raise UserError(
            f"{ranks.local_count()} processes share this machine, and it has {gpus} GPUs: set run.processes to {gpus}"
        )
    device = torch.device("cuda", ranks.local_number())
    torch.cuda.set_device(device)
    return device


def memory_mib(device: torch.device) -> int:
    """The memory of this machine, or of its GPU if that computes, in MiB."""
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).total_memory // 2**20
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2**20


def output_sizes(network: nn.Module) -> list[float]:
    """A list that gets the size of each layer's output, in MiB, in the network's next forward pass."""
    sizes: list[float] = []

    def seen(_module: nn.Module, _inputs: object, output: object) -> None:
        if isinstance(output, torch.Tensor):
            sizes.append(output.numel() * output.element_size() / 2**20)

    for module in (one for one in network.modules() if not list(one.children())):
        module.register_forward_hook(seen)
    return sizes


def check_batch(section: str, size: int, image_mib: float, memory: int) -> None:
    """Refuse a batch that this machine cannot hold.

    Args:
        section: Section of params.yaml.
        size: Its batch_size.
        image_mib: What one image needs at the least, in MiB.
        memory: The machine's memory, in MiB.

    Raises:
        UserError: the batch needs more.
    """
    if size * image_mib > memory:
        raise UserError(
            f"params.yaml: {section}.batch_size is {size}, which needs more than {size * image_mib:,.0f} MiB at once, "
            f"and this machine has {memory:,} MiB of memory: lower it"
        )


def device_name(device: torch.device) -> str:
    """The device in words, for records."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"


def cpu_name() -> str:
    """The processor's name. On another one the same code gives other bytes."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine())
