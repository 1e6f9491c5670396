"""A report as a list of blocks, written as Markdown and as one HTML file that needs nothing else.

    blocks = [Heading("Verdict"), Text("No difference."), Table(["name", "H-mean"], [["a", "0.9421"]])]
    to_markdown("Comparison", blocks, folder)
    to_html("Comparison", blocks)

Everything that comes from outside (names, reasons, values) is escaped here, in one place for each form.
"""

import base64
import dataclasses
import hashlib
import html
import re
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import quote

from engine.files import replace_text
from pipelines.errors import printable

STYLE = Path(__file__).with_name("document.css").read_text()


@dataclasses.dataclass(frozen=True)
class Heading:
    """A section's title; `anchor` is a name that links can lead to."""

    text: str
    anchor: str = ""


@dataclasses.dataclass(frozen=True)
class Text:
    """A paragraph."""

    text: str


@dataclasses.dataclass(frozen=True)
class Items:
    """A bullet list."""

    lines: Sequence[str]


@dataclasses.dataclass(frozen=True)
class Link:
    """A table cell that leads to a path relative to the report, or with `anchor` to a place in the report."""

    text: str
    path: str
    anchor: str = ""


@dataclasses.dataclass(frozen=True)
class Table:
    """Rows under a header; `strong` = index of the row to set apart. A column of numbers stands to the right."""

    header: Sequence[str]
    rows: Sequence[Sequence[str | Link]]
    strong: int = -1


@dataclasses.dataclass(frozen=True)
class Figure:
    """A PNG beside the report, and what to see in it."""

    path: Path
    caption: str


@dataclasses.dataclass(frozen=True)
class Code:
    """Commands to copy."""

    text: str


@dataclasses.dataclass(frozen=True)
class Markup:
    """HTML as it is: its maker has escaped what comes from outside with `escaped`. Not for Markdown."""

    html: str


Block = Heading | Text | Items | Table | Figure | Code | Markup


def to_markdown(title: str, blocks: Sequence[Block], folder: Path) -> str:
    """GitHub's Markdown; pictures and runs by paths relative to `folder`."""
    parts = [f"# {_md(title)}"]
    for block in blocks:
        if isinstance(block, Heading):
            parts.append(f"## {_md(block.text)}")
        elif isinstance(block, Text):
            parts.append(_md(block.text))
        elif isinstance(block, Items):
            parts.append("\n".join(f"- {_md(line)}" for line in block.lines))
        elif isinstance(block, Table):
            parts.append(_md_table(block))
        elif isinstance(block, Figure):
            parts.append(
                f"![{_md(block.path.stem)}]({quote(str(block.path.relative_to(folder)))})\n\n{_md(block.caption)}"
            )
        else:
            assert isinstance(block, Code)
            fence = "`" * max(3, 1 + max((len(run) for run in re.findall("`+", block.text)), default=0))
            parts.append(f"{fence}\n{_lines(block.text)}\n{fence}")
    return "\n\n".join(parts) + "\n"


def to_html(title: str, blocks: Sequence[Block], style: str = "", script: str = "") -> str:
    """One file: style inline, pictures as data, nothing fetched; no script runs but `script`, which the policy names.

    Args:
        style: CSS after STYLE.
        script: plain JavaScript of ours, without `</`; it runs at the end of the page.
    """
    policy = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
    ending = "</body></html>\n"
    if script:
        assert "</" not in script
        digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
        policy, ending = f"{policy}; script-src 'sha256-{digest}'", f"<script>{script}</script>\n{ending}"
    head = (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">'
        f'<meta name="viewport" content="width=device-width"><link rel="icon" href="data:,">'
        f"<title>{escaped(title)}</title><style>{STYLE}{style}</style></head>\n<body>\n<h1>{escaped(title)}</h1>"
    )
    return "\n".join([head, *[_html(block) for block in blocks], ending])


