"""Where a training stands within an epoch, so that one that was killed goes on at the next step."""

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from everycause.training.steps import Drawn, Order


@dataclass
class Position:
    """The place within the epochs that are under way."""

    order: Order
    """The images that come next."""
    step: int = 0
    """Steps of the epoch under way that are done; 0 between epochs."""
    terms: dict[str, list[Tensor]] = field(default_factory=dict)
    """The loss terms of these steps, by name."""
    drawn: Drawn | None = None
    """Where order and generator stood when the last step that was taken had been drawn; None before any."""
    _dropout: list[Tensor] = field(default_factory=list)
    """States of torch's global generators, as they were saved within an epoch."""

    def seed(self, seed: int, device: torch.device) -> None:
        """Seed torch's global generators, or put them where they were when this place was saved."""
        torch.manual_seed(seed)
        if self._dropout:
            torch.set_rng_state(self._dropout[0])
            if device.type == "cuda" and len(self._dropout) > 1:
                torch.cuda.set_rng_state(self._dropout[1], device)
            self._dropout = []

    def next_epoch(self) -> dict[str, list[Tensor]]:
        """End the epoch; its loss terms."""
        terms, self.step, self.terms = self.terms, 0, {}
        return terms

    @property
    def _drawn(self) -> Drawn:
        return self.order.drawn() if self.drawn is None else self.drawn

    def generator_state(self) -> Tensor:
        """State of the generator that belongs to this place."""
        return self._drawn.generator

    def state(self, device: torch.device) -> dict[str, Any]:
        """The place, in a form that torch.save takes."""
        generators = [torch.get_rng_state()] + ([torch.cuda.get_rng_state(device)] if device.type == "cuda" else [])
        return {
            "order": {"indices": torch.tensor(self._drawn.indices, dtype=torch.int64), "place": self._drawn.place},
            "step": self.step,
            "terms": {name: torch.stack(some) for name, some in self.terms.items()},
            "dropout": generators if self.step else [],
        }

    @classmethod
    def restored(cls, state: dict[str, Any], order: Order) -> "Position":
        """A saved place; `order` is a new one."""
        terms = {name: list(some.unbind()) for name, some in state["terms"].items()}
        dropout = [generator.cpu() for generator in state["dropout"]]  # torch.load puts them where the network lies
        return cls(order.load_state(state["order"]), state["step"], terms, None, dropout)
