"""Exports over a hub's roads: the operations, and the route that gives files to curl."""

from __future__ import annotations

import asyncio
import json
import shutil
import subprocess
from typing import Any
from urllib.parse import unquote

import httpx
import pytest

from sag.errors import Fault
from sag.hooks.hub import Exporter
from sag.testing.hub import RunningHub, running_hub
from sag.testing.provider import ScriptedProvider, say

Json = dict[str, Any]


async def ran(client: Any, text: str = "Grüße an: alle / heute?", **params: Any) -> Json:
    started: Json = await client.call("run.start", {"input": [{"kind": "text", "text": text}], **params})
    topic = await client.subscribe(f"conv:{started['conv']}")
    await topic.until(lambda state: state["runs"].get(started["run"], {}).get("status") == "done")
    return started


def web(hub: RunningHub, token: str = "") -> httpx.AsyncClient:
    headers = {"authorization": f"Bearer {token}"} if token else {}
    return httpx.AsyncClient(base_url=hub.url, headers=headers, timeout=60, trust_env=False)


MIMES = {
    "json": "application/json",
    "md": "text/markdown; charset=utf-8",
    "html": "text/html; charset=utf-8",
    "pdf": "application/pdf",
}


async def test_each_format_comes_as_a_file_with_a_name_and_a_type() -> None:
    async with (
        running_hub(providers=[ScriptedProvider(say("Hello there"))]) as hub,
        hub.client() as client,
        web(hub) as http,
    ):
        started = await ran(client)
        for id in (started["run"], started["conv"]):
            for format, mime in MIMES.items():
                answer = await http.get(f"/api/export/{id}.{format}")
                assert answer.status_code == 200, answer.text
                assert answer.headers["content-type"] == mime
                assert answer.headers["content-disposition"] == (
                    f"attachment; filename=\"export.{format}\"; filename*=UTF-8''Gr%C3%BC%C3%9Fe-an-alle-heute.{format}"
                )
                assert answer.headers["content-security-policy"].startswith("sandbox; default-src 'none'")
                assert answer.headers["x-content-type-options"] == "nosniff"
                assert (answer.content[:5] == b"%PDF-") if format == "pdf" else ("Hello there" in answer.text)
        body = (await http.get(f"/api/export/{started['run']}.json")).json()
        assert (body["id"], body["status"], body["error_message"]) == (started["run"], "completed", None)
        assert "status" not in (await http.get(f"/api/export/{started['conv']}.json")).json()
        assert await hub.app.journal.rows("blob", {}) == [], "what is sent at once is not kept"


async def test_curl_alone_is_enough(tmp_path: Any) -> None:
    curl = shutil.which("curl")
    if curl is None:
        pytest.skip("no curl here")
    async with running_hub(providers=[ScriptedProvider(say("Hello"))]) as hub, hub.client() as client:
        started = await ran(client, "Vans for Friday")
        command = [curl, "-sSfOJ", "--noproxy", "*", f"{hub.url}/api/export/{started['run']}.pdf"]
        await asyncio.to_thread(subprocess.run, command, cwd=tmp_path, check=True, timeout=60)
        assert (tmp_path / "Vans-for-Friday.pdf").read_bytes()[:5] == b"%PDF-"


async def test_what_is_anothers_is_not_found() -> None:
    async with running_hub(providers=[ScriptedProvider()]) as hub, hub.client() as client:
        started = await ran(client)
        token = (await client.call("token.new", {"user": "bob"}))["token"]
        async with web(hub, token) as http, hub.client(token=token) as bob:
            for id in (started["run"], started["conv"], "none", "r.1"):
                for format in MIMES:
                    answer = await http.get(f"/api/export/{id}.{format}")
                    assert (answer.status_code, answer.json()["error"]["data"]["kind"]) == (404, "conv.unknown")
            for method, params in (
                ("run.export", {"run": started["run"]}),
                ("conversation.export", {"conv": started["conv"]}),
            ):
                with pytest.raises(Fault) as error:
                    await bob.call(method, {**params, "format": "pdf"})
                assert error.value.code == 404
        async with web(hub, "wrong") as http:
            assert (await http.get(f"/api/export/{started['run']}.json")).status_code == 401


