"""The built-in operations, one file per area. Each is a thin door; what it does is the engine's or the store's."""
