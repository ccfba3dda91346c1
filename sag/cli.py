"""The command line: `sag serve`, `chat`, `mcp`, `token`, `plugin`, `doctor`, `schema`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence

from sag import __version__
from sag.errors import Fault, StartError


def make_parser() -> argparse.ArgumentParser:
    """The parser of the command line."""
    from sag import chat_cli, doctor_cli, mcp_cli, plugin_cli, token_cli

    parser = argparse.ArgumentParser(prog="sag", description="A self-hosted realtime hub for AI assistants.")
    parser.add_argument("--version", action="version", version=f"sag {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    serve = commands.add_parser("serve", help="run the hub")
    serve.add_argument("--host", help="the address to listen on (default 127.0.0.1)")
    serve.add_argument("--port", type=int, help="the port (default 4100; 0 takes a free one)")
    serve.add_argument("--data", metavar="DIR", help="the data folder")
    serve.add_argument("--config", metavar="FILE", help="the plugins.toml to go by")
    serve.add_argument("--tls-cert", metavar="FILE", help="a certificate in PEM form")
    serve.add_argument("--tls-key", metavar="FILE", help="its key")
    schema = commands.add_parser("schema", help="print a generated document")
    schema.add_argument("name", choices=["jsonschema", "openapi", "asyncapi", "typescript", "reference"])
    for module in (chat_cli, mcp_cli, token_cli, doctor_cli, plugin_cli):
        module.add_parser(commands)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; gives the process's exit status."""
    from sag import chat_cli, doctor_cli, mcp_cli, plugin_cli, token_cli

    args = make_parser().parse_args(argv)
    run: dict[str, Callable[[argparse.Namespace], int]] = {
        "serve": _serve,
        "schema": _schema,
        "chat": chat_cli.run,
        "mcp": mcp_cli.run,
        "token": token_cli.run,
        "doctor": doctor_cli.run,
        "plugin": plugin_cli.run,
    }
    try:
        return run[args.command](args)
    except StartError as e:
        print(f"sag: {e}", file=sys.stderr)
        return e.code
    except Fault as e:
        print(f"sag: {e.message}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:  # as `sag schema … | head` leaves it
        sys.stderr.close()
        return 0


def _serve(args: argparse.Namespace) -> int:
    from sag import app, settings

    loaded = settings.load(
        config=args.config,
        host=args.host,
        port=args.port,
        data=args.data,
        tls_cert=args.tls_cert,
        tls_key=args.tls_key,
    )
    return app.run(loaded, lambda url: print(f"sag is ready at {url}", flush=True))


def _schema(args: argparse.Namespace) -> int:
    from sag import app
    from sag.ops import export

    print(export.print_document(args.name, app.declared()))
    return 0


def generated() -> dict[str, str]:
    """Every generated file of the checkout by its path; `scripts/generate` writes them."""
    from sag import app
    from sag.engine import agent, run
    from sag.hooks import hub, kind, spec
    from sag.ops import export

    plugin = (hub.Hub, hub.KeyValue, hub.PluginTopic, kind.RunKind, run.Run, run.Step, run.Turn, agent.Agent)
    return export.files(app.declared(), make_parser(), spec.Hooks, plugin)


if __name__ == "__main__":
    sys.exit(main())
