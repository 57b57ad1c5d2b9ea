"""Erasures of validation images: the one shifted split that selection may use, under its own name.

They are rendered from validation seeds and validation scenes, so no test image is touched. Only a sweep that maximizes
"validation completeness", and the record of the rounds, import this module (a test sees to it); whatever is selected says so.
"""

from collections.abc import Iterator
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor

from codebirds.birds import Codebirds
from codebirds.codes import Code
from codebirds.factors import erased
from everycause.data.sources import DataParams
from everycause.data.split import Images
from everycause.errors import UserError
from everycause.shapes import Int64


class Erased(NamedTuple):
    """All validation images without some parts."""

    parts: tuple[int, ...]
    images: Images
    labels: Int64[Tensor, "batch"]


class ValidationErasures:
    """Every set of absent parts with its images; scenes are independent of the class. Rendered once where they fit into data.memory_mib.

    Raises:
        UserError: the data are not rendered, so their parts are not known.
    """

    def __init__(self, params: DataParams, threads: int) -> None:
        if params.source != "codebirds":
            raise UserError(
                "the measure 'validation completeness' needs data.source codebirds: set tuning.objectives to [validation accuracy]"
            )
        self._birds = Codebirds(params.codebirds, threads)
        size = 2**self.code.length * params.codebirds.validation * 3 * params.codebirds.image_size**2
        self._fits = size <= params.memory_mib * 2**20
        self._held: list[Erased] = []

    @property
    def code(self) -> Code:
        """The code that the parts spell."""
        return self._birds.code

    def __iter__(self) -> Iterator[Erased]:
        """The sets by size, from none to all."""
        if self._fits and not self._held:
            self._held = list(self._rendered())
        yield from self._held or self._rendered()

    def _rendered(self) -> Iterator[Erased]:
        factors = self._birds.factors("validation")
        factors = replace(factors, scene=self._birds.free_scene(factors))
        for size in range(self.code.length + 1):
            for parts in self.code.subsets(size):
                yield Erased(
                    parts, torch.from_numpy(self._birds.images(erased(factors, parts))), torch.from_numpy(factors.label)
                )
