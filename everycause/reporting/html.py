"""Markdown as HTML that stands alone: pictures inside the text, tables that a keyboard and a screen reader can use."""

import base64
import io
import os
import re
from collections.abc import Sequence
from html import escape
from itertools import pairwise
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from markdown_it import MarkdownIt
from markdown_it.token import Token
from PIL import Image

from everycause.errors import UserError

LARGE = 250_000
"""Bytes of a PNG file from which on it is embedded as WebP, which takes a tenth for pictures of images."""
QUALITY = 88
"""Of these WebP pictures, of 100."""
NUMBERS = re.compile(r"[*\d.,+\-−±→%:/\[\] ]+$")
"""Cells that stay on one line."""
MEDIA_TYPES = {".png": "image/png", ".webp": "image/webp", ".jpg": "image/jpeg"}


def sections(markdown: str) -> dict[str, str]:
    """Title → text of each part under a second-level heading; what stands before the first one is named ''."""
    parts = re.split(r"^## +(.+)$", markdown, flags=re.MULTILINE)
    head = re.sub(r"^# .+\n", "", parts[0])
    return {"": head.strip()} | {
        title.strip(): text.strip() for title, text in zip(parts[1::2], parts[2::2], strict=True)
    }


def html(markdown: str, folder: Path, page: Path, level: int = 3) -> str:
    """Markdown as HTML.

    Args:
        markdown: The text.
        folder: Where its relative links begin.
        page: Folder of the page that it becomes a part of, from which links are made relative.
        level: Level of its second-level headings on that page.

    Raises:
        UserError: a picture is missing.
    """
    parser = MarkdownIt("commonmark", {"html": False}).enable("table")
    parser.add_render_rule("image", _picture(folder))
    parser.add_render_rule("table_open", _table_open)
    parser.add_render_rule("table_close", lambda *_: "</table></div>\n")
    tokens = parser.parse(markdown)
    for token, after in pairwise(tokens):
        if token.type == "td_open" and NUMBERS.match(after.content):
            token.attrSet("class", "numbers")
    for token in _all(tokens):
        if token.type in ("heading_open", "heading_close"):
            token.tag = f"h{min(6, max(level, int(token.tag[1]) + level - 2))}"
        if token.type == "th_open":
            token.attrSet("scope", "col")
        if token.type == "link_open":
            token.attrSet("href", _moved(str(token.attrGet("href")), folder, page))
    return str(parser.renderer.render(tokens, parser.options, {}))


def _all(tokens: Sequence[Token]) -> list[Token]:
    return [one for token in tokens for one in (token, *_all(token.children or []))]


def _moved(address: str, folder: Path, page: Path) -> str:
    """A link that begins at `folder`, as one that begins at `page`."""
    if re.match(r"[a-z]+:|#", address):
        return address
    return Path(os.path.relpath(folder / address, page)).as_posix()


def _table_open(_renderer: Any, tokens: Sequence[Token], index: int, *_: Any) -> str:
    """A table in a frame of its own that scrolls, named by its columns."""
    heads = []
    for token in tokens[index:]:
        if token.type == "thead_close":
            break
        heads += [re.sub(r"[`*]", "", token.content)] if token.type == "inline" else []
    name = escape("Table: " + ", ".join(head or "name" for head in heads[:4]), quote=True)
    return f'<div class="scroll" role="region" tabindex="0" aria-label="{name}"><table>\n'


def _picture(folder: Path) -> Any:
    def rendered(_renderer: Any, tokens: Sequence[Token], index: int, *_: Any) -> str:
        token = tokens[index]
        return image(folder / unquote(str(token.attrGet("src"))), token.content)

    return rendered


def image(path: Path, text: str, name: str = "") -> str:
    """A picture inside the page, with the text that stands in for it and perhaps a class of style sheets.

    Raises:
        UserError: there is no such picture.
    """
    source, (width, height) = embedded(path)
    kind = f' class="{name}"' if name else ""
    shown = escape(text, quote=True)
    return f'<img{kind} src="{source}" alt="{shown}" width="{width}" height="{height}" loading="lazy">'


def embedded(path: Path) -> tuple[str, tuple[int, int]]:
    """A picture as a data address, and its width and height in pixels.

    Raises:
        UserError: there is no such picture.
    """
    if not path.is_file():
        raise UserError(f"the page needs the picture '{path}', which is missing: run the stage report again")
    data, kind = path.read_bytes(), MEDIA_TYPES[path.suffix]
    with Image.open(path) as picture:
        size = picture.size
        if len(data) > LARGE and picture.format == "PNG":
            smaller = io.BytesIO()
            picture.convert("RGB").save(smaller, "WEBP", quality=QUALITY, method=4)
            data, kind = smaller.getvalue(), MEDIA_TYPES[".webp"]
    return f"data:{kind};base64,{base64.b64encode(data).decode()}", size
