"""Three questions that arXiv 2501.11087 leaves open, as experiments on Codebirds.

fidelity     do the filters of a better base explain it better?
overfitting  are global filters worse where the base has few training images, and do filters counted on held-out images
             help?
classes      which classes does debugging with filters harm, and does it help to leave these out?

Half of the validation images serve as held-out images: filters are counted and classes chosen on them. Completeness and
recalls are measured on the other half, with every set of parts removed in turn, in scenes that are independent of the
class; `fidelity` is of all validation images. No test image is used.
"""

from collections.abc import Iterator
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import one_hot

from everycause.data.erasures import ValidationErasures
from everycause.data.sources import DataParams, open_split
from everycause.evaluation.completeness import completeness_score, profile
from everycause.explanation.filters import FilterBank, accumulate, filter_quality
from everycause.explanation.heads import LastLayer
from everycause.inference import logits_of, logits_of_images, readout_of
from everycause.models import Classifier, Readout, load, model_fingerprint
from everycause.networks import folded
from everycause.shapes import Bool, Float, Int64
from everycause.training.counterfactuals import Recipe, Upstream
from everycause.training.loss import accuracy
from everycause.training.rows import retrain
from everycause.tuning.upstream import TrialParams, UpstreamCache

COLUMNS = ["question", "setting", "row", "seed", "measure", "value"]


class Finding(NamedTuple):
    """One number."""

    question: str
    """`fidelity`, `overfitting` or `classes`."""
    setting: str
    """Epochs of the base, or number of training images."""
    row: str
    seed: int
    measure: str
    value: float


class Bench(NamedTuple):
    """Where the experiments run."""

    cache: UpstreamCache
    """Makes and keeps bases."""
    data: DataParams
    params: TrialParams
    erasures: ValidationErasures
    threads: int


def bench(
    cache: UpstreamCache, data: DataParams, params: TrialParams, threads: int, images: int | None = None
) -> Bench:
    """A bench; with `images`, one whose training split has only so many.

    Its base takes as many steps. Retraining keeps its number of epochs, so that fewer images also mean fewer steps.
    """
    if images is not None and images != data.section.train:
        section = data.section.model_dump() | {"train": images}
        longer = params.training.epochs * data.section.train // images
        params = params.model_copy(update={"training": params.training.model_copy(update={"epochs": longer})})
        data = DataParams(source="codebirds", root=data.root, memory_mib=data.memory_mib, codebirds=section)
        train = open_split(data, "train", threads)
        cache = UpstreamCache(cache.artifacts, cache.kept, params, train, cache.validation, cache.device)
    return Bench(cache, data, params, ValidationErasures(data, threads), threads)


def fidelity(on: Bench, epochs: list[int], seed: int) -> Iterator[Finding]:
    """How well the filters of an image explain bases of so many epochs: keep and flip rate, beside random filters.

    All correct validation images count, however confident: a threshold would choose other images for each base.
    """
    validation = on.cache.validation
    for count in epochs:
        training = on.params.training.model_copy(update={"epochs": count})
        base = on.cache.base(on.params.model_copy(update={"training": training}), seed)
        classifier = load(base, on.cache.device)
        local, head = on.cache.bank(base, on.params.filters, seed).local, LastLayer(*classifier.head()).to("cpu")
        seen = readout_of(classifier, validation)
        measures = filter_quality(local, head, seen, validation.labels, 0.0, seed)
        measures["accuracy"] = accuracy(seen.logits, validation.labels)
        for name, value in measures.items():
            yield Finding("fidelity", str(count), "base", seed, name, value)


def overfitting(on: Bench, seed: int) -> Iterator[Finding]:
    """Debugging with filters counted on training images and on held-out images, beside continued training."""
    setting, train, params = str(len(on.cache.train)), on.cache.train, on.params.filters
    base = on.cache.base(on.params, seed)
    classifier, bank = load(base, on.cache.device), on.cache.bank(base, params, seed)
    banks = {"filters": bank, "filters_held_out": counted_on_held_out(on, classifier, bank)}
    sets = {row: bank.global_filters(params.frequency_threshold) for row, bank in banks.items()}
    both, either = ((sets["filters"] & sets["filters_held_out"]), (sets["filters"] | sets["filters_held_out"]))
    told = {
        "accuracy/train": accuracy(logits_of(classifier, train), train.labels),
        "completeness": completeness(measured(on, classifier), on),
        "filters_in_common": float((both.sum(dim=1) / either.sum(dim=1).clamp_min(1)).mean()),
        **{f"filters_per_class/{row}": float(chosen.sum(dim=1).double().mean()) for row, chosen in sets.items()},
    }
    for name, value in told.items():
        yield Finding("overfitting", setting, "base", seed, name, value)
    for row, bank in {"continued": banks["filters"], **banks}.items():
        made = retrained(on, row if row == "continued" else "filters", bank, seed)
        yield Finding("overfitting", setting, row, seed, "completeness", completeness(measured(on, made), on))


