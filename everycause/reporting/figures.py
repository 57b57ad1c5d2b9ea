"""Charts of the report. PNG files carry no dates, so that their bytes depend on the results alone."""

import logging
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import matplotlib
import matplotlib.pyplot as plt
import numpy as np
from matplotlib import font_manager
from matplotlib.figure import Figure

from everycause.reporting.colors import COLORS, OPTIMUM, OTHER
from everycause.reporting.results import Measures
from everycause.reporting.tables import DETECTORS

log = logging.getLogger(__name__)
DEFAULT_FONT = "DejaVu Sans"
DETECTOR_COLORS = dict(
    zip(DETECTORS, ("#d98c00", "#e8cf9f", "#b9a57f", "#7a6a53", "#b3005e", "#0072b2", "#56b4e9"), strict=True)
)


@contextmanager
def readable(texts: Iterable[str]) -> Iterator[None]:
    """Draw and save figures within the block so that these texts, which come from the user's data, can be read."""
    with matplotlib.rc_context(legible(texts)), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing from")  # said once by legible
        yield


def legible(texts: Iterable[str]) -> dict[str, Any]:
    """Settings of matplotlib with which these texts, which come from the user's data, can be read.

    `$` stands for itself instead of beginning a formula. Characters that the default font lacks are drawn in an
    installed font that has them; where there is none, one warning says which are missing.
    """
    characters = {character for text in texts for character in text if character.isprintable()}
    fonts, missing = fonts_for(characters)
    if missing:
        shown = "".join(sorted(missing))
        log.warning(
            "no installed font has the characters '%s' of class or split names, so figures show boxes for them: "
            "install one that has, such as Noto Sans CJK for Chinese, Japanese and Korean",
            shown if len(shown) <= 20 else f"{shown[:20]}…",
        )
    return {"text.parse_math": False, "font.family": fonts}


def fonts_for(characters: set[str]) -> tuple[list[str], set[str]]:
    """The default font and installed fonts for characters that it lacks, and the characters that no font has."""
    fonts, missing = [DEFAULT_FONT], characters - _characters(font_manager.findfont(DEFAULT_FONT))
    if missing:
        installed = font_manager.fontManager.ttflist
        upright = [font for font in installed if font.style == "normal" and font.weight in (400, "normal", "regular")]
        for font in sorted(upright, key=lambda font: (font.name, font.fname)):
            if font.name.startswith("Last Resort"):  # has a box for every character
                continue
            if found := missing & _characters(font.fname):
                fonts, missing = [*fonts, font.name], missing - found
    return fonts, missing


def _characters(file: str) -> set[str]:
    try:
        return {chr(code) for code in font_manager.get_font(file).get_charmap()}
    except (OSError, RuntimeError):
        return set()  # a damaged font file is no font


def save(figure: Figure, path: Path) -> None:
    """Write a figure with reproducible bytes."""
    figure.savefig(path, dpi=110, bbox_inches="tight", metadata={"Software": None, "Creation Time": None})
    plt.close(figure)


def color(row: str) -> str:
    """A row's color."""
    return COLORS.get(row, OTHER)


def split_name(name: str) -> str:
    """A split in words."""
    return name.replace("scene_shift/", "scene: ").replace("swaps/", "swaps: ").replace("_", " ")


def rounds_figure(rounds: list[Measures], parts: list[str], code_distance: int | None) -> Figure:
    """Reliance, completeness and the size of a flip, round by round; without known parts the size alone."""
    figure, axes = plt.subplots(1, 3 if parts else 1, figsize=(13 if parts else 5, 3.4), squeeze=False)
    figure.subplots_adjust(wspace=0.25)
    axis, searched = axes[0, -1], [one for one in rounds if "round/regions_at_flip" in one]
    numbers = [one["round/round"] for one in searched]
    sizes = [one["round/regions_at_flip"] for one in searched]
    axis.plot(numbers, sizes, marker="o", color="#222222", label="regions")
    if parts:
        destroyed = [one.get("round/flip_distance", np.nan) for one in searched]
        axis.plot(numbers, destroyed, marker="o", color=color("masks_rounds"), label="parts destroyed")
        axis.axhline(code_distance, color=OPTIMUM, linestyle="--", linewidth=1, label="parts that must go: complete")
        _causes_by_round(axes[0], rounds, parts)
    axis.set(title="Size of a flip, before each round", xlabel="round", xticks=numbers, ylim=(0, None))
    axis.legend(frameon=False, fontsize=8)
    return figure


def _causes_by_round(axes: np.ndarray, rounds: list[Measures], parts: list[str]) -> None:
    """The panels of reliance and completeness."""
    steps = [one["round/round"] for one in rounds]
    after = "after round (0: base)"
    for part, name in enumerate(parts):
        axes[0].plot(steps, [one[f"round/reliance/{part}"] for one in rounds], marker="o", label=name)
    axes[0].axhline(1 / len(parts), color=OPTIMUM, linestyle="--", linewidth=1)
    axes[0].set(title="Reliance per part (dashed: even)", xlabel=after, xticks=steps)
    axes[0].set_ylim(0, 1.5 * axes[0].get_ylim()[1])  # room for the legend
    axes[0].legend(frameon=False, fontsize=8, ncol=2, loc="upper center")
    axes[1].plot(steps, [one["round/completeness"] for one in rounds], marker="o", color=color("masks_rounds"))
    axes[1].set(title="Completeness (validation)", xlabel=after, xticks=steps, ylim=(0, 1))
