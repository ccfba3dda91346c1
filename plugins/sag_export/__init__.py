"""Formats in which runs and conversations are exported: Markdown, HTML, PDF; and a route that gives them as files."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from functools import partial
from typing import Any
from urllib.parse import quote

import msgspec
from msgspec import Struct

from sag.plugin import Fault, Hub, Rendered, Reply, Request, hookimpl
from sag_export import markdown
from sag_export.story import tell

Json = dict[str, Any]

PRESS_S = 110.0
HEARD = (
    *("HOME", "LANG", "LC_ALL", "PATH", "PYTHONPATH", "SYSTEMROOT", "TEMP", "TMP", "TMPDIR", "USERPROFILE", "WINDIR"),
    *("VIRTUAL_ENV", "XDG_DATA_DIRS", "XDG_DATA_HOME"),
)
"""Variables that the press may see: where programs, fonts and temporary files are."""


class Settings(Struct, forbid_unknown_fields=True):
    """The table `[export]` of plugins.toml.

    Attributes:
        fonts: Folders with fonts for PDF, besides those that are installed.
        system_fonts: Whether the machine's own fonts are taken.
    """

    fonts: list[str] = []
    system_fonts: bool = True


@hookimpl
def register(hub: Hub[Settings]) -> None:
    """Offer the formats and the route."""
    hub.add_exporter("md", "text/markdown; charset=utf-8", lambda document: markdown.render(tell(document)))
    hub.add_exporter("html", "text/html; charset=utf-8", partial(_press, hub, "html"))
    hub.add_exporter("pdf", "application/pdf", partial(_press, hub, "pdf"))

    async def download(request: Request) -> Reply:
        file = await hub.export(request.user, request.path["id"], request.path["format"])
        plain = file.name if file.name.isascii() else f"export.{request.path['format']}"
        headers = {
            "content-disposition": f"attachment; filename=\"{plain}\"; filename*=UTF-8''{quote(file.name)}",
            "content-security-policy": "sandbox; default-src 'none'; style-src 'unsafe-inline'; img-src data:",
        }
        if file.notes:  # headers hold ASCII alone
            headers["sag-notes"] = quote(msgspec.json.encode(file.notes))
        return Reply(file.data, file.mime, headers=headers)

    hub.add_route("GET /api/export/{id}.{format}", download)


def _press(hub: Hub[Settings], format: str, document: Json) -> Rendered:
    """A file that is made in a process of its own.

    Raises:
        Fault: export.failed, export.timeout.
    """
    if format == "pdf" and not (importlib.util.find_spec("typst") and importlib.util.find_spec("fontTools")):
        raise Fault("export.failed", "PDF needs the hub's extra: pip install 'sag-hub[pdf]'.")
    settings = hub.settings
    order = {"format": format, "document": document, "fonts": settings.fonts, "system_fonts": settings.system_fonts}
    try:
        made = subprocess.run(
            [sys.executable, "-P", "-m", "sag_export.press"],
            input=msgspec.json.encode(order),
            capture_output=True,
            timeout=PRESS_S,
            env={name: os.environ[name] for name in HEARD if name in os.environ},
        )
    except subprocess.TimeoutExpired:
        raise Fault("export.timeout") from None
    if made.returncode != 0:
        hub.log.error("%s could not be made: %s", format, made.stderr.decode(errors="replace")[-4000:])
        raise Fault("export.failed", f"The conversation could not be set as {format}; the hub's log says why.")
    notes, _, data = made.stdout.partition(b"\n")
    return Rendered(data, msgspec.json.decode(notes, type=list[str]))
