"""The outcome of a study: its table, its figures, and the proposal that a person may adopt."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import yaml

from everycause.errors import UserError
from everycause.tuning.loop import RUN, WORKER, complete, finished
from everycause.tuning.space import ENQUEUED, OBJECTIVES, Plan, Range, Value, Values, nested, starts, used
from everycause.tuning.study import ATTEMPT, REASON, RETRIES, STOPPED, SURPLUS, given_up

if TYPE_CHECKING:
    import optuna
    from optuna.trial import FrozenTrial
import io

from ruamel.yaml import YAML
from ruamel.yaml.comments import CommentedMap

from everycause.params import flattened, raw_params, validated

NOTES = {WORKER, RUN, REASON, ATTEMPT, RETRIES, SURPLUS, STOPPED, ENQUEUED}
"""What trials hold besides their measures."""
SHOWN_TRIALS = 12
EDGE = 0.05
"""Share of a range at each end within which a proposed value is pointed out."""
STATES = {"FAIL": "failed"}


def winner(study: "optuna.Study", plan: Plan) -> "tuple[FrozenTrial, str]":
    """The trial that is proposed, and the rule in words: the highest value, or of a front the largest sum.

    Of equal trials the earlier one is proposed.

    Raises:
        UserError: no trial is complete; the last failure says why.
    """
    whole = complete(study)
    if not whole:
        reasons = [trial.user_attrs[REASON] for trial in finished(study) if REASON in trial.user_attrs]
        raise UserError(
            f"no trial of the study '{plan.study}' is complete"
            + (f"; the last one failed: {reasons[-1]}" if reasons else ": run the sweep until one is")
        )
    if len(plan.objectives) == 1:
        return max(whole, key=lambda trial: (trial.values[0], -trial.number)), f"the highest {plan.objectives[0]}"
    front = study.best_trials
    best = max(front, key=lambda trial: (sum(trial.values), -trial.number))
    return (
        best,
        f"of the {len(front)} trials on the front of {' and '.join(plan.objectives)}, the largest sum of the two",
    )


def table_of(study: "optuna.Study", plan: Plan) -> Any:
    """All trials as a pandas table: number, state, objectives, values, every measure, seconds, and why they failed."""
    import pandas

    front = {trial.number for trial in study.best_trials} if len(plan.objectives) > 1 else set()
    rows = []
    for trial in study.get_trials(deepcopy=False):
        values = trial.values if trial.state.name == "COMPLETE" else []
        row: dict[str, Any] = {"number": trial.number, "state": STATES.get(trial.state.name, trial.state.name.lower())}
        row |= dict(zip(plan.objectives, values, strict=False))
        row |= {"front": trial.number in front} if front else {}
        row |= used(trial, plan) | {name: value for name, value in trial.user_attrs.items() if name not in NOTES}
        row |= {"pruned after": trial.last_step} if trial.state.name == "PRUNED" else {}
        row |= {"seconds": round(trial.duration.total_seconds(), 1)} if trial.duration else {}
        rows.append(row | {name: trial.user_attrs[name] for name in (REASON, RETRIES) if name in trial.user_attrs})
    return pandas.DataFrame(rows)


def write_grid(study: "optuna.Study", plan: Plan, reference: dict[str, float], folder: Path) -> None:
    """Write an ablation's table and figure: a line over one parameter, a heat map over two.

    Args:
        study: The finished study.
        plan: What it searched.
        reference: Measures of the row `continued`, to compare with.
        folder: Where both go.
    """
    import matplotlib.pyplot as plt

    paths = list(plan.parameters)
    table = table_of(study, plan)
    table = table[table["state"] == "complete"].sort_values(paths, ignore_index=True).drop(columns=["state", "seconds"])
    table.to_csv(folder / "trials.csv", index=False)
    shown = [name for name in OBJECTIVES if name in table.columns]
    figure, axes = plt.subplots(1, len(shown), figsize=(5.4 * len(shown), 3.8), squeeze=False)
    for axis, name in zip(axes[0], shown, strict=True):
        if len(paths) == 1:
            axis.plot(table[paths[0]], table[name], marker="o", color="#d98c00", label=plan.row)
            axis.set(xlabel=paths[0], ylabel=name)
            if name in reference:
                axis.axhline(reference[name], color="#222222", linestyle="--", linewidth=1, label="continued")
            axis.legend(frameon=False, fontsize=8)
        else:
            _heat_map(
                axis,
                table.pivot_table(index=paths[0], columns=paths[1], values=name, sort=False)
                .sort_index()
                .sort_index(axis=1),
            )
            continued = f" (continued {reference[name]:.3f})" if name in reference else ""
            axis.set(xlabel=paths[1], ylabel=paths[0], title=name + continued)
    figure.tight_layout()
    figure.savefig(folder / "grid.png", dpi=110, metadata={"Software": None})
    plt.close(figure)


def write_proposal(study: "optuna.Study", plan: Plan, present: dict[str, Value], folder: Path) -> None:
    """Write the proposed values, the table of trials, the figures and the report, for a person to adopt or not.

    Raises:
        UserError: no trial is complete.
    """
    trial, rule = winner(study, plan)
    measured = ", ".join(f"{name} {value:.4f}" for name, value in zip(plan.objectives, trial.values, strict=True))
    header = (
        f"# Proposed by the study '{plan.study}' (row {plan.row}): trial {trial.number}, selected by {rule}: "
        f"{measured}\n# `make adopt` writes it into params.yaml\n"
    )
    folder.joinpath("best_params.yaml").write_text(header + yaml.safe_dump(nested(used(trial, plan))))
    table = table_of(study, plan)
    table.to_csv(folder / "trials.csv", index=False)
    figures = _draw(study, plan, folder)
    folder.joinpath("report.md").write_text(_report(study, plan, present, table, figures, trial, rule))


def _report(
    study: "optuna.Study",
    plan: Plan,
    present: dict[str, Value],
    table: Any,
    figures: list[str],
    trial: "FrozenTrial",
    rule: str,
) -> str:
    """The study on a page, with the trial that the rule proposes; the rule stands first."""
    states = ", ".join(f"{count} {state}" for state, count in table["state"].value_counts().items())
    seeds = f"{len(plan.seeds)} seeds each, averaged" if len(plan.seeds) > 1 else f"one seed each ({plan.seeds[0]})"
    lines = [
        f"# Study `{plan.study}`: row `{plan.row}`",
        "",
        f"**Selection rule**: {rule}, on validation images; no test split was read. "
        "The best of many trials looks better than it is: confirm it on other seeds.",
        "",
        f"Trials: {states}; {seeds}. Sampler {plan.sampler} (seed {plan.seed}), pruner {plan.pruner}.",
        "",
        *_proposed(plan, present, used(trial, plan)),
        "",
        *_trials(study, plan, present, trial),
    ]
    for one in study.get_trials(deepcopy=False):
        if one.state.name == "FAIL" and one.params:
            lines += ["", _failure(one)]
    pictures = [f"![{name.removesuffix('.png').replace('_', ' ')}]({name})" for name in figures]
    return "\n".join([*lines, "", *pictures]) + "\n"


def _proposed(plan: Plan, present: dict[str, Value], values: dict[str, Value]) -> list[str]:
    """A Markdown table of the proposed values beside the present ones."""
    rows = [
        f"| `{path}` | {_number(present[path])} | {_number(value)}{_edge(plan.parameters[path], value)} |"
        for path, value in values.items()
    ]
    return ["| parameter | present | proposed |", "| --- | --- | --- |", *rows]


def _trials(study: "optuna.Study", plan: Plan, present: dict[str, Value], proposed: "FrozenTrial") -> list[str]:
    """A Markdown table of the best trials, the proposed one first."""
    columns = [*plan.objectives, *plan.parameters]
    lines = ["| trial | " + " | ".join(columns) + " |", "| --- " * (1 + len(columns)) + "|"]
    whole = sorted(complete(study), key=lambda one: (one.number != proposed.number, -one.values[0]))
    first = dict(zip((" (present values)", " (published values)"), starts(plan, present), strict=False))
    for one in whole[:SHOWN_TRIALS]:
        note = " (proposed)" if one.number == proposed.number else ""
        note += "".join(name for name, values in first.items() if used(one, plan) == values)
        cells = [*(f"{value:.4f}" for value in one.values), *(_number(value) for value in used(one, plan).values())]
        lines.append(f"| {one.number}{note} | " + " | ".join(cells) + " |")
    if len(whole) > SHOWN_TRIALS:
        lines += ["", f"Complete trials beyond these: {len(whole) - SHOWN_TRIALS}, in trials.csv."]
    return lines


def _edge(bounds: Range | Values, value: Value) -> str:
    """A hint where a proposed number lies in the outermost twentieth of its range: the best may lie beyond."""
    if isinstance(bounds, Values) or isinstance(value, str):
        return ""
    scale = np.log if bounds.log else np.asarray
    place = (scale(value) - scale(bounds.low)) / (scale(bounds.high) - scale(bounds.low))
    return "" if EDGE < place < 1 - EDGE else f" (at the {'lower' if place <= EDGE else 'upper'} end of its range)"


def _failure(trial: "FrozenTrial") -> str:
    """Why a trial failed."""
    ended = f"its worker ended before it did; its values were {'given up' if given_up(trial) else 'queued again'}"
    return f"Trial {trial.number} failed: {trial.user_attrs.get(REASON, ended)}."


def _draw(study: "optuna.Study", plan: Plan, folder: Path) -> list[str]:
    """Draw Optuna's figures for which the trials suffice; their file names."""
    import matplotlib.pyplot as plt
    import optuna.visualization.matplotlib as drawing

    names = []

    def save(name: str) -> None:
        plt.gcf().set_size_inches(9, 5)
        plt.tight_layout()
        plt.savefig(folder / f"{name}.png", dpi=110, metadata={"Software": None})
        plt.close("all")
        names.append(f"{name}.png")

    for number in range(len(plan.objectives)):
        _draw_objective(study, plan, number, save)
    if len(plan.objectives) > 1:
        drawing.plot_pareto_front(study, target_names=plan.objectives)
        save("pareto_front")
    elif any(trial.state.name == "PRUNED" for trial in study.get_trials(deepcopy=False)):
        drawing.plot_intermediate_values(study)
        save("curves")
    return names