def write_report(folder: Path, title: str, blocks: Sequence[Block]) -> Path:
    """Writes report.md and report.html into a folder, each in one move; returns report.html.

    Raises:
        OSError: one cannot be written.
    """
    page = folder / "report.html"
    replace_text(folder / "report.md", to_markdown(title, blocks, folder))
    replace_text(page, to_html(title, blocks))
    return page


def _html(block: Block) -> str:
    if isinstance(block, Markup):
        return block.html
    if isinstance(block, Heading):
        anchor = f' id="{escaped(block.anchor)}"' if block.anchor else ""
        return f"<h2{anchor}>{escaped(block.text)}</h2>"
    if isinstance(block, Text):
        return f"<p>{escaped(block.text)}</p>"
    if isinstance(block, Items):
        return "<ul>" + "".join(f"<li>{escaped(line)}</li>" for line in block.lines) + "</ul>"
    if isinstance(block, Table):
        return _html_table(block)
    if isinstance(block, Figure):
        data = base64.b64encode(block.path.read_bytes()).decode()
        caption = escaped(block.caption)
        picture = f'<img alt="{escaped(block.path.stem)}" src="data:image/png;base64,{data}">'
        return f"<figure>{picture}<figcaption>{caption}</figcaption></figure>"
    return f"<pre>{html.escape(_lines(block.text))}</pre>"


def escaped(text: object) -> str:
    """Text from outside as HTML shows it, in content and in quoted attributes; control letters as `\\x1b`."""
    return html.escape(printable(text))


def _lines(text: str) -> str:
    """Commands keep their line ends and nothing else of the kind."""
    return "\n".join(map(printable, text.split("\n")))


def _is_text(table: Table, column: int) -> bool:
    """Whether a column holds words rather than numbers: then it stands to the left."""
    cells = [row[column] for row in table.rows]
    words = [cell.text if isinstance(cell, Link) else cell for cell in cells]
    return any(word and not re.fullmatch(r"[-+±]?[\d.,:e+±%hmin\- ]*", word) for word in words)


def _html_table(table: Table) -> str:
    kinds = [' class="text"' if _is_text(table, column) else "" for column in range(len(table.header))]
    lines = ["".join(f"<th{kind}>{escaped(name)}</th>" for kind, name in zip(kinds, table.header, strict=True))]
    lines = [f"<tr>{lines[0]}</tr>"] if any(table.header) else []
    for index, row in enumerate(table.rows):
        cells = "".join(f"<td{kind}>{_html_cell(cell)}</td>" for kind, cell in zip(kinds, row, strict=True))
        lines.append(f'<tr class="strong">{cells}</tr>' if index == table.strong else f"<tr>{cells}</tr>")
    return '<div class="wide"><table>\n' + "\n".join(lines) + "\n</table></div>"


def _html_cell(cell: str | Link) -> str:
    if isinstance(cell, Link):
        place = f"#{quote(cell.anchor)}" if cell.anchor else ""
        address = quote(cell.path, errors="surrogateescape") + place  # names that are no UTF-8
        return f'<a href="{html.escape(address)}">{escaped(cell.text)}</a>'
    return escaped(cell)


def _md_table(table: Table) -> str:
    rule = [":--" if _is_text(table, column) else "--:" for column in range(len(table.header))]
    lines = ["| " + " | ".join(_md(name) for name in table.header) + " |", "|" + "|".join(rule) + "|"]
    for index, row in enumerate(table.rows):
        cells = [_md_cell(cell) for cell in row]
        cells = [f"**{cell}**" if index == table.strong and cell else cell for cell in cells]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _md_cell(cell: str | Link) -> str:
    return f"[{_md(cell.text)}]({quote(cell.path)})" if isinstance(cell, Link) else _md(cell)


def _md(text: str) -> str:
    """Characters that Markdown or HTML would read get a backslash; an underscore inside a word needs none."""
    text = printable(" ".join(text.split()))
    text = re.sub(r"([\\`*\[\]<>|~$])", r"\\\1", text)
    text = re.sub(r"(?<!\w)_|_(?!\w)", r"\\_", text)
    text = re.sub(r"^([#+-]|\d+[.)])(?= )", r"\\\1", text)
    return text.replace("&", "&amp;")
