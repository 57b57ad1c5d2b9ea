"""A proposal written into params.yaml: the values change, and nothing else in the file does."""

import re
from pathlib import Path
from typing import Any

import yaml

from everycause.params import flattened, validated


def adopt(proposal: Path, params: Path) -> dict[str, tuple[Any, Any]]:
    """Write the proposed values in place of the present ones; comments, order and layout stay as they are.

    Returns:
        Dotted path → (before, now) of what changed.

    Raises:
        ValueError: there is no proposal, it names a key that params.yaml lacks, or the outcome would not be valid; nothing is written then.
    """
    if not proposal.is_file():
        raise ValueError(f"{proposal} does not exist: `make sweep` proposes first")
    text = params.read_text() if params.is_file() else ""
    try:
        whole = yaml.safe_load(proposal.read_text()) or {}, yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ValueError(f"{proposal} and {params} must be YAML files with keys: {' '.join(str(error).split())}") from error
    if not all(isinstance(one, dict) for one in whole):
        raise ValueError(f"{proposal} and {params} must be YAML files with keys, and one of them has none")
    proposed, present = map(flattened, whole)
    if unknown := [path for path in proposed if path not in present]:
        raise ValueError(f"{proposal}: params.yaml has no key '{unknown[0]}'")
    changed = {path: (present[path], value) for path, value in proposed.items() if present[path] != value}
    for path, (_, value) in changed.items():
        text = replaced(text, path, value)
    validated(yaml.safe_load(text), f"{params} with {proposal}")
    partial = params.with_name(params.name + ".partial")
    partial.write_text(text)
    partial.rename(params)
    return changed


def replaced(text: str, path: str, value: Any) -> str:
    """A YAML text with another scalar at a dotted path; a comment behind it keeps its column where there is room."""
    node = yaml.compose(text)
    for key in path.split("."):
        (node,) = (child for name, child in node.value if name.value == key)
    start, end = node.start_mark.index, node.end_mark.index
    new = yaml.safe_dump(value).splitlines()[0]
    rest = text[end:]
    gap = re.match(r" +(?=#)", rest)
    if gap:
        width = max(2, len(gap[0]) + (end - start) - len(new))
        rest = " " * width + rest[gap.end() :]
    return text[:start] + new + rest
