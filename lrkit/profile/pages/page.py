"""The frame of a report's HTML page: its head with the style sheet, sections and tables. Its looks: style.css."""

from collections.abc import Iterable, Sequence
from pathlib import Path

from lrkit.profile.pages.svg import escape


def page(title: str, body: Iterable[str]) -> str:
    """A page that needs nothing else: no script, no font, no network."""
    style = Path(__file__).with_name("style.css").read_text(encoding="utf-8")
    head = (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title><style>{style}</style></head>"
    )
    return f"{head}<body><main>{''.join(part for part in body if part)}</main></body></html>\n"


def section(name: str, content: str | None, note: str = "") -> str:
    """A part of the page; empty without content."""
    if content is None:
        return ""
    said = f'<p class="note">{escape(note)}</p>' if note else ""
    return f"<section><h2>{escape(name)}</h2>{said}{content}</section>"


def html_table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table without the columns that are unknown in every row."""
    # What is unknown in every row would only push the rest off the page; report.json says null.
    known = [column for column in range(len(head)) if any(row[column] != "-" for row in rows)]
    top = "".join(f"<th>{escape(head[column])}</th>" for column in known)
    body = "".join("<tr>" + "".join(f"<td>{escape(row[column])}</td>" for column in known) + "</tr>" for row in rows)
    return f'<div class="scroll"><table><thead><tr>{top}</tr></thead><tbody>{body}</tbody></table></div>'
