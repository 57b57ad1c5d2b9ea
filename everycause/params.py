"""Read params.yaml into frozen, strict, validated sections.

Each section's class lives beside the code that it configures. Every reader validates the whole file, so that a mistake
in the last stage's section stops the first stage. Section classes are found by name at run time: importing this module
imports none of them.
"""

import difflib
from pathlib import Path
from pkgutil import resolve_name
from types import SimpleNamespace
from typing import Any

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, create_model, field_validator, model_validator

from everycause.errors import UserError

LARGEST = 2**32
"""Numbers beyond this are mistakes: no count, size, rate or seed of an experiment comes near it."""
SEQUENCES = ("exchange.removed", "exchange.radius", "prior.channels")
"""Lists in which a value may stand twice: the ends of a range, and one number for each layer."""
LONGEST_LIST, LONGEST_TEXT = 1000, 250
"""Entries of a list and characters of a text beyond which they are mistakes; no file system takes longer names."""
UNREADABLE = (yaml.YAMLError, ValueError, KeyError, AttributeError, TypeError, RecursionError)
"""What PyYAML raises, by kind of damage, over a text that is no YAML: bad dates, tags, numbers, nesting."""
TOLD = 4
"""The most mistakes of one file that a sentence tells."""


class Section(BaseModel):
    """A frozen, strict set of parameters: an unknown key or a wrong type is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


SECTIONS = {
    "run": "everycause.device:RunParams",
    "tracking": "everycause.tracking:TrackingParams",
    "data": "everycause.data.sources:DataParams",
    "model": "everycause.models:ModelParams",
    "training": "everycause.training.fit:BaseParams",
    "filters": "everycause.explanation.filters:FilterParams",
    "masks": "everycause.explanation.masks:MaskParams",
    "background": "everycause.training.background:BackgroundParams",
    "exchange": "everycause.training.exchange:ExchangeParams",
    "loss": "everycause.training.loss:LossParams",
    "retraining": "everycause.training.fit:FitParams",
    "rounds": "everycause.training.rounds:RoundsParams",
    "faithfulness": "everycause.evaluation.faithfulness:FaithfulnessParams",
    "detection": "everycause.evaluation.detection:DetectionParams",
    "evaluation": "everycause.evaluation.ood:EvaluationParams",
    "prior": "everycause.explanation.prior:PriorParams",
    "counterfactuals": "everycause.explanation.steering:CounterfactualParams",
    "worlds": "everycause.worlds.cells:WorldsParams",
    "tuning": "everycause.tuning.space:TuningParams",
}
"""Section of params.yaml → module and class that define it."""


class Matrix(Section):
    """The lists over which dvc.yaml runs its stages."""

    seeds: list[int] = Field(min_length=1)
    """Training seeds: every stage runs once for each."""
    rows: list[str] = Field(min_length=1)
    """The retraining rows of the results table."""
    evaluated: list[str] = Field(min_length=1)
    """The rows that are evaluated and reported: `base` and any of `rows`."""

    @field_validator("seeds")
    @classmethod
    def _are_seeds(cls, seeds: list[int]) -> list[int]:
        for seed in seeds:
            if not 0 <= seed < 2**32:
                raise ValueError(f"a seed lies between 0 and {2**32 - 1}, not {seed}")
        return seeds

    @model_validator(mode="after")
    def _rows_are_known(self) -> "Matrix":
        known = resolve_name("everycause.training.rows:ROWS")
        for row in self.rows:
            if row not in known:
                close = difflib.get_close_matches(row, known, n=1)
                hint = f", did you mean '{close[0]}'?" if close else ""
                raise ValueError(f"rows: '{row}' is not a retraining row{hint} (known: {', '.join(known)})")
        if missing := [row for row in self.evaluated if row not in ("base", *self.rows)]:
            raise ValueError(f"evaluated: '{missing[0]}' is neither 'base' nor one of rows ({', '.join(self.rows)})")
        if "base" not in self.evaluated:
            raise ValueError("evaluated: 'base' is missing, and every other row is read against it")
        return self


class UniqueKeys(yaml.SafeLoader):
    """YAML in which a key may be given only once: PyYAML would silently take the last, and DVC refuses the file."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """A mapping as a dict.

        Raises:
            ConstructorError: a key is given twice.
        """
        seen = set()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                continue
            if key.value in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"the key '{key.value}' is given twice", key.start_mark
                )
            seen.add(key.value)
        return super().construct_mapping(node, deep)


def read(*names: str, path: Path = Path("params.yaml")) -> SimpleNamespace:
    """The validated values of some top-level keys of params.yaml.

    Raises:
        UserError: the file is missing or anything in it is wrong; the sentence gives the dotted path.
    """
    whole = validated(raw_params(path), str(path))
    return SimpleNamespace(**{name: getattr(whole, name) for name in names})


def raw_params(path: Path = Path("params.yaml")) -> Any:
    """The file as YAML gives it, not validated.

    Raises:
        UserError: the file is missing, is no YAML, or gives a key twice.
    """
    if not path.is_file():
        raise UserError(
            f"{path} does not exist: run from the repository root, or copy one of profiles/*.yaml to {path}"
        )
    try:
        return yaml.load(path.read_text(encoding="utf-8"), UniqueKeys)
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}): check its permissions") from error
    except UNREADABLE as error:
        raise UserError(f"{path} is not valid YAML: {_short(' '.join(str(error).split()), 300)}") from error


def validated(raw: Any, source: str) -> Any:
    """All sections, validated.

    Raises:
        UserError: anything is wrong; the sentence begins with `source` and gives the dotted path.
    """
    if not isinstance(raw, dict):
        raise UserError(f"{source} holds no keys: start from one of profiles/*.yaml")
    named = {str(key): value for key, value in raw.items()}
    try:
        flat = flattened(named)
    except RecursionError as error:
        raise UserError(f"{source} holds a section that contains itself: write it out without an alias") from error
    for path, value in flat.items():
        if fault := _implausible(_short(path), value):
            raise UserError(f"{source}: {fault}")
    sections = {name: (resolve_name(owner), ...) for name, owner in SECTIONS.items()}
    try:
        whole = create_model("Params", __base__=Matrix, **sections)(**named)
    except ValidationError as error:
        told = [_sentence(problem) for problem in error.errors()]
        more = [f"and {len(told) - TOLD} more mistakes"] if len(told) > TOLD else []
        raise UserError(f"{source}: " + "; ".join([*told[:TOLD], *more])) from error
    if not whole.faithfulness.rows:
        raise UserError(f"{source}: faithfulness.rows is empty: name 'base', and to judge nothing set selectors to []")
    if missing := [row for row in whole.faithfulness.rows if row not in ("base", *whole.rows)]:
        raise UserError(
            f"{source}: faithfulness.rows: '{missing[0]}' is neither 'base' nor one of rows ({', '.join(whole.rows)})"
        )
    return whole


def flattened(section: dict[Any, Any], prefix: str = "") -> dict[str, Any]:
    """Nested parameters under dotted names."""
    flat: dict[str, Any] = {}
    for key, value in section.items():
        name = f"{prefix}{key}"
        flat |= flattened(value, name + ".") if isinstance(value, dict) else {name: value}
    return flat


def _implausible(path: str, value: Any) -> str:
    """Why a value can be that of no parameter, whatever its name; empty if it may be one."""
    values = value if isinstance(value, list) else [value]
    if len(values) > LONGEST_LIST:
        return f"'{path}' lists {len(values)} values, and at most {LONGEST_LIST} are sensible"
    for place, one in enumerate(values):
        if isinstance(one, int | float) and not -LARGEST <= one <= LARGEST:  # what is no number is not between them
            shown = repr(one) if isinstance(one, float) or abs(one) < 10**20 else "too large"
            return f"'{path}' is {shown}, and every number must be finite and sensible"
        if isinstance(one, str) and not (one.isprintable() and len(one) <= LONGEST_TEXT):
            return f"'{path}' is {_short(repr(one))}: write one line of at most {LONGEST_TEXT} printable characters"
        if one in values[:place] and path not in SEQUENCES:
            return f"{path}: {_short(repr(one))} is named twice"
    return ""


def _short(text: str, most: int = 80) -> str:
    """A text on one line, cut where it is too long for a sentence."""
    line = "".join(character if character.isprintable() else "�" for character in text)
    return line if len(line) <= most else line[: most - 1] + "…"


def _sentence(problem: Any) -> str:
    """One validation problem in words, with its dotted path."""
    where = _short(".".join(part for part in map(str, problem["loc"]) if not part.startswith("[")))
    match problem["type"]:
        case "missing":
            return f"the key '{where}' is missing"
        case "extra_forbidden":
            return f"the key '{where}' is unknown"
        case "value_error":
            return f"{where}: {problem['ctx']['error']}" if where else str(problem["ctx"]["error"])
    text = f"'{where}' is {_short(repr(problem['input']))}: {problem['msg'][0].lower()}{problem['msg'][1:]}"
    numeric_text = isinstance(problem["input"], str) and problem["type"] == "float_type"
    return text + " (YAML reads 1e-4 as text: write 1.0e-4)" if numeric_text else text
