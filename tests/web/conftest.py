"""Plugins written for one test, as in `tests/hooks`."""

from tests.hooks.conftest import make_host, plugin

__all__ = ["make_host", "plugin"]
