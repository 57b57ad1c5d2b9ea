"""Tables in Markdown: every number is computed from stored predictions, none is typed."""

from collections.abc import Iterator

from everycause.evaluation.statistics import holm, sign_flip_p
from everycause.reporting.results import REFERENCE, Results
from everycause.training.rows import ROUNDS, ROUNDS_MEANING, ROWS

COLUMNS = {
    "accuracy/test": "test", "accuracy/test_200": "test (200)", "mce": "mCE", "accuracy/renditions": "renditions", "accuracy/sketch": "sketch", "accuracy/corruptions": "corruptions",
    "accuracy/scene_shift/independent": "free scene", "scene_gap": "scene gap", "worst_group": "worst group", "accuracy/swaps/1": "1 swap",
    "erasures/3/mean": "3 erased", "erasures/3/worst": "3 erased, worst", "completeness": "completeness", "effective_causes": "causes used",
}  # fmt: skip
"""Metric → column, for the main table."""
LEAST_SEEDS = 6
"""With fewer no sign-flip test can reach 0.05."""
PLAIN = {"effective_causes", "mce"}
"""Metrics that are no shares, hence not shown in percent."""


def main_table(results: Results) -> str:
    """One line per row, mean ± standard deviation over seeds; shares in percent."""
    metrics = [metric for metric in COLUMNS if results.has(metric)]
    metrics += [
        name
        for name in results.frame.columns
        if name.startswith("accuracy/") and name.count("/") == 1 and name not in COLUMNS
    ]
    header = ["row", *(COLUMNS.get(metric, metric.removeprefix("accuracy/")) for metric in metrics)]
    lines = [[f"`{row}`", *(_cell(results, row, metric) for metric in metrics)] for row in results.rows]
    return markdown(header, lines)


def difference_table(results: Results) -> str:
    """Each row's paired difference from the reference with its interval, in points."""
    families = list(results.families())
    lines = []
    for row in results.rows:
        intervals = [results.difference(row, family) for family in families]
        if any(interval is not None for interval in intervals):
            lines.append(
                [
                    f"`{row}`",
                    *(
                        f"{100 * i.mean:+.1f} [{100 * i.low:+.1f}, {100 * i.high:+.1f}]"
                        for i in intervals
                        if i is not None
                    ),
                ]
            )
    return markdown(["row", *(family.replace("_", " ") for family in families)], lines)


def significance_table(results: Results) -> str:
    """Exact sign-flip tests of the seeds' differences from the reference, Holm-adjusted over families; nothing with fewer than six seeds."""
    rows = [row for row in results.rows if row not in ("base", REFERENCE)]
    if len(results.seeds) < LEAST_SEEDS or REFERENCE not in results.rows:
        return ""
    families = list(results.families())
    lines = []
    for row in rows:
        adjusted = holm({family: sign_flip_p(results.differences(row, family).mean(axis=1)) for family in families})
        lines.append([f"`{row}`", *(f"{adjusted[family]:.3f}" for family in families)])
    return markdown(["row", *(family.replace("_", " ") for family in families)], lines)


def calibration_table(results: Results) -> str:
    """Top-5 accuracy, mean recall of the classes and expected calibration error, on the splits of the main table."""
    splits = [name.removeprefix("macro/") for name in results.frame.columns if name.startswith("macro/")]
    splits = [split for split in splits if "/" not in split or f"accuracy/{split}" in COLUMNS]
    kinds = {"top5": "top 5", "macro": "class mean", "calibration_error": "calibration error"}
    shown = [
        (split, kind)
        for split in sorted(splits, key=lambda split: split != "test")
        for kind in kinds
        if results.has(f"{kind}/{split}")
    ]
    header = ["row", *(f"{COLUMNS.get(f'accuracy/{split}', split)}: {kinds[kind]}" for split, kind in shown)]
    return markdown(
        header,
        [[f"`{row}`", *(_cell(results, row, f"{kind}/{split}") for split, kind in shown)] for row in results.rows],
    )


def meaning_table(results: Results) -> str:
    """What each row is."""
    meanings = {"base": "the starting point", ROUNDS: ROUNDS_MEANING} | {
        name: row.meaning for name, row in ROWS.items()
    }
    return markdown(
        ["row", "what it adds to the continued base"], [[f"`{row}`", meanings[row]] for row in results.rows]
    )


def header(results: Results) -> Iterator[str]:
    """What a reader must know before the numbers."""
    several = len(results.seeds) > 1
    yield f"{len(results.seeds)} seed{'s' if several else ''}; {'mean ± standard deviation' if several else 'one run per row, so training noise is not measured'}; shares in percent."
    yield f"Selection rule: none, the last epoch counts. Differences are paired with `{REFERENCE}`, 95 % bootstrap over (seed, test image)."


def markdown(header: list[str], lines: list[list[str]]) -> str:
    """A table."""
    return "\n".join("| " + " | ".join(cells) + " |" for cells in (header, ["---"] * len(header), *lines))


def _cell(results: Results, row: str, metric: str) -> str:
    values = results.values(row, metric)
    scale, digits = (1, 2) if metric in PLAIN else (100, 1)
    mean = f"{scale * values.mean():.{digits}f}"
    return f"{mean} ± {scale * values.std(ddof=1):.{digits}f}" if len(values) > 1 else mean
