"""What trials start from: base classifiers, filter banks and masks, from the pipeline or made here and kept.

    model, training  →  base  →  heads (generator, heads)  →  bank (τ: counted again, a second)
                          └───→  masks

A trial that changes only loss weights finds everything that it needs. One that changes τ counts filters again. One that
changes how regions are searched searches once, and every later trial with the same settings finds the outcome,
whichever worker made it.
"""

from dataclasses import dataclass, field
from pathlib import Path

import torch
from filelock import FileLock

from everycause.artifacts import atomic_folder, code_fingerprint, fingerprint
from everycause.data.split import Split
from everycause.explanation.filters import FILE as FILTERS
from everycause.explanation.filters import FilterBank, FilterGenerator, FilterParams, accumulate, filter_generator
from everycause.explanation.heads import LastLayer
from everycause.explanation.masks import FILE as MASKS
from everycause.explanation.masks import MaskParams, Masks, generate
from everycause.inference import readout_of
from everycause.models import FILE, ModelParams, Readout, load, model_fingerprint
from everycause.params import Section
from everycause.training.background import BackgroundParams
from everycause.training.exchange import ExchangeParams
from everycause.training.fit import BaseParams, FitParams, train_base
from everycause.training.loss import LossParams
from everycause.training.rounds import RoundsParams

MOST_GENERATORS = 4
"""Trained heads kept in memory: those of all classes of a large data set take hundreds of MiB."""


class TrialParams(Section):
    """The sections that a trial may change. With other data, evaluation or machine trials could not be compared."""

    model: ModelParams
    training: BaseParams
    filters: FilterParams
    masks: MaskParams
    background: BackgroundParams
    exchange: ExchangeParams
    loss: LossParams
    retraining: FitParams
    rounds: RoundsParams


@dataclass(frozen=True)
class UpstreamCache:
    """Finds or makes what retraining starts from."""

    artifacts: Path
    """Artifacts of the pipeline, which are only read."""
    kept: Path
    """Folder of everything that had to be made."""
    present: TrialParams
    """The params that the pipeline's artifacts were made with."""
    train: Split
    validation: Split
    device: torch.device
    _read: dict[str, tuple[Readout, LastLayer]] = field(default_factory=dict)
    _local: dict[str, FilterGenerator] = field(default_factory=dict)

    def base(self, params: TrialParams, seed: int) -> Path:
        """The folder of the base classifier of a seed.

        Raises:
            UserError: its loss is not finite.
        """
        folder = self.artifacts / "models" / "base" / f"seed-{seed}"
        if (params.model, params.training) == (self.present.model, self.present.training) and (folder / FILE).is_file():
            return folder
        kept = self._place(
            "base", self.train.identity, params.model.model_dump_json(), params.training.model_dump_json(), str(seed)
        )
        with FileLock(kept.with_suffix(".lock")):
            if not kept.is_dir():
                classifier, epochs = train_base(
                    params.model, params.training, self.train, self.validation, seed, self.device
                )
                for _ in epochs:
                    pass
                with atomic_folder(kept) as made:
                    classifier.save(made)
        return kept

    def bank(self, base: Path, params: FilterParams, seed: int) -> FilterBank:
        """The filters of a base, counted at the confidence threshold.

        Raises:
            UserError: the filters cannot be counted at this threshold.
        """
        seen, head = self._seen(base)
        local = self._generator(base, params, seed)
        return accumulate(
            local,
            head,
            seen,
            self.train.labels,
            params.confidence_threshold,
            model_fingerprint(base),
        )

    def masks(self, base: Path, params: TrialParams, seed: int) -> Masks:
        """The masks of a base.

        Raises:
            UserError: nothing is to be searched, or the regions do not fit the images.
        """
        model, folder = model_fingerprint(base), self.artifacts / "masks" / "counterfactual" / f"seed-{seed}"
        if self._is_pipelines(base) and params.masks == self.present.masks and (folder / MASKS.format(0)).is_file():
            return Masks.load(folder, model, self.train.identity, len(self.train))
        by_filters = params.masks.selector == "filter_cam"
        filters = self.bank(base, params.filters, seed).global_filters(0.0) if by_filters else None
        kept = self._place(
            "masks",
            self.train.identity,
            model,
            params.masks.model_dump_json(),
            params.filters.model_dump_json() if by_filters else "",
        )
        with FileLock(kept.with_suffix(".lock")):
            if not kept.is_dir():
                with atomic_folder(kept) as made:
                    generate(load(base, self.device), self.train, params.masks, made, model, filters)
        return Masks.load(kept, model, self.train.identity, len(self.train))

    def _generator(self, base: Path, params: FilterParams, seed: int) -> FilterGenerator:
        """What says which filters an image needs: the pipeline's generator, or one trained here, once."""
        saved = self.artifacts / "filters" / "minimum_correct" / f"seed-{seed}"
        unchanged = (params.generator, params.heads) == (self.present.filters.generator, self.present.filters.heads)
        key = fingerprint(model_fingerprint(base), params.generator, params.heads.model_dump_json(), str(seed))
        if key not in self._local:
            if len(self._local) >= MOST_GENERATORS:
                self._local.pop(next(iter(self._local)))
            if unchanged and self._is_pipelines(base) and (saved / FILTERS).is_file():
                self._local[key] = FilterBank.load(saved, model_fingerprint(base)).local
            else:
                seen, head = self._seen(base)
                self._local[key] = filter_generator(
                    params.generator, seen, self.train.labels, head, params.heads, seed, self.device
                )
        return self._local[key]

    def _seen(self, base: Path) -> tuple[Readout, LastLayer]:
        """A base's readout of the training split, and its last layer; kept in memory for the base used last."""
        if str(base) not in self._read:
            classifier = load(base, self.device)
            self._read.clear()
            self._read[str(base)] = readout_of(classifier, self.train), LastLayer(*classifier.head()).to("cpu")
        return self._read[str(base)]

    def _is_pipelines(self, base: Path) -> bool:
        """Whether the pipeline made this base."""
        return base.is_relative_to(self.artifacts)

    def _place(self, kind: str, *parts: str) -> Path:
        """Where something made from these parts, by this code, is kept."""
        place = self.kept / kind / fingerprint(code_fingerprint("everycause.tuning.upstream"), *parts)
        place.parent.mkdir(parents=True, exist_ok=True)
        return place
