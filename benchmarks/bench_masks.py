"""The region search on the trained base: its cost, its distance from the smallest sets, its speed, other budgets."""

import json
import time
from collections.abc import Iterator
from pathlib import Path

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import torch

from benchmarks.subject import Subject, subject, task_of
from benchmarks.timing import median_seconds
from everycause.evaluation.faithfulness import minimum_sizes
from everycause.explanation.regions import as_sets
from everycause.explanation.scoring import Scorer
from everycause.explanation.search import CAREFUL, FAST, Budget, Method, SearchInputs, SearchResult, search

IMAGES, EXACT_IMAGES, PLAIN_IMAGES, TIMED_IMAGES = 320, 40, 3, 512
CELLS, LARGEST = 7, 12
FRONT = {
    "gradient only": FAST._replace(tried=1, trust=0.0, swaps=0),
    "tried 2": FAST._replace(tried=2, swaps=0),
    "no swaps": FAST._replace(swaps=0),
    "default": FAST,
    "tried 6": FAST._replace(tried=6),
    "2 swaps": FAST._replace(swaps=2),
    "4 swaps": FAST._replace(swaps=4),
    "tried 8, 4 swaps": FAST._replace(tried=8, swaps=4),
    "careful, 4 swaps": CAREFUL._replace(swaps=4),
}
"""Budgets, from the cheapest on."""
GROWTH = (4, 5, 7, 10, 14)
"""Cells along a side."""
OUT = Path(__file__).parents[1] / "reports" / "benchmarks"


def scorers(model: Subject, batch: int = 64) -> tuple[Scorer, Scorer]:
    """The accelerated scorer and the exact one."""
    return Scorer(model.classifier.network, batch, fast=True), Scorer(model.classifier.network, batch)


def found_by(
    model: Subject, task: SearchInputs, method: Method, largest: int = LARGEST, budget: Budget = FAST
) -> SearchResult:
    """One search."""
    return search(task, *scorers(model), "deletion", largest, method, budget)


def sizes_of(found: SearchResult) -> torch.Tensor:
    """Regions in each set."""
    return (found.order >= 0).sum(dim=1).double()


def compared(found: SearchResult, reference: SearchResult) -> dict[str, float]:
    """A search against another: sizes on the images that both flip."""
    both = found.flipped & reference.flipped
    return {
        "forward_ratio": float(found.forwards.double().mean() / reference.forwards.double().mean()),
        "size_ratio": float(sizes_of(found)[both].mean() / sizes_of(reference)[both].mean()),
        "flip_rate_difference": float(found.flipped.double().mean() - reference.flipped.double().mean()),
        "forwards": float(found.forwards.double().mean()),
        "flip_rate": float(found.flipped.double().mean()),
    }


def irreducible_share(model: Subject, task: SearchInputs, found: SearchResult) -> float:
    """Share of the flipped sets of which no region can be returned without losing the flip of the stored model."""
    sets = as_sets(found.order, task.masking.regions) & found.flipped[:, None]
    owner, region = sets.nonzero(as_tuple=True)
    logits = scorers(model)[1].logits(task.masking, owner, ~sets[owner].scatter(1, region[:, None], False))
    returnable = torch.bincount(
        owner, weights=(logits.argmax(dim=1) != task.labels[owner]).double(), minlength=len(sets)
    )
    return float((returnable[found.flipped] == 0).double().mean())


def plain_search(model: Subject, task: SearchInputs, rows: range) -> None:
    """Exhaustive greedy, one image and one candidate at a time, composed on the host, as published scripts do it."""
    partition, device = task.masking.partition[0].cpu(), model.classifier.device
    for row in rows:
        image, label = task.masking.images[row].cpu().numpy(), int(task.labels[row])
        chosen: list[int] = []
        while len(chosen) < LARGEST:
            scores = {}
            for region in range(task.masking.regions):
                if region not in chosen:
                    masked_images = image.copy()
                    for removed in [*chosen, region]:
                        masked_images[:, (partition == removed).numpy()] = 0
                    probabilities = model.classifier(torch.from_numpy(masked_images)[None].to(device)).softmax(dim=1)[0]
                    scores[region] = (float(probabilities[label]), int(probabilities.argmax()))
            chosen.append(min(scores, key=scores.__getitem__))
            if scores[chosen[-1]][1] != label:
                break


def timed(model: Subject, task: SearchInputs, method: Method) -> tuple[float, SearchResult]:
    """Median seconds of a search, and its result."""
    results = []
    return median_seconds(lambda: results.append(found_by(model, task, method)), 3), results[-1]


