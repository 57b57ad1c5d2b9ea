"""A proposal written into params.yaml: the proposed values change, and nothing else in the file does.

The text is edited at the places where PyYAML found the values. ruamel.yaml's round trip was tried instead: it keeps
comments and order, but it rewrites `null` as nothing and lists with other indents, and it writes 1.0e-05 as `1e-05`,
which the reader of params.yaml takes for a text.
"""

import re
from pathlib import Path
from typing import Any

import yaml

from everycause.errors import UserError
from everycause.params import UniqueKeys, flattened, raw_params, validated


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
    for path, (_, value) in changed.items():
        text = replaced(text, path, value)
    outcome = yaml.load(text, UniqueKeys)
    if flattened(outcome) != present | proposed:
        raise UserError(f"{params}: the values cannot be replaced one by one (anchors, aliases): change them by hand")
    validated(outcome, f"{params} with {proposal}")
    if changed:
        partial = params.with_name(params.name + ".partial")
        partial.write_bytes(text.encode("utf-8"))
        partial.rename(params)
    return changed


def replaced(text: str, path: str, value: Any) -> str:
    """A YAML text with another scalar at a dotted path; a comment behind it keeps its column where there is room."""
    node = _node(yaml.compose(text), path.split("."))
    start, end = node.start_mark.index, node.end_mark.index
    new = yaml.safe_dump(value).splitlines()[0]
    rest = text[end:]
    if gap := re.match(r" +(?=#)", rest):
        width = max(2, len(gap[0]) + (end - start) - len(new))
        rest = " " * width + rest[gap.end() :]
    return text[:start] + new + rest


def _node(node: Any, keys: list[str]) -> Any:
    """The node at a dotted path, some of whose keys may hold dots themselves."""
    if not keys:
        return node
    for count in range(1, len(keys) + 1):
        for name, child in node.value if isinstance(node, yaml.MappingNode) else ():
            if name.value == ".".join(keys[:count]) and (found := _node(child, keys[count:])) is not None:
                return found
    return None


def _values(path: Path) -> dict[str, Any]:
    """The values of a YAML file, flat; an empty file has none.

    Raises:
        UserError: it is no YAML, gives a key twice, or is not made of keys.
    """
    whole = raw_params(path)
    if whole is not None and not isinstance(whole, dict):
        raise UserError(f"{path} must be a YAML file with keys, and it has none")
    return flattened(whole or {})
