"""`sag.plugin`: what it exports is what is public there, and all that the design promises."""

from __future__ import annotations

import ast
import subprocess
import sys
import types
from pathlib import Path

import sag.plugin


def test_all_is_what_is_public():
    public = {
        name
        for name, value in vars(sag.plugin).items()
        if not name.startswith("_") and not isinstance(value, types.ModuleType) and name != "annotations"
    }
    assert set(sag.plugin.__all__) == public
    assert sag.plugin.__all__ == sorted(sag.plugin.__all__)


def test_all_has_what_a_plugin_author_needs():
    needed = (
        "Hub hookimpl tool Tool ToolError ToolContext operation Params Change Call Fault Event event RunConfig RunKind "
        "Run Provider HttpProvider StreamProvider ModelRequest Message CallRequest ToolSpec HttpRequest Decoder Model "
        "Text Reasoning CallFragment UsageChunk Finish Chunk ProviderError printable Usage User"
    )
    assert set(needed.split()) <= set(sag.plugin.__all__)


def test_bundled_plugins_import_nothing_else_of_the_hub():
    for name in ("sag_basics", "sag_demo"):
        for path in Path(__file__).parents[2].glob(f"plugins/{name}/*.py"):
            for node in ast.walk(ast.parse(path.read_text())):
                names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
                names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
                assert [n for n in names if n.split(".")[0] == "sag"] in ([], ["sag.plugin"]), path


def test_importing_it_loads_no_heavy_library():
    code = "import sys, sag.plugin; print([m for m in ('pint', 'mcp', 'jsonschema', 'sag_basics') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=30)
    assert done.stdout.strip() == "[]"
