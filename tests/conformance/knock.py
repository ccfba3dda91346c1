"""What the conformance suite starts as a client: passes the scenario on to the hub of the test, and how it went."""

import json
import os
import socket
import sys

wanted = {
    "scenario": os.environ.get("MCP_CONFORMANCE_SCENARIO", ""),
    "context": json.loads(os.environ.get("MCP_CONFORMANCE_CONTEXT", "null")),
    "url": sys.argv[-1],
}
with socket.create_connection(("127.0.0.1", int(sys.argv[1])), 30) as connection:
    connection.sendall(json.dumps(wanted).encode() + b"\n")
    status, _, why = connection.makefile().read().partition("\n")
print(why, file=sys.stderr)
sys.exit(int(status or 1))
