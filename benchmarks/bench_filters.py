"""Counterfactual heads of 200 classes: trained together, against one after the other with autograd and torch.optim.SGD.

Both work on activations that were computed once. Only time is extrapolated: from one epoch of all heads, and from some
steps of one head. The weights are the same (tests/explanation/test_heads.py).
"""

import resource
import time
from collections.abc import Iterator

import torch
from torch.nn.functional import cross_entropy

from benchmarks.timing import median_seconds
from everycause.explanation.exact_filters import necessary
from everycause.explanation.heads import PENALTY, HeadParams, LastLayer, train_heads

CLASSES, FILTERS, IMAGES, EPOCHS, BATCH = 200, 512, 6000, 10, 16
STEPS = 200
"""Of the sequential training, for each timing."""


def measures() -> Iterator[tuple[str, float]]:
    """Minutes for all heads, how much faster that is, and the memory."""
    torch.set_num_threads(2)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(IMAGES) % CLASSES
    prototypes = torch.randn(CLASSES, FILTERS, generator=generator).relu() * 1.5
    activations = (
        prototypes[labels] * torch.rand(IMAGES, FILTERS, generator=generator)
        + 0.5 * torch.randn(IMAGES, FILTERS, generator=generator)
    ).relu()
    head = LastLayer((prototypes - prototypes.mean(dim=0)) / FILTERS**0.5, torch.zeros(CLASSES)).to(device)
    activations, labels = activations.to(device), labels.to(device)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    together = (
        median_seconds(lambda: train_heads(activations, labels, head, params(1), 0).weight.sum().item(), 3) * EPOCHS
    )
    peak = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 2**20
    steps = IMAGES // BATCH * EPOCHS
    best = float("inf")
    for threads in (1, 2):  # small products are not always faster on two
        torch.set_num_threads(threads)
        best = min(best, median_seconds(lambda: one_head(activations, head), 5) / STEPS)
    torch.set_num_threads(2)
    yield "filters.heads_minutes", together / 60
    yield "filters.heads_speedup", CLASSES * steps * best / together
    yield "filters.heads_peak_gib", peak
    start = time.perf_counter()
    necessary(activations[:640].cpu(), labels[:640].cpu(), head.to("cpu"))
    yield "filters.oracle_ms_per_image", (time.perf_counter() - start) / 640 * 1e3


def params(epochs: int) -> HeadParams:
    """The paper's, for some epochs."""
    return HeadParams(sparsity=2.0, learning_rate=1e-3, epochs=epochs, batch_size=BATCH)


def one_head(activations: torch.Tensor, head: LastLayer) -> None:
    """Some steps of one head, as one would write them."""
    bound = FILTERS**-0.5
    weight = torch.empty(FILTERS, FILTERS, device=activations.device).uniform_(-bound, bound).requires_grad_()
    bias = torch.zeros(FILTERS, device=activations.device, requires_grad=True)
    optimizer = torch.optim.SGD([weight, bias], lr=1e-3, momentum=0.9)
    target = torch.zeros(BATCH, dtype=torch.int64, device=activations.device)
    for index in torch.randperm(IMAGES, device=activations.device)[: STEPS * BATCH].split(BATCH):
        own = activations[index]
        gate = torch.sigmoid(own @ weight.T + bias)
        mask = gate * (gate > 0.5)
        logits = (own * mask) @ head.weight.T + head.bias
        loss = cross_entropy(logits, target) + 2.0 * PENALTY * mask.sum() - PENALTY * logits[:, 0].sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    if activations.is_cuda:
        torch.cuda.synchronize()
