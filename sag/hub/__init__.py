"""Connections, sessions, subscriptions: what stands between sockets and topics."""