def _draw_objective(study: "optuna.Study", plan: Plan, number: int, save: Callable[[str], None]) -> None:
    """Draw history, parallel coordinates and importances of one objective."""
    import optuna.visualization.matplotlib as drawing
    from optuna.importance import FanovaImportanceEvaluator, get_param_importances

    objective, several = plan.objectives[number], len(plan.objectives) > 1
    suffix = f"_{objective.split()[-1]}" if several else ""

    def value(trial: "FrozenTrial") -> float:
        return trial.values[number]

    target = value if several else None  # without one, Optuna draws the best so far, and the best lines darkest
    drawing.plot_optimization_history(study, target=target, target_name=objective)
    save(f"history{suffix}")
    axis = drawing.plot_parallel_coordinate(study, target=target, target_name=objective)
    labels = [objective, *(path.split(".", 1)[-1] for path in sorted(plan.parameters))]
    axis.set_xticks(axis.get_xticks(), labels, rotation=330)  # Optuna cuts its labels short
    save(f"parallel_coordinates{suffix}")
    if len({trial.values[number] for trial in complete(study)}) > 1:  # trials that are all alike show no importance
        evaluator = FanovaImportanceEvaluator(seed=plan.seed)
        if get_param_importances(study, evaluator=evaluator, target=value):
            drawing.plot_param_importances(study, evaluator=evaluator, target=value, target_name=objective)
            save(f"importances{suffix}")


