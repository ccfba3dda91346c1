"""sag: a self-hosted realtime hub for AI assistants. Plugin authors import `sag.plugin`; nothing else is public."""

__version__ = "0.1.0"
