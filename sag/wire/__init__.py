"""The socket protocol without input or output: frames, the session's state machine, close codes (protocol 1, 2, 8)."""