def _heat_map(axis: Any, square: Any) -> None:
    """Values on a grid, written into their cells."""
    axis.imshow(square, cmap="viridis", aspect="auto", origin="lower")
    for (row, column), value in np.ndenumerate(square.to_numpy()):
        axis.text(
            column,
            row,
            f"{value:.3f}",
            ha="center",
            va="center",
            color="black" if value > square.to_numpy().mean() else "white",
            fontsize=9,
        )
    axis.set_xticks(range(square.shape[1]), [_number(value) for value in square.columns])
    axis.set_yticks(range(square.shape[0]), [_number(value) for value in square.index])


def _number(value: Any) -> str:
    """A value for people."""
    return f"{value:g}" if isinstance(value, float | int) and not isinstance(value, bool) else str(value)


WIDEST = 10**6
"""Columns of a line: none is ever folded."""


def adopt(proposal: Path, params: Path) -> dict[str, tuple[Any, Any]]:
    """Write the proposed values in place of the present ones; comments, order, layout and line ends stay as they are.

    Returns:
        Dotted path → (before, now) of what changed.

    Raises:
        UserError: there is no proposal, a file is no YAML or gives a key twice, params lacks a key of the proposal, or
            the outcome would not be valid. Nothing is written then.
    """
    if not proposal.is_file():
        raise UserError(f"{proposal} does not exist: `make sweep` proposes first")
    proposed, present = _values(proposal), _values(params)
    if unknown := [path for path in proposed if path not in present]:
        raise UserError(f"{proposal}: {params.name} has no key '{unknown[0]}'")
    changed = {path: (present[path], value) for path, value in proposed.items() if present[path] != value}
    text = params.read_bytes().decode("utf-8")
    new = replaced(text, {path: value for path, (_, value) in changed.items()})
    outcome = yaml.safe_load(new)
    if flattened(outcome or {}) != present | proposed:
        raise UserError(f"{params}: the values cannot be replaced one by one (anchors, aliases): change them by hand")
    validated(outcome, f"{params} with {proposal}")
    if changed:
        partial = params.with_name(params.name + ".partial")
        partial.write_bytes(new.encode("utf-8"))
        partial.rename(params)
    return changed


