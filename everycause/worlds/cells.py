"""The cells of a study: a world of Codebirds and a training seed, and which rows are trained in it.

A world is told by two numbers: how dominant simple cues are (0: all five are learned, 1: hue and texture suffice), and
how often the scene is the class's own. The study runs the named worlds; the map runs a grid of the two numbers; the
third plan flips some of the training labels of one world.
"""

from itertools import product
from typing import Literal, NamedTuple

from pydantic import Field, field_validator, model_validator

from codebirds.factors import OWN, SHARED, WORLDS, dominance
from everycause.data.sources import DataParams
from everycause.errors import UserError
from everycause.params import Section
from everycause.reporting.results import REFERENCE
from everycause.training.rows import ROWS

BASE = "base"
PlanName = Literal["study", "map", "noise"]
DOMINANCE = {"premise": 1.0, "confounded": 1.0, "additive": 0.0}
"""The dominance of simple cues in each named world."""
assert DOMINANCE.keys() == WORLDS.keys(), "say how dominant simple cues are in every named world"


class Compared(Section):
    """The rows and seeds that every world gets; the base is always measured."""

    seeds: list[int] = Field(min_length=1)
    """Training seeds."""
    rows: list[str] = Field(min_length=1)
    """Retraining rows; `continued` is among them, since the others are read against it."""

    @model_validator(mode="after")
    def _rows_are_known(self) -> "Compared":
        for row in self.rows:
            if row not in ROWS:
                raise ValueError(f"rows: '{row}' is not a retraining row (known: {', '.join(ROWS)})")
        if REFERENCE not in self.rows:
            raise ValueError(f"rows: '{REFERENCE}' is missing, and every other row is read against it")
        return self


class StudyParams(Compared):
    """`make study`: the named worlds."""

    worlds: list[str] = Field(min_length=1)
    """Keys of codebirds.factors.WORLDS."""

    @field_validator("worlds")
    @classmethod
    def _exist(cls, worlds: list[str]) -> list[str]:
        for world in worlds:
            if world not in WORLDS:
                raise ValueError(f"there is no world '{world}' (known: {', '.join(WORLDS)})")
        return worlds


class MapParams(Compared):
    """`make map`: a grid of worlds."""

    dominance: list[float] = Field(min_length=1)
    """Dominance of simple cues, each from 0 to 1."""
    scene_correlation: list[float] = Field(min_length=1)
    """Probability that the scene is the class's own, each from 0 to 1."""

    @field_validator("dominance", "scene_correlation")
    @classmethod
    def _are_shares(cls, values: list[float]) -> list[float]:
        for value in values:
            if not 0 <= value <= 1:
                raise ValueError(f"{value} does not lie between 0 and 1")
        return values


class NoiseParams(Compared):
    """`make noise`: one world, with some of the training labels flipped."""

    world: str
    """A key of codebirds.factors.WORLDS."""
    label_noise: list[float] = Field(min_length=1)
    """Shares of the training images whose label is another class's, each from 0 to 1."""

    @model_validator(mode="after")
    def _exist(self) -> "NoiseParams":
        if self.world not in WORLDS:
            raise ValueError(f"there is no world '{self.world}' (known: {', '.join(WORLDS)})")
        for value in self.label_noise:
            if not 0 <= value <= 1:
                raise ValueError(f"label_noise: {value} does not lie between 0 and 1")
        return self


class WorldsParams(Section):
    """Studies over many worlds."""

    study: StudyParams
    map: MapParams
    noise: NoiseParams


class World(NamedTuple):
    """What the training images of a cell are like."""

    world: str
    """The name of the world, or `own` for a cell of the map."""
    dominance: float
    """Dominance of simple cues, from 0 to 1."""
    scene_correlation: float
    """Probability that the scene is the class's own."""
    label_noise: float = 0.0
    """Share of the training images whose label is another class's, from 0 to 1."""

    @property
    def images(self) -> "World":
        """The world with the same images and right labels."""
        return self._replace(label_noise=0.0)

    @property
    def name(self) -> str:
        """A name for folders and runs."""
        name = f"dominance-{self.dominance:g}-scene-{self.scene_correlation:g}" if self.world == OWN else self.world
        return f"{name}-noise-{self.label_noise:g}" if self.label_noise else name


class Cell(NamedTuple):
    """One world and one training seed."""

    where: World
    seed: int

    @property
    def name(self) -> str:
        """A name for folders and runs."""
        return f"{self.where.name}-seed-{self.seed}"

    def data(self, data: DataParams) -> DataParams:
        """The data set of this world, with the sizes, the code and the data seed of `data`."""
        where = self.where
        settings = WORLDS.get(where.world) or SHARED | dominance(where.dominance)
        changed = {**settings, "world": where.world, "scene_correlation": where.scene_correlation}
        section = type(data.section)(**(data.section.model_dump() | changed))
        return DataParams(
            source="codebirds", root=data.root, memory_mib=data.memory_mib, codebirds=section.model_dump()
        )


def cells(plan: PlanName, params: WorldsParams, data: DataParams) -> list[Cell]:
    """The cells of a plan, seed by seed, so that a plan that is cut short has whole seeds.

    Raises:
        UserError: the data set is not Codebirds.
    """
    if data.source != "codebirds":
        raise UserError(f"make {plan} needs data.source codebirds, whose causes are known, not {data.source}")
    if plan == "map":
        grid = product(params.map.dominance, params.map.scene_correlation)
        worlds = [World(OWN, strength, correlation) for strength, correlation in grid]
    elif plan == "study":
        worlds = [_named(world) for world in params.study.worlds]
    else:
        worlds = [_named(params.noise.world)._replace(label_noise=share) for share in params.noise.label_noise]
    return [Cell(world, seed) for seed, world in product(getattr(params, plan).seeds, worlds)]


def _named(world: str) -> World:
    return World(world, DOMINANCE[world], float(WORLDS[world]["scene_correlation"]))