def speeds(model: Subject) -> Iterator[tuple[str, float]]:
    """Throughput, speed-up and linearity."""
    task = task_of(model, CELLS, TIMED_IMAGES)
    fast, _ = scorers(model)
    batch = task.masking.images[:64].contiguous(memory_format=torch.channels_last)
    with torch.inference_mode():
        forward = min(
            median_seconds(lambda: fast.network(batch), 15), median_seconds(lambda: model.classifier(batch), 15)
        ) / len(batch)
    generator = torch.Generator().manual_seed(0)
    owner = torch.randint(len(task.labels), (4096,), generator=generator).to(task.labels.device)
    kept = (torch.rand(4096, CELLS**2, generator=generator) < 0.9).to(task.labels.device)
    yield "masks.utilization", forward * len(owner) / median_seconds(lambda: fast.logits(task.masking, owner, kept), 5)
    exhaustive, found = timed(model, task, "greedy")
    yield "masks.utilization_exhaustive", float(found.forwards.sum()) * forward / exhaustive
    seconds, found = timed(model, task, "fast")
    yield "masks.utilization_fast", float(found.forwards.sum()) * forward / seconds
    with torch.inference_mode():
        plain = median_seconds(lambda: plain_search(model, task, range(PLAIN_IMAGES)), 1) / PLAIN_IMAGES
    some = SearchInputs(task.masking.rows(torch.arange(PLAIN_IMAGES)), *(value[:PLAIN_IMAGES] for value in task[1:]))
    weight = float(
        found_by(model, some, "greedy").forwards.double().mean()
        / found_by(model, task, "greedy").forwards.double().mean()
    )
    yield "masks.speedup", plain / weight / (seconds / len(task.labels))
    yield "masks.speedup_of_batching", plain / weight / (exhaustive / len(task.labels))
    yield "masks.images_per_second", len(task.labels) / seconds
    half = SearchInputs(
        task.masking.rows(torch.arange(TIMED_IMAGES // 2)), *(value[: TIMED_IMAGES // 2] for value in task[1:])
    )
    yield "masks.time_of_twice_the_images", seconds / timed(model, half, "fast")[0]
    yield "masks.bare_images_per_second", 1 / forward


def measures() -> Iterator[tuple[str, float]]:
    """Everything about the search."""
    model = subject()
    task = task_of(model, CELLS, IMAGES)
    greedy = found_by(model, task, "greedy")
    front = {
        "greedy (as published)": compared(greedy, greedy),
        "exhaustive, pruned": compared(found_by(model, task, "exhaustive"), greedy),
    }
    for name, budget in FRONT.items():
        found = found_by(model, task, "fast", budget=budget)
        front[name] = compared(found, greedy)
        if name == "default":
            yield from (
                (f"masks.{measure}", value)
                for measure, value in front[name].items()
                if measure not in ("forwards", "flip_rate")
            )
            yield "masks.irreducible_share", irreducible_share(model, task, found)
    coarse = task_of(model, 4, EXACT_IMAGES)
    least, small = minimum_sizes(coarse, scorers(model)[1], 4), found_by(model, coarse, "fast", 4)
    both = small.flipped & (least > 0)
    yield "masks.optimality_ratio", float(sizes_of(small)[both].sum() / least[both].sum())
    yield from speeds(model)
    growth = {}
    for cells in GROWTH:
        grown = task_of(model, cells, 64)
        for method in ("greedy", "fast"):
            start = time.perf_counter()
            found = found_by(model, grown, method, max(1, min(LARGEST, cells**2 // 4)))
            spent = (time.perf_counter() - start) / len(grown.labels)
            growth[f"{method}/{cells**2}"] = {
                "forwards": float(found.forwards.double().mean()),
                "milliseconds": 1000 * spent,
            }
    yield from ((f"masks.growth/{name}", value["forwards"]) for name, value in growth.items())
    draw(front, growth)


def draw(front: dict[str, dict[str, float]], growth: dict[str, dict[str, float]]) -> None:
    """Draw all budgets, and how the cost grows with the number of regions."""
    OUT.mkdir(parents=True, exist_ok=True)
    (OUT / "masks.json").write_text(json.dumps({"front": front, "growth": growth}, indent=2) + "\n")
    figure, axes = plt.subplots(1, 3, figsize=(15, 4))
    for axis, measure, title in zip(
        axes,
        ("size_ratio", "flip_rate_difference"),
        ("set size over greedy's", "flip rate minus greedy's"),
        strict=False,
    ):
        for number, (name, values) in enumerate(front.items()):
            axis.plot(
                values["forward_ratio"],
                values[measure],
                "o",
                color="#222222" if "greedy" in name or "exhaustive" in name else "#0072b2",
            )
            if measure == "size_ratio":  # the other panel has the same places along its axis
                axis.annotate(
                    name,
                    (values["forward_ratio"], values[measure]),
                    fontsize=7,
                    xytext=(5, 4 if number % 2 or number == len(front) - 1 else -9),
                    textcoords="offset points",
                )
        axis.axvline(0.2, color="#3a9d23", linestyle="--", linewidth=1)
        axis.axhline(1.02 if measure == "size_ratio" else 0.0, color="#3a9d23", linestyle="--", linewidth=1)
        axis.set(xlabel="forward passes over greedy's (dashed: the aims)", title=title, xlim=(0.1, 1.35))
    for method, shade in (("greedy", "#222222"), ("fast", "#0072b2")):
        axes[2].plot(
            [cells**2 for cells in GROWTH],
            [growth[f"{method}/{cells**2}"]["forwards"] for cells in GROWTH],
            "o-",
            color=shade,
            label=method,
        )
    axes[2].set(
        yscale="log",
        xlabel="regions, N",
        title="forward passes per image",
        xticks=[cells**2 for cells in GROWTH if cells != 5],
    )
    axes[2].legend(frameon=False)
    figure.savefig(OUT / "masks.png", dpi=110, bbox_inches="tight", metadata={"Software": None, "Creation Time": None})
    plt.close(figure)
