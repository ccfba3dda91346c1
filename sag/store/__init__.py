"""What is kept and is no topic: idempotency keys, tokens, plugins' own keys, files; and listings made from events."""
