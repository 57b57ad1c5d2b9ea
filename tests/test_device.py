import os

import pytest
import torch

from everycause.device import RunParams, device_name, start
from everycause.errors import UserError


def test_seeds_and_threads_are_fixed() -> None:
    draws = []
    for _ in range(2):
        assert start(RunParams(device="cpu", threads=2, processes=1), 7) == torch.device("cpu")
        draws.append(torch.rand(3))
    assert torch.equal(*draws) and torch.get_num_threads() == 2 and torch.are_deterministic_algorithms_enabled()
    assert device_name(torch.device("cpu")) == "cpu"


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_cuda_is_refused_where_there_is_none() -> None:
    with pytest.raises(ValueError, match="run.device is 'cuda', but torch sees no CUDA device"):
        start(RunParams(device="cuda", threads=1, processes=1), 0)
    assert start(RunParams(device="auto", threads=1, processes=1), 0) == torch.device("cpu")


def test_more_threads_than_the_machine_can_use_are_refused() -> None:
    with pytest.raises(UserError, match=r"run.threads is 256, and this machine has \d+ cores"):
        start(RunParams(device="cpu", threads=256, processes=1), 0)


def test_products_are_full_float32_and_deterministic_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    before = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    torch.set_float32_matmul_precision("high")
    torch.backends.cudnn.allow_tf32 = True
    try:
        start(RunParams(device="cpu", threads=1, processes=1), 0)
        assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8"
        assert torch.get_float32_matmul_precision() == "highest" and not torch.backends.cudnn.allow_tf32
    finally:
        torch.set_float32_matmul_precision(before[0])
        torch.backends.cudnn.allow_tf32 = before[1]