def classes(on: Bench, seed: int) -> Iterator[Finding]:
    """How many classes debugging harms, and whether it helps to leave those out that lost on held-out images."""
    setting = str(len(on.cache.train))
    bank = on.cache.bank(on.cache.base(on.params, seed), on.params.filters, seed)
    continued, filters = (retrained(on, row, bank, seed) for row in ("continued", "filters"))
    lost = recalls(measured(on, filters, held_out=True), on) < recalls(measured(on, continued, held_out=True), on)
    some = replace(bank, histogram=bank.histogram * ~lost[:, None])
    before = measured(on, continued)
    yield Finding("classes", setting, "continued", seed, "completeness", completeness(before, on))
    yield Finding("classes", setting, "filters_some_classes", seed, "classes_left_out", float(lost.double().mean()))
    for row, made in {"filters": filters, "filters_some_classes": retrained(on, "filters", some, seed)}.items():
        after = measured(on, made)
        change = recalls(after, on) - recalls(before, on)
        yield Finding("classes", setting, row, seed, "completeness", completeness(after, on))
        yield Finding("classes", setting, row, seed, "classes_that_lose", float((change < 0).double().mean()))
        yield Finding("classes", setting, row, seed, "worst_change", float(change.min()))


def counted_on_held_out(on: Bench, classifier: Classifier, bank: FilterBank) -> FilterBank:
    """The filters that the heads of a bank find in the held-out images."""
    validation = on.cache.validation
    rows = half(validation.labels, validation.num_classes, held_out=True)
    seen = Readout(*(part[rows] for part in readout_of(classifier, validation)))
    head, threshold = LastLayer(*classifier.head()).to("cpu"), on.params.filters.confidence_threshold
    return accumulate(bank.local, head, seen, validation.labels[rows], threshold, bank.model)


def retrained(on: Bench, row: str, bank: FilterBank, seed: int) -> Classifier:
    """The base retrained as a row, with these filters."""
    base, params = on.cache.base(on.params, seed), on.params
    upstream = Upstream(
        base=load(base, on.cache.device),
        model=model_fingerprint(base),
        train=on.cache.train,
        validation=on.cache.validation,
        open_masks=lambda: on.cache.masks(base, params, seed),
        open_filters=lambda: bank,
        watch_filters=False,
    )
    recipe = Recipe(
        on.data, params.masks, params.background, params.exchange, params.loss,
        params.filters.frequency_threshold, on.threads,
    )  # fmt: skip
    for _ in retrain(row, upstream, recipe, params.retraining, params.rounds, seed):
        pass
    return upstream.base


class Answers(NamedTuple):
    """What a classifier gets right on one half of the validation images."""

    labels: Int64[Tensor, "images"]
    right: dict[tuple[int, ...], Bool[Tensor, "images"]]
    """By the set of erased parts."""


def measured(on: Bench, classifier: Classifier, held_out: bool = False) -> Answers:
    """What a classifier gets right on the measured half of the validation images, or on the held-out one."""
    labels, classes = on.cache.validation.labels, on.erasures.code.num_classes
    rows, network = half(labels, classes, held_out), folded(classifier.network)
    right = {
        parts: logits_of_images(classifier, images[rows], network).argmax(dim=1) == labels[rows]
        for parts, images, _ in on.erasures
    }
    return Answers(labels[rows], right)


def half(labels: Int64[Tensor, "images"], classes: int, held_out: bool) -> Int64[Tensor, "rows"]:
    """Every other image of each class, in the order of the split."""
    rank = one_hot(labels, classes).cumsum(dim=0).gather(1, labels[:, None])[:, 0]
    return (rank % 2 == int(not held_out)).nonzero()[:, 0]


def completeness(answers: Answers, on: Bench) -> float:
    """The completeness score."""
    code = on.erasures.code
    accuracies = {parts: float(right.double().mean()) for parts, right in answers.right.items()}
    return completeness_score(profile(accuracies, code), code.num_classes)


def recalls(answers: Answers, on: Bench) -> Float[Tensor, "classes"]:
    """The mean accuracy of each class over all erasures that leave it decidable."""
    code = on.erasures.code
    decidable = [right for parts, right in answers.right.items() if len(parts) <= code.length - code.dimension]
    member = one_hot(answers.labels, code.num_classes).float()
    return torch.stack(decidable).float().mean(dim=0) @ member / member.sum(dim=0)