def replaced(text: str, values: dict[str, Any]) -> str:
    """A YAML text with other scalars at dotted paths; comments, order, layout and line ends stay as they are."""
    if not values:
        return text
    round_trip = YAML()
    round_trip.preserve_quotes, round_trip.width = True, WIDEST
    round_trip.indent(mapping=2, sequence=4, offset=2)
    round_trip.representer.add_representer(
        type(None), lambda representer, _none: representer.represent_scalar("tag:yaml.org,2002:null", "null")
    )
    whole = round_trip.load(text.replace("\r\n", "\n"))
    for path, value in values.items():
        section, key = _place(whole, path.split("."))
        # written as PyYAML writes it: 1.0e-05, which it reads back as a number, and not 1e-05, which it reads as text
        section[key] = round_trip.load(yaml.safe_dump(value)) if isinstance(value, float) else value
    written = io.StringIO()
    round_trip.dump(whole, written)
    return written.getvalue().replace("\n", "\r\n") if "\r\n" in text else written.getvalue()


def _place(section: CommentedMap, keys: list[str]) -> tuple[CommentedMap, str]:
    """The section that holds a dotted path, some of whose keys hold dots themselves, and its key there."""
    for count in range(1, len(keys)):
        inner = section.get(".".join(keys[:count]))
        if isinstance(inner, CommentedMap):
            return _place(inner, keys[count:])
    return section, ".".join(keys)


def _values(path: Path) -> dict[str, Any]:
    """The values of a YAML file, flat; an empty file has none.

    Raises:
        UserError: it is no YAML, gives a key twice, or is not made of keys.
    """
    whole = raw_params(path)
    if whole is not None and not isinstance(whole, dict):
        raise UserError(f"{path} must be a YAML file with keys, and it has none")
    return flattened(whole or {})
