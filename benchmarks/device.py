"""Everything that needs a GPU, in one script: what is correct there, how fast it is, what memory it takes.

    python -m benchmarks.device                          # a GPU, under eight minutes
    python -m benchmarks.device --device cpu --small     # the same code at tiny sizes, for the tests

It needs torch, torchvision, timm and the pure-Python part of requirements.txt, no network and no git, and writes one
JSON file. Rates count masked images (candidates) per second. The published search is the one that the papers' scripts
do: one image at a time, one masked image per forward pass, composed on the host.
"""

import argparse
import json
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import timm
import torch
import yaml

from everycause.data.corruptions import corrupted
from everycause.data.images import normalized
from everycause.data.sources import DataParams, open_split
from everycause.data.split import Split
from everycause.device import RunParams, device_name, start
from everycause.explanation.heads import HeadParams, LastLayer, train_heads
from everycause.explanation.masks import MaskParams, Masks, searched, select_images
from everycause.explanation.regions import MaskedImages, grid
from everycause.explanation.scoring import Scorer
from everycause.inference import logits_of, readout_of
from everycause.models import Classifier, ModelParams
from everycause.training.fit import BaseParams, train_base

ROOT = Path(__file__).parents[1]
OUT = ROOT / "reports" / "benchmarks" / "device.json"
CELLS, IMAGENET, PASSES = 7, 1_281_167, 50
"""Cells along a side, images of ImageNet-1k, forward passes of the fast search per image (from Codebirds)."""


class Sizes(NamedTuple):
    """How much is measured."""

    epochs: int
    searched: int
    side: int
    network: str
    batch: int
    repeats: int
    head_classes: int
    head_filters: int
    head_images: int


FULL = Sizes(20, 512, 224, "resnet50", 512, 8, 200, 512, 6000)
SMALL = Sizes(1, 8, 32, "test_resnet", 4, 1, 4, 8, 64)


def seconds(call: Callable[[], object], device: torch.device, repeats: int) -> float:
    """The median duration of a call after one warm-up; the device's queue is emptied before each reading."""

    def wait() -> None:
        if device.type == "cuda":
            torch.cuda.synchronize()

    call()
    durations = []
    for _ in range(repeats):
        wait()
        begin = time.perf_counter()
        call()
        wait()
        durations.append(time.perf_counter() - begin)
    return float(np.median(durations))


def peak_mib(device: torch.device) -> float:
    """The most memory of the device since the last reset, in MiB; 0 on a CPU."""
    return torch.cuda.max_memory_allocated() / 2**20 if device.type == "cuda" else 0.0


class Trained(NamedTuple):
    """A base that was trained on the device, and what it was trained on."""

    classifier: Classifier
    train: Split
    validation: Split
    losses: list[float]
    accuracy: float


def trained(raw: dict, device: torch.device, epochs: int) -> Trained:
    """The base of params.yaml, trained on a device."""
    data = DataParams(**raw["data"])
    train, validation = (open_split(data, name, raw["run"]["threads"]) for name in ("train", "validation"))
    params = BaseParams(**raw["training"]).model_copy(update={"epochs": epochs})
    start(RunParams(device=device.type, threads=raw["run"]["threads"], processes=1), 0)
    classifier, fitted = train_base(ModelParams(**raw["model"]), params, train, validation, 0, device)
    history = list(fitted)
    losses = [epoch.measures["train/loss"] for epoch in history]
    return Trained(classifier.eval(), train, validation, losses, history[-1].measures["validation/accuracy"])


def training_measures(raw: dict, device: torch.device, sizes: Sizes) -> Iterator[tuple[str, float]]:
    """Speed, determinism, and the loss curve beside that of the CPU."""
    begin = time.perf_counter()
    first = trained(raw, device, sizes.epochs)
    spent = time.perf_counter() - begin
    yield "training.images_per_second", sizes.epochs * len(first.train) / spent
    yield "training.validation_accuracy", first.accuracy
    yield "training.peak_mib", peak_mib(device)
    short = [trained(raw, device, 1) for _ in range(2)]
    weights = [one.classifier.state_dict() for one in short]
    same = all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])
    yield "training.two_runs_are_bitwise_equal", float(same)
    on_cpu = trained(raw, torch.device("cpu"), 1)
    yield "training.first_epoch_loss", short[0].losses[0]
    yield "training.first_epoch_loss_on_cpu", on_cpu.losses[0]


def search_measures(raw: dict, base: Trained, device: torch.device, sizes: Sizes) -> Iterator[tuple[str, float]]:
    """The sets that are found on the device against those of the CPU in float32, and the time that they take."""
    params = MaskParams(**raw["masks"]).model_copy(update={"images": sizes.searched, "batch_size": 4 * sizes.batch})
    on_cpu = Classifier(
        base.classifier.params, base.train.class_names, base.train.image_size, base.classifier.statistics
    )
    on_cpu.network.load_state_dict({name: value.cpu() for name, value in base.classifier.network.state_dict().items()})
    index = select_images(base.classifier, base.train, params.confidence, sizes.searched).index

    def found(classifier: Classifier, **changes: object) -> Masks:
        return Masks.joined(list(searched(classifier, base.train, index, params.model_copy(update=changes))))

    cpu, gpu = found(on_cpu.eval(), batch_size=64), found(base.classifier)
    yield "search.same_flips_as_cpu", float((cpu.flipped == gpu.flipped).double().mean())
    yield "search.same_sets_as_cpu", float((cpu.removed == gpu.removed).all(dim=1).double().mean())
    yield "search.size_over_cpu", float(gpu.sizes[gpu.flipped].double().mean() / cpu.sizes[cpu.flipped].double().mean())
    half = found(base.classifier, precision="bfloat16")
    yield "search.flip_rate_bfloat16", float(half.flipped.double().mean())
    yield "search.flip_rate", float(gpu.flipped.double().mean())
    spent = seconds(lambda: found(base.classifier), device, 1)
    yield "search.images_per_second_64", len(index) / spent


