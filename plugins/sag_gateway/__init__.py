"""Front doors for clients of others: the OpenAI API and AG-UI."""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta, Struct

from sag.plugin import Hub, hookimpl
from sag_gateway.agui import Agui
from sag_gateway.completion import KIND, CompletionConfig, make_completion
from sag_gateway.exchange import Exchanges
from sag_gateway.openai import OpenAI, failed
from sag_gateway.threads import Threads

SWEEP_S = 60.0


class Settings(Struct, forbid_unknown_fields=True):
    """The table [gateway] of plugins.toml.

    Attributes:
        keep_s: How long a conversation stays after its answer that a client of the OpenAI API did not name, in seconds;
            `inf` keeps them all.
        answer_s: How long a run waits for a client of the OpenAI API that was given the call of a tool, in seconds.
    """

    keep_s: Annotated[float, Meta(ge=0)] = 600.0
    answer_s: Annotated[float, Meta(gt=0, le=86_400)] = 600.0


@hookimpl
def register(hub: Hub[Settings]) -> None:
    exchanges, threads = Exchanges(hub, hub.settings.keep_s), Threads(hub)
    hub.add_run_kind(KIND, CompletionConfig, make_completion(hub), title="Completion", listed=False)
    hub.every(SWEEP_S, exchanges.sweep)
    openai = OpenAI(hub, exchanges, threads, hub.settings.answer_s)
    for route, function in (
        ("GET /openai/v1/models", openai.models),
        ("GET /openai/v1/models/{id:path}", openai.model),
        ("POST /openai/v1/chat/completions", openai.complete),
    ):
        hub.add_route(route, function, any_key=True, failed=failed)
    agui = Agui(hub, exchanges, threads)
    for route in ("POST /agui", "POST /agui/{kind}"):
        hub.add_route(route, agui.run, any_key=True)
