"""What the search would cost on ImageNet-1k: measured forward passes per image over the measured rate of ResNet-50."""

from collections.abc import Iterator
from pathlib import Path

import torch

from benchmarks.bench_masks import CELLS, LARGEST, found_by
from benchmarks.subject import subject, task_of
from benchmarks.timing import median_seconds
from everycause.data.images import Statistics
from everycause.explanation.regions import MaskedImages
from everycause.explanation.scoring import GRADIENT, Scorer
from everycause.models import Classifier, ModelParams

IMAGENET, SIZE, BATCH = 1_281_167, 224, {"cpu": 16, "cuda": 512}
OUT = Path(__file__).parents[1] / "reports" / "benchmarks" / "cost.md"


def rates(device: str) -> tuple[float, float]:
    """Masked candidates per second of a ResNet-50 (untrained is as fast), and images of the bare model."""
    params = ModelParams(
        name="resnet50",
        pretrained=False,
        weights="cache",
        explained_layer="layer4",
        head="published",
        dropout=0.0,
    )
    classifier = (
        Classifier(params, tuple(map(str, range(1000))), SIZE, Statistics((0.5,) * 3, (0.2,) * 3))
        .to(device, memory_format=torch.channels_last)
        .eval()
    )
    batch = BATCH[device]
    scorer = Scorer(classifier.network, batch, fast=True, precision="bfloat16" if device == "cuda" else "float32")
    images = torch.randn(batch, 3, SIZE, SIZE, device=device).contiguous(memory_format=torch.channels_last)
    partition = (torch.arange(SIZE) * CELLS // SIZE)[:, None] * CELLS + (torch.arange(SIZE) * CELLS // SIZE)[None]
    masking = MaskedImages(images, partition[None].to(device), CELLS**2, shared=True)
    owner, kept = torch.arange(batch, device=device), torch.ones(batch, CELLS**2, dtype=torch.bool, device=device)

    def bare() -> None:
        with torch.inference_mode(), torch.autocast(device, torch.bfloat16, enabled=device == "cuda"):
            scorer.network(images).sum().item()

    return batch / median_seconds(lambda: scorer.logits(masking, owner, kept).sum().item(), 5), batch / median_seconds(
        bare, 5
    )


def measures() -> Iterator[tuple[str, float]]:
    """The rate, and days for the whole training set."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = subject()
    task = task_of(model, CELLS, 320)
    passes = {
        method: float(found_by(model, task, method).forwards.double().mean()) + 2 for method in ("fast", "greedy")
    }
    rate, bare = rates(device)
    name = torch.cuda.get_device_name() if device == "cuda" else f"{torch.get_num_threads()} CPU cores"
    days = {method: IMAGENET * count / rate / 86400 for method, count in passes.items()}
    total = ", ".join(f"{IMAGENET * passes[method]:.3g} ({method})" for method in ("fast", "greedy"))
    precision = "bfloat16" if device == "cuda" else "float32"
    OUT.parent.mkdir(parents=True, exist_ok=True)
    OUT.write_text(
        f"""# What the search would cost on ImageNet-1k

Made by `make bench`. Images × forward passes per image ÷ candidates per second; a gradient counts as {GRADIENT} passes.

| | |
| --- | --- |
| images | {IMAGENET:,}, all of them searched (the correct and confident ones are fewer) |
| regions, largest set | {CELLS**2}, {LARGEST} |
| forward passes per image | {passes["fast"]:.0f} (fast), {passes["greedy"]:.0f} (greedy, as published) |
| measured on | {name}, ResNet-50 at {SIZE} pixels, {precision}, batches of {BATCH[device]} |
| candidates per second | {rate:.0f} (the bare model: {bare:.0f} images per second) |
| the whole training set | {days["fast"]:.1f} days (fast), {days["greedy"]:.1f} days (greedy) |

The number of passes was measured on Codebirds with the embedded model, not on ImageNet: a model that needs more regions
to flip costs more. On another device, divide by its own rate: forward passes {total}.
{"" if device == "cuda" else "No GPU was at hand, so no GPU time is given."}
""".rstrip()
        + "\n"
    )
    yield "cost.candidates_per_second_resnet50", rate
    yield "cost.utilization_resnet50", rate / bare
    yield "cost.imagenet_days_fast", days["fast"]
    yield "cost.imagenet_days_greedy", days["greedy"]
