"""Rankings of the regions of photographs, judged with several baselines, and searches compared with each other.

A selector that tries regions out sees them replaced by one baseline, say the mean color. Judged by that baseline alone
it is judged by its own measure. So each selector gives one order of the regions, and this order is judged by every
baseline: how many of its first regions must go until the prediction flips, and the areas under p(y) while regions are
deleted, or inserted into the empty image.

Papers: insertion and deletion, Petsiuk et al., BMVC 2018; LIMA, arXiv 2504.00470.
"""

import time
from typing import NamedTuple

import pandas as pd
import torch
from torch import Tensor

from everycause.data.split import Split
from everycause.explanation.attributions import ATTRIBUTIONS
from everycause.explanation.masks import MaskParams
from everycause.explanation.objectives import ObjectiveName, log_odds, runner_up
from everycause.explanation.regions import BaselineName, MaskedImages, is_shared, masked_images, partitions
from everycause.explanation.scoring import Scorer
from everycause.explanation.search import Method, SearchInputs, search
from everycause.explanation.selectors import SELECTORS, Ranking, Request, area_under, leading
from everycause.models import Classifier
from everycause.shapes import Bool, Float, Int64

BASELINES: tuple[BaselineName, ...] = ("mean", "blur")
"""What the rankings are judged with."""


class SearchKind(NamedTuple):
    """One way to search."""

    method: Method
    objective: ObjectiveName
    as_published: bool
    """One photograph at a time, by the network as it is stored; else many together, by the accelerated copy."""


SEARCHES = {
    "fast": SearchKind("fast", "deletion", False),
    "greedy": SearchKind("greedy", "deletion", False),
    "published": SearchKind("greedy", "counterfactual", True),
}
"""Ours; greedy search of our objective by our engine; greedy search as its authors run it: the four terms of their
code, two forward passes for each candidate, the candidates of one photograph in a batch."""
STRIDE = 4
"""Beyond the largest set, p(y) is asked after every fourth region: half the passes. On three
photographs areas differed by at most 0.03 (and by 0.02 between bfloat16 and float32)."""


class Judgment(NamedTuple):
    """What one baseline says of the orders of some photographs."""

    flipped: Bool[Tensor, "images"]
    """Whether the removal of at most as many regions as a set may have changes the prediction."""
    sizes: Int64[Tensor, "images"]
    """How many regions that takes; the largest size where none does."""
    insertion: Float[Tensor, "images"]
    """Area under p(y) over the share of the image that is inserted, from 0 to 1."""
    deletion: Float[Tensor, "images"]
    """The same over the share that is deleted."""


def ranking(selector: str, request: Request) -> Ranking:
    """The order of a selector of the product or of Captum; `forwards` are those of the order's front alone.

    The counterfactual search ends at the flip: behind its set the regions follow in the order of the search carried on.
    """
    if selector in ATTRIBUTIONS:
        return ATTRIBUTIONS[selector](request)
    if selector != "counterfactual":
        return SELECTORS[selector](request)
    found = search(request.task, request.scorer, request.exact, "deletion", request.leading, "fast")
    rest, _ = leading(request.task, request.scorer, request.exact, "deletion", request.leading)
    return Ranking(set_first(found.order, rest), None, found.forwards)


def set_first(
    order: Int64[Tensor, "images steps"], rest: Int64[Tensor, "images regions"]
) -> Int64[Tensor, "images regions"]:
    """The regions of a set in their order (−1 after its end), then all others in the order of a second ranking."""
    images, regions = rest.shape
    place = torch.cat([rest.argsort(dim=1), torch.zeros(images, 1, dtype=torch.int64, device=rest.device)], dim=1)
    front = torch.arange(order.shape[1], device=rest.device) - order.shape[1]
    return place.scatter(1, order % (regions + 1), front.expand(images, -1))[:, :-1].argsort(dim=1, stable=True)


def judged(
    scorer: Scorer,
    masking: MaskedImages,
    labels: Int64[Tensor, "images"],
    order: Int64[Tensor, "images regions"],
    largest: int,
    stride: int = STRIDE,
) -> Judgment:
    """Judge the orders of photographs with the baseline of `masking`.

    Args:
        scorer: The network.
        masking: The photographs; its baseline is what removed regions show.
        labels: The predicted classes.
        order: All regions of each photograph, the first to be removed first.
        largest: The most regions of a set.
        stride: After how many regions p(y) is asked again, beyond the largest set.
    """
    counts = steps(order.shape[1], largest, stride).to(order.device)
    areas = {}
    for way in ("insertion", "deletion"):
        logits, share = logits_along(scorer, masking, order, counts, way == "insertion")
        own = logits.softmax(dim=2).gather(2, labels[:, None, None].expand(-1, len(counts), 1))[:, :, 0]
        areas[way] = area_under(own, share).cpu()
    flips = logits[:, 1 : largest + 1].argmax(dim=2) != labels[:, None]  # the deletion's: the loop ends with it
    flipped = flips.any(dim=1)
    sizes = torch.where(flipped, flips.int().argmax(dim=1) + 1, largest)
    return Judgment(flipped.cpu(), sizes.cpu(), areas["insertion"], areas["deletion"])


