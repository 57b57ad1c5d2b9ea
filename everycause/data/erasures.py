"""Validation images of Codebirds without some of their parts: the one shifted split that selection may use.

They are rendered from validation seeds and validation scenes, so no test image is touched. Only a sweep that maximizes
"validation completeness" and the record of the rounds use them (a test sees to it).
"""

from collections.abc import Iterator
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor

from codebirds.codes import Code
from codebirds.factors import erased
from everycause.data.images import Images
from everycause.data.sources import DataParams, renderer
from everycause.errors import UserError
from everycause.shapes import Int64


class Erased(NamedTuple):
    """All validation images without some parts."""

    parts: tuple[int, ...]
    """Indices of the absent parts."""
    images: Images
    labels: Int64[Tensor, "batch"]


class ValidationErasures:
    """Validation images without every set of parts, with scenes that are independent of the class.

    They are rendered once if they fit into data.memory_mib, and otherwise at every iteration.

    Raises:
        UserError: the data are not rendered, so their parts are not known.
    """

    def __init__(self, params: DataParams, threads: int) -> None:
        if params.source != "codebirds":
            raise UserError(
                "the measure 'validation completeness' needs data.source codebirds: "
                "set tuning.objectives to [validation accuracy]"
            )
        self._birds = renderer(params, threads)
        size = 2**self.code.length * params.codebirds.validation * 3 * params.codebirds.image_size**2
        self._fits = size <= params.memory_mib * 2**20
        self._held: list[Erased] = []

    @property
    def code(self) -> Code:
        """The code whose symbols the parts show."""
        return self._birds.code

    def __iter__(self) -> Iterator[Erased]:
        """The sets of absent parts by size, from none to all."""
        if self._fits and not self._held:
            self._held = list(self._rendered())
        yield from self._held or self._rendered()

    def _rendered(self) -> Iterator[Erased]:
        factors = self._birds.factors("validation")
        factors = replace(factors, scene=self._birds.free_scene(factors))
        labels = torch.from_numpy(factors.label)
        for size in range(self.code.length + 1):
            for parts in self.code.subsets(size):
                yield Erased(parts, torch.from_numpy(self._birds.images(erased(factors, parts))), labels)
