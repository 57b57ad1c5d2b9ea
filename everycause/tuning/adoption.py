"""A proposal written into params.yaml: the proposed values change, and nothing else in the file does."""

import io
from pathlib import Path
from typing import Any

import yaml
from ruamel.yaml import YAML
from ruamel.yaml.comments import CommentedMap

from everycause.errors import UserError
from everycause.params import flattened, raw_params, validated

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
