"""params.yaml → frozen, strict, validated sections.

Every reader validates the whole file, so that a mistake in the last stage's section stops the first stage; but it
imports the sections' owners by name, at run time, so that a stage depends on the code of its own sections only.
"""

import difflib
from pathlib import Path
from pkgutil import resolve_name
from types import SimpleNamespace
from typing import Any

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, create_model, model_validator

from everycause.errors import UserError

# MERGED DOC: """What every section of params.yaml has in common."""


class Section(BaseModel):
    """A frozen, strict, closed set of parameters: an unknown key or a wrong type is an error."""

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
    "loss": "everycause.training.loss:LossParams",
    "retraining": "everycause.training.fit:FitParams",
    "rounds": "everycause.training.rounds:RoundsParams",
    "faithfulness": "everycause.evaluation.faithfulness:FaithfulnessParams",
    "detection": "everycause.evaluation.detection:DetectionParams",
    "evaluation": "everycause.evaluation.predictions:EvaluationParams",
    "tuning": "everycause.tuning.space:TuningParams",
}
"""The owner of each section's class."""


class Matrix(Section):
    """The lists over which dvc.yaml runs its stages."""

    seeds: list[int] = Field(min_length=1)
    """Training seeds: every stage runs once for each."""
    rows: list[str] = Field(min_length=1)
    """The retraining rows of the results table."""
    evaluated: list[str] = Field(min_length=1)
    """The rows that are evaluated and reported, `base` among them."""

    @model_validator(mode="after")
    def _rows_are_known(self) -> "Matrix":
        known = resolve_name("everycause.training.rows:ROWS")
        for row in self.rows:
            if row not in known:
                close = difflib.get_close_matches(row, known, n=1)
                hint = f", did you mean '{close[0]}'?" if close else ""
                raise UserError(f"rows: '{row}' is not a retraining row{hint} (known: {', '.join(known)})")
        rounds = resolve_name("everycause.training.rows:ROUNDS")
        if missing := [row for row in self.evaluated if row not in ("base", rounds, *self.rows)]:
            raise UserError(
                f"evaluated: '{missing[0]}' is neither 'base' nor '{rounds}' nor one of rows ({', '.join(self.rows)})"
            )
        if "base" not in self.evaluated:
            raise UserError("evaluated: 'base' is missing, and every other row is read against it")
        return self


def read(*names: str, path: Path = Path("params.yaml")) -> SimpleNamespace:
    """The validated values of some top-level keys of params.yaml.

    Raises:
        UserError: the file is missing or anything in it is wrong; the sentence gives the dotted path.
    """
    if not path.is_file():
        raise UserError(
            f"{path} does not exist: run from the repository root, or copy one of profiles/*.yaml to {path}"
        )
    try:
        raw = yaml.safe_load(path.read_text())
    except yaml.YAMLError as error:
        raise UserError(f"{path} is not valid YAML: {' '.join(str(error).split())}") from error
    whole = validated(raw, str(path))
    return SimpleNamespace(**{name: getattr(whole, name) for name in names})


def validated(raw: Any, source: str) -> Any:
    """All sections, validated.

    Raises:
        UserError: anything is wrong; the sentence begins with `source` and gives the dotted path.
    """
    if not isinstance(raw, dict):
        raise UserError(f"{source} holds no keys: start from one of profiles/*.yaml")
    sections = {name: (resolve_name(owner), ...) for name, owner in SECTIONS.items()}
    try:
        return create_model("Params", __base__=Matrix, **sections)(**raw)
    except ValidationError as error:
        raise UserError(f"{source}: " + "; ".join(_sentence(problem) for problem in error.errors())) from error


def flattened(section: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested parameters under dotted names."""
    flat: dict[str, Any] = {}
    for key, value in section.items():
        name = f"{prefix}{key}"
        flat |= flattened(value, name + ".") if isinstance(value, dict) else {name: value}
    return flat


def _sentence(problem: Any) -> str:
    """One validation problem in words, with its dotted path."""
    where = ".".join(str(part) for part in problem["loc"])
    match problem["type"]:
        case "missing":
            return f"the key '{where}' is missing"
        case "extra_forbidden":
            return f"the key '{where}' is unknown"
        case "value_error":
            return f"{where}: {problem['ctx']['error']}" if where else str(problem["ctx"]["error"])
    text = f"'{where}' is {problem['input']!r}: {problem['msg'][0].lower()}{problem['msg'][1:]}"
    numeric_text = isinstance(problem["input"], str) and problem["type"] == "float_type"
    return text + " (YAML reads 1e-4 as text: write 1.0e-4)" if numeric_text else text