def rates(device: torch.device, sizes: Sizes) -> Iterator[tuple[str, float]]:
    """Candidates per second at photograph size, beside the bare network and the published search."""
    network = timm.create_model(sizes.network, num_classes=1000).to(device, memory_format=torch.channels_last).eval()
    side, batch = sizes.side, sizes.batch
    images = torch.randn(batch, 3, side, side, device=device).contiguous(memory_format=torch.channels_last)
    cells = min(CELLS, side)
    masking = MaskedImages(images, grid(side, cells)[None].to(device), cells**2, shared=True)
    owner = torch.arange(batch, device=device)
    kept = torch.rand(batch, cells**2, device=device) < 0.9
    for precision in ("float32", "bfloat16"):
        scorer = Scorer(network, batch, fast=True, precision=precision)

        def bare(scorer: Scorer = scorer, precision: str = precision) -> None:
            with torch.inference_mode(), torch.autocast(device.type, torch.bfloat16, enabled=precision == "bfloat16"):
                scorer.network(images).sum().item()

        spent = seconds(lambda scorer=scorer: scorer.logits(masking, owner, kept).sum().item(), device, sizes.repeats)
        yield f"rates.candidates_per_second_{precision}", batch / spent
        yield f"rates.utilization_{precision}", seconds(bare, device, sizes.repeats) / spent
    yield "rates.peak_mib", peak_mib(device)
    one = published_rate(network, images[0].cpu().numpy(), cells, device, 8 * sizes.repeats)
    yield "rates.published_candidates_per_second", one
    best = batch / spent
    yield "rates.speedup_over_published", best / one
    yield "rates.imagenet_hours", IMAGENET * PASSES / best / 3600


@torch.inference_mode()
def published_rate(network: torch.nn.Module, image: np.ndarray, cells: int, device: torch.device, count: int) -> float:
    """Masked images per second, one at a time, composed in numpy as the published scripts do."""
    partition = grid(image.shape[-1], cells).numpy()

    def one(region: int) -> None:
        masked = image.copy()
        masked[:, partition == region] = 0
        network(torch.from_numpy(masked)[None].to(device)).softmax(dim=1).argmax().item()

    return 1 / seconds(lambda: [one(number % cells**2) for number in range(count)], device, 3) * count


def other_measures(raw: dict, base: Trained, device: torch.device, sizes: Sizes) -> Iterator[tuple[str, float]]:
    """Filter heads, evaluation, corruptions."""
    generator = torch.Generator().manual_seed(0)
    activations = torch.randn(sizes.head_images, sizes.head_filters, generator=generator).relu().to(device)
    labels = (torch.arange(sizes.head_images) % sizes.head_classes).to(device)
    weight = torch.randn(sizes.head_classes, sizes.head_filters, generator=generator).to(device)
    last = LastLayer(weight / sizes.head_filters**0.5, torch.zeros(sizes.head_classes, device=device))
    heads = HeadParams(sparsity=2.0, learning_rate=1e-3, epochs=1, batch_size=16)
    spent = seconds(lambda: train_heads(activations, labels, last, heads, 0), device, 1)
    yield "filters.heads_minutes", 10 * spent / 60
    yield (
        "evaluation.images_per_second",
        len(base.train) / seconds(lambda: logits_of(base.classifier, base.train), device, sizes.repeats),
    )
    yield (
        "evaluation.readout_images_per_second",
        len(base.train) / seconds(lambda: readout_of(base.classifier, base.train), device, sizes.repeats),
    )
    noisy = corrupted(base.validation, "gaussian_noise", 3)
    begin = time.perf_counter()
    logits = logits_of(base.classifier, noisy)
    yield "corruptions.images_per_second", len(noisy) / (time.perf_counter() - begin)
    yield "corruptions.accuracy", float((logits.argmax(dim=1) == noisy.labels).double().mean())
    batch = base.train.read(np.arange(min(512, len(base.train))))
    spent = seconds(lambda: normalized(batch, base.classifier.statistics, device).sum().item(), device, sizes.repeats)
    yield "transfer.images_per_second", len(batch) / spent


def main() -> None:
    """Measure, print each figure when it is known, write them all."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--small", action="store_true", help="tiny sizes: the numbers mean nothing")
    parser.add_argument("--out", type=Path, default=OUT)
    chosen = parser.parse_args()
    raw = yaml.safe_load((ROOT / ("profiles/smoke.yaml" if chosen.small else "params.yaml")).read_text())
    sizes = SMALL if chosen.small else FULL
    device = start(RunParams(device=chosen.device, threads=raw["run"]["threads"], processes=1), 0)
    results: dict[str, float | str] = {"device": device_name(device), "torch": torch.__version__}
    base = trained(raw, device, sizes.epochs)
    for measures in (
        training_measures(raw, device, sizes),
        search_measures(raw, base, device, sizes),
        rates(device, sizes),
        other_measures(raw, base, device, sizes),
    ):
        for name, value in measures:
            results[name] = round(value, 4)
            sys.stdout.write(f"{name}: {value:.4g}\n")
            sys.stdout.flush()
    chosen.out.parent.mkdir(parents=True, exist_ok=True)
    chosen.out.write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()