async def test_the_formats_are_listed() -> None:
    async with running_hub(providers=[ScriptedProvider()]) as hub, hub.client() as client, web(hub) as http:
        listed = [{"format": format, "mime": MIMES[format]} for format in ("json", "html", "md", "pdf")]
        assert await client.call("export.formats", {}) == {"formats": listed}
        assert (await http.get("/api/export")).json() == {"formats": listed}


async def test_what_a_file_does_not_show_is_said_beside_it() -> None:
    async with running_hub(providers=[ScriptedProvider(say("private \ue123"))]) as hub, hub.client() as client:
        started = await ran(client)
        async with web(hub) as http:
            answer = await http.get(f"/api/export/{started['run']}.pdf")
            (note,) = json.loads(unquote(answer.headers["sag-notes"]))
            assert "U+E123" in note
            assert "sag-notes" not in (await http.get(f"/api/export/{started['run']}.md")).headers


async def test_an_unknown_format_names_the_known_ones() -> None:
    async with running_hub(providers=[ScriptedProvider()]) as hub, hub.client() as client, web(hub) as http:
        started = await ran(client)
        with pytest.raises(Fault) as error:
            await client.call("run.export", {"run": started["run"], "format": "docx"})
        assert error.value.kind == "format.unknown"
        assert error.value.data["formats"] == ["json", "html", "md", "pdf"]
        answer = await http.get(f"/api/export/{started['run']}.docx")
        assert answer.status_code == 404
        assert answer.json()["error"]["data"]["formats"] == ["json", "html", "md", "pdf"]


async def test_text_stands_in_the_answer_and_a_pdf_is_kept() -> None:
    async with running_hub(providers=[ScriptedProvider(say("Hello"))]) as hub, hub.client() as client, web(hub) as http:
        started = await ran(client, "Vans")
        for method, what in (
            ("run.export", {"run": started["run"]}),
            ("conversation.export", {"conv": started["conv"]}),
        ):
            for format in ("json", "md", "html"):
                out = await client.call(method, {**what, "format": format})
                assert "Hello" in out["text"]
                assert (out["name"], out["mime"]) == (f"Vans.{format}", MIMES[format])
            out = await client.call(method, {**what, "format": "pdf"})
            assert "text" not in out
            answer = await http.get(f"/api/files/{out['ref']}")
            assert (answer.content[:5], answer.headers["content-type"]) == (b"%PDF-", "application/pdf")


async def test_an_exporter_that_fails_or_hangs_fails_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    import threading

    gate = threading.Event()

    def broken(document: Json) -> bytes:
        raise ValueError("secret details")

    def stuck(document: Json) -> bytes:
        gate.wait(30)
        return b""

    monkeypatch.setattr("sag.api.export.RENDER_S", 0.3)
    async with running_hub(providers=[ScriptedProvider()]) as hub, hub.client() as client:
        hub.app.extensions.exporters |= {"bad": Exporter("bad", "x/y", broken), "slow": Exporter("slow", "x/y", stuck)}
        started = await ran(client)
        with pytest.raises(Fault) as error:
            await client.call("run.export", {"run": started["run"], "format": "bad"})
        assert (error.value.kind, "secret" in error.value.message) == ("export.failed", False)
        with pytest.raises(Fault) as error:
            await client.call("run.export", {"run": started["run"], "format": "slow"})
        assert error.value.kind == "export.timeout"
        assert (await client.call("run.export", {"run": started["run"]}))["text"], "there is another thread"
        gate.set()


async def test_without_the_extra_pdf_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    async with running_hub(providers=[ScriptedProvider()]) as hub, hub.client() as client:
        started = await ran(client)
        with pytest.raises(Fault) as error:
            await client.call("run.export", {"run": started["run"], "format": "pdf"})
        assert error.value.kind == "export.failed"
        assert "sag-hub[pdf]" in error.value.message


async def test_nothing_heavy_is_imported_before_a_file_is_made() -> None:
    import sys

    code = (
        "import sys, sag.app, sag_export\nprint([m for m in ('typst', 'fontTools', 'markdown_it') if m in sys.modules])"
    )
    done = await asyncio.to_thread(subprocess.run, [sys.executable, "-c", code], capture_output=True, timeout=60)
    assert done.stdout.strip() == b"[]", done.stderr