def steps(regions: int, largest: int, stride: int) -> Int64[Tensor, "steps"]:
    """After how many regions p(y) is asked: each number up to the largest set, every stride-th after it, and all."""
    return torch.tensor(sorted({*range(largest + 1), *range(largest, regions, stride), regions}))


def logits_along(
    scorer: Scorer,
    masking: MaskedImages,
    order: Int64[Tensor, "images regions"],
    counts: Int64[Tensor, "steps"],
    insertion: bool,
) -> tuple[Float[Tensor, "images steps classes"], Float[Tensor, "images steps"]]:
    """Logits after some numbers of removals (or insertions into the empty image), and the share of the area moved."""
    moved = (order.argsort(dim=1)[:, None] < counts[:, None]) & masking.exists[:, None]
    owner = torch.arange(len(order), device=order.device).repeat_interleave(len(counts))
    logits = scorer.logits(masking, owner, (moved if insertion else ~moved).flatten(0, 1))
    return logits.unflatten(0, (len(order), len(counts))), (moved * masking.areas[:, None]).sum(dim=2)


class Bench:
    """One network and its photographs: rankings and searches measured on some of them, a line for each.

    Args:
        classifier: The network.
        split: The photographs.
        masks: How to search; `baseline` is what the selectors see.
    """

    def __init__(self, classifier: Classifier, split: Split, masks: MaskParams) -> None:
        self.classifier, self.split, self.masks = classifier, split, masks
        # on a CPU the seconds that it worked for this process: other work on the machine does not count
        self.clock = time.process_time if classifier.device.type == "cpu" else time.perf_counter
        # passes that are filled up to batch_size pay for hundreds of images, and these are ten
        network, batch = classifier.network, masks.batch_size
        self.scorer = Scorer(
            network, batch, fast=True, precision=masks.precision, compiled=masks.compiled, padded=False
        )
        self.exact = Scorer(network, batch, padded=False)

    def request(self, index: Int64[Tensor, "images"], baseline: BaselineName) -> Request:
        """Some photographs, whose removed regions show a baseline, to be ranked."""
        images, device, regions = self.split.read(index.numpy()), self.classifier.device, self.masks.regions
        partition, shared = partitions(self.masks.partition, images, regions), is_shared(self.masks.partition)
        statistics = self.classifier.statistics
        masking = masked_images(images, statistics, device, partition, regions, baseline, shared)
        labels, everyone = self.split.labels[index].to(device), torch.arange(len(index), device=device)
        whole = self.exact.logits(masking, everyone, torch.ones_like(masking.exists))
        task = SearchInputs(masking, labels, runner_up(whole, labels), log_odds(whole, labels))
        largest, objective = self.masks.largest_set, self.masks.objective
        return Request(
            task, self.scorer, self.exact, self.classifier, index, largest, objective, None, self.split, self.masks.fido
        )

    def rankings(self, index: Int64[Tensor, "images"], selector: str) -> pd.DataFrame:
        """The order of one selector for some photographs, judged with every baseline.

        Raises:
            UserError: the selector needs what is not there.
        """
        request, found = self.request(index, self.masks.baseline), []
        started = self.clock()
        ranked = ranking(selector, request)
        forwards = ranked.forwards.cpu().numpy()  # the copy waits for a GPU: the clock stops when it has finished
        seconds = (self.clock() - started) / len(index)
        for baseline in BASELINES:
            masking, labels = self.request(index, baseline).task[:2]
            verdict = judged(self.scorer, masking, labels, ranked.order, request.leading)
            columns = {name: value.numpy() for name, value in verdict._asdict().items()}
            head = {"photograph": index.numpy(), "selector": selector, "baseline": baseline}
            found.append(pd.DataFrame(head | columns | {"forwards": forwards, "seconds": seconds}))
        return pd.concat(found)

    def search(self, index: Int64[Tensor, "images"], name: str) -> pd.DataFrame:
        """What one of SEARCHES finds on some photographs, and what it costs."""
        method, objective, as_published = SEARCHES[name]
        scorer = self.exact if as_published else self.scorer
        found = []
        for rows in index.split(1 if as_published else len(index)):
            request = self.request(rows, self.masks.baseline)
            started = self.clock()
            result = search(request.task, scorer, self.exact, objective, request.leading, method)
            forwards = result.forwards.cpu().numpy()
            seconds = (self.clock() - started) / len(rows)
            sizes, flipped = (result.order >= 0).sum(dim=1).cpu().numpy(), result.flipped.cpu().numpy()
            columns = {"flipped": flipped, "sizes": sizes, "forwards": forwards, "seconds": seconds}
            found.append(pd.DataFrame({"photograph": rows.numpy(), "search": name} | columns))
        return pd.concat(found)
