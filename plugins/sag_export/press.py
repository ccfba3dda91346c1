"""The process in which files are made: what is heavy or hostile harms nothing but itself, and can be ended.

Standard input is JSON `{format, document, fonts, system_fonts}`; standard output is the notes as a line of JSON, then
the file's bytes. Run as `python -m sag_export.press` by the plugin.
"""

from __future__ import annotations

import contextlib
import sys
from typing import Any

import msgspec

from sag_export.story import tell

MEMORY = 4 << 30  # bytes of address space


class Order(msgspec.Struct):
    """What to make."""

    format: str
    document: dict[str, Any]
    fonts: list[str] = []
    system_fonts: bool = True


def main() -> None:
    """Make one file."""
    with contextlib.suppress(ImportError, ValueError, OSError):  # where there is no such limit
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    order = msgspec.json.decode(sys.stdin.buffer.read(), type=Order)
    story = tell(order.document)
    notes: list[str] = []
    if order.format == "pdf":
        from sag_export.pdf import render as render_pdf

        data, notes = render_pdf(story, order.fonts, order.system_fonts)
    else:
        from sag_export.page import render as render_page

        data = render_page(story)
    sys.stdout.buffer.write(msgspec.json.encode(notes) + b"\n" + data)


if __name__ == "__main__":
    main()
