import pytest
import torch

from everycause.device import RunParams, device_name, start


def test_seeds_and_threads_are_fixed() -> None:
    draws = []
    for _ in range(2):
        assert start(RunParams(device="cpu", threads=2), 7) == torch.device("cpu")
        draws.append(torch.rand(3))
    assert torch.equal(*draws) and torch.get_num_threads() == 2 and torch.are_deterministic_algorithms_enabled()
    assert device_name(torch.device("cpu")) == "cpu"


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_cuda_is_refused_where_there_is_none() -> None:
    with pytest.raises(ValueError, match="run.device is 'cuda', but torch sees no CUDA device"):
        start(RunParams(device="cuda", threads=1), 0)
    assert start(RunParams(device="auto", threads=1), 0) == torch.device("cpu")
