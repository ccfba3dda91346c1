"""The tool calls of a run: checked, approved, run, and each closed once; and what a tool asks the model meanwhile.

What has been called is read from the topic's state, so that after a restart nothing that was finished is called again.
Above: the run. Below: the toolbox, approvals, asks, topics.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Coroutine, Iterable, Sequence
from typing import TYPE_CHECKING, Any

import msgspec

from sag.engine import transcript
from sag.engine.agent import Agent
from sag.engine.approvals import Verdict
from sag.engine.asks import Answer
from sag.engine.attempts import Attempts
from sag.engine.context import CallContext
from sag.engine.ends import EXITS, RunEnded, RunLimit, ToolLost
from sag.engine.models import make_request
from sag.engine.toolbox import Toolbox
from sag.engine.writer import Ear
from sag.errors import Fault
from sag.hooks.provider import Message, ProviderError, text_message
from sag.hooks.tool import BlobContent, Content, Result, Sampled, SampleMessage, Tool, ToolError, plain_json
from sag.schema.events import RunError, StepClose, StepOpen, ToolClose, ToolOpen, ToolStatus
from sag.schema.ids import new_id, now_ms
from sag.topics.topic import Transaction

if TYPE_CHECKING:
    from sag.engine.run import Run

log = logging.getLogger("sag.engine")
Json = dict[str, Any]

MAX_RESULT = 256 << 10
SAMPLE_TOKENS = 4096
APPROVAL = ["allow_once", "allow_run", "allow_always", "deny"]


class Draft(msgspec.Struct):
    """A call as a model wrote it; `again` is the lost one that it repeats."""

    call: str
    name: str
    text: str
    again: str | None = None


class Calls:
    """The tool calls of one run.

    Args:
        run: Whose they are.
    """

    def __init__(self, run: Run) -> None:
        self._run, self._engine = run, run._engine
        self._topics, self._topic = run._topics, run._topic
        self.asked: dict[str, Tool] = {}  # tools of calls that wait for a person, by call
        self._sampling = asyncio.Lock()  # a tool may ask for much at once; it gets it bit by bit

    async def settle(self, agent: Agent, message: Json, *, strict: bool, parallel: bool) -> list[str]:
        """Run the calls of a round, and wait until each is closed; gives their ids.

        Args:
            agent: Whose round it was.
            message: What it said.
            strict: Call nothing if one of the calls does not fit its tool.
            parallel: Call all at once, else one after the other.
        """
        drafts: dict[str, Draft] = {}
        for part in message["parts"]:
            if part["kind"] == "tool_args":
                drafts.setdefault(part["call"], Draft(part["call"], part.get("name", ""), "")).text += part["text"]
        if not drafts:
            return []
        known = self._run.state["tools"]
        # Before anything is waited for: an ask that is answered meanwhile is in the state no longer.
        asked = {a["call"]: (id, a) for id, a in self._run.state["asks"].items() if a.get("call")}
        box = await self._run._toolbox(agent)
        calls: list[str] = []
        fresh: list[Draft] = []
        left: list[str] = []  # by a hub that stopped while they waited for a person
        for call, draft in drafts.items():
            while call in known and (repeated := known[call].get("repeated")) is not None:
                call = repeated
            status = known[call]["status"] if call in known else None
            tool = box.find(_key(known[call])) if status in ("lost", "running") else None
            if status == "lost" and tool is not None and (tool.idempotent or tool.risk == "read"):
                args = transcript.argument_text(known[call]["args"])
                draft = Draft(new_id("k"), _key(known[call]), args, again=call)
                call, status = draft.call, None
            if status is None:
                fresh.append(draft)
            elif status == "running":
                left.append(call)
                if tool is not None:
                    self.asked[call] = tool
            calls.append(call)
        work: list[Coroutine[Any, Any, None]] = []
        try:
            if fresh:
                work += await self._open(agent, box, message.get("step"), fresh, strict)
            for call in left:
                work.append(self._after_restart(agent, call, *asked[call]) if call in asked else self._lose(call))
            if parallel:
                await self._run.together(work)
            else:
                for one in work:
                    await one
        finally:
            for one in work:
                one.close()  # those that were not begun
            for call in calls:
                self.asked.pop(call, None)
            self._end(calls)
        return calls

    def _end(self, calls: Iterable[str]) -> None:
        """Close what is still open of calls that were given up, for their run may go on."""
        run = self._run
        if run.closed or self._topic.lost:
            return
        tx = run._begin()
        for call in calls:
            tool = run.state["tools"].get(call)
            if tool is not None and tool["status"] == "running":
                tx.append(self._topic, ToolClose(call, "cancelled", max(0, now_ms() - tool["ts"])))
        if not tx.empty:
            tx.submit()

    async def _open(
        self, agent: Agent, box: Toolbox, step: int | None, drafts: Sequence[Draft], strict: bool
    ) -> list[Coroutine[Any, Any, None]]:
        """Tell calls in one commit; gives what remains to be done."""
        run = self._run
        tools = [tool for draft in drafts if (tool := box.find(draft.name)) is not None]
        allowed = run.object.get("allow", {})
        verdicts = {tool.key: await self._engine.scopes.verdict(run.user, run.client, tool, allowed) for tool in tools}
        tx = run._begin()
        checked = [(draft, *_checked(box, draft)) for draft in drafts]
        holds = strict and any(fault is not None for *_, fault in checked)
        work: list[Any] = []
        for draft, tool, args, params, fault in checked:
            tx.append(self._topic, self._opening(draft, tool, args, step, agent))
            if holds and fault is None:
                error = {"kind": "tool.skipped", "message": "Another call of the same round did not fit its tool."}
                tx.append(self._topic, ToolClose(draft.call, "cancelled", 0, error=error))
            elif fault is not None or tool is None:
                error = {"kind": fault.kind, "message": fault.message, **fault.data} if fault is not None else {}
                tx.append(self._topic, ToolClose(draft.call, "invalid", 0, error=error))
            elif todo := self._admit(tx, verdicts[tool.key], draft.call, tool, args, params):
                work.append(todo)
        self._topics.flush_deltas(self._topic, tx)
        try:
            await tx.submit("ask_open")
        except BaseException:
            for todo in work:
                todo.close()
            raise
        return work

    def _opening(self, draft: Draft, tool: Tool | None, args: Any, step: int | None, agent: Agent) -> ToolOpen:
        opened = ToolOpen(draft.call, self._run.id, draft.name, "", args, "write", now_ms(), step)
        opened.agent, opened.again = agent.name, draft.again
        if tool is not None:
            opened.name, opened.origin, opened.risk = tool.name, tool.origin, tool.risk
            opened.connector, opened.title = tool.connector or None, tool.title or None
            opened.ends = True if tool in agent.own and tool.name in agent.ends else None
        return opened

    def _admit(
        self, tx: Transaction, verdict: Verdict, call: str, tool: Tool, args: Json, params: Any
    ) -> Coroutine[Any, Any, None] | None:
        """What the policies make of a call: it goes ahead, asks a person with the transaction, or is refused."""
        if verdict.policy == "deny":
            error = {"kind": "tool.denied", "message": "A policy forbids this tool."}
            tx.append(self._topic, ToolClose(call, "denied", 0, error=error))
            return None
        if verdict.policy == "ask":
            subject = {
                "tool": tool.name,
                "key": tool.key,
                "origin": tool.origin,
                "args": args,
                "risk": tool.risk,
                "fingerprint": tool.fingerprint,
            }
            if verdict.changed is not None:
                subject["changed"] = {"before": verdict.changed, "after": tool.definition}
            whose = f" of {tool.connector}" if tool.connector else ""
            title = f"Allow {tool.title or tool.name}{whose}?"
            options = APPROVAL if verdict.always else [o for o in APPROVAL if o != "allow_always"]
            ask = self._run.open_ask(tx, "approval", title, options, call=call, subject=subject, schema=tool.input)
            self.asked[call] = tool
            return self._after_approval(call, tool, params, ask)
        return self._execute(call, tool, params)

    async def _after_approval(self, call: str, tool: Tool, params: Any, ask: str) -> None:
        answer = await self._run.answer(ask)
        if not await self._denied(call, answer):
            await self._execute(call, tool, params if answer.args is None else tool.check(answer.args))

    async def _denied(self, call: str, answer: Answer) -> bool:
        """Whether an approval was not given; the call is closed then."""
        if answer.choice in ("allow_once", "allow_run", "allow_always"):
            return False
        nobody = answer.choice is None or answer.by is None
        why = "Nobody answered in time." if nobody else "The user denied this call."
        await self._close_call(call, "denied", 0, error={"kind": "tool.denied", "message": why})
        return True

    async def _lose(self, call: str) -> None:
        await self._close_call(call, "lost", 0)

    async def _after_restart(self, agent: Agent, call: str, ask: str, asked: Json) -> None:
        """Run an approved call, if its tool is the one that was shown; any other one again, if that does no harm."""
        opened = self._run.state["tools"][call]
        key = _key(opened)
        subject = asked.get("subject") or {}
        approved = asked["kind"] == "approval" and subject.get("key", subject.get("tool")) == key
        answer = await self._run.answer(ask)
        if approved and await self._denied(call, answer):
            return
        tool = (await self._run._toolbox(agent)).find(key)
        if tool is None:  # its connector may be slower than the hub was
            self._run._offered = None
            tool = (await self._run._toolbox(agent)).find(key)
        if tool is None or not (approved or tool.idempotent):
            await self._lose(call)
        elif approved and subject.get("fingerprint", tool.fingerprint) != tool.fingerprint:
            error = {"kind": "tool.lost", "message": "The tool has changed since it was asked about."}
            await self._close_call(call, "lost", 0, error=error)
        else:
            try:
                params = tool.check(opened["args"] if answer.args is None else answer.args)
            except Fault as e:  # while the tool was not there, edited arguments could not be checked
                error = {"kind": "tool.args", "message": f"The arguments do not fit: {e.message}"}
                await self._close_call(call, "invalid", 0, error=error)
            else:
                await self._execute(call, tool, params, answer if asked["kind"] != "approval" else None)

    async def _execute(self, call: str, tool: Tool, params: Any, given: Answer | None = None) -> None:
        loop = asyncio.get_running_loop()
        began = loop.time()
        status: ToolStatus = "error"
        result: Any = None
        ref: str | None = None
        error: Json | None = None
        context = CallContext(self._run, call, tool, given)
        self._run._mark(active=1)
        try:
            async with asyncio.timeout(tool.timeout_s) as limit:
                context.limit = limit
                given_back = await tool.call(params, context)
            result, ref = await self._keep_result(given_back, tool)
            status = "ok"
        except TimeoutError:
            timed_out = limit.expired()
            status = "timeout" if timed_out else "error"
            message = f"No answer within {context.limit_s:g} s." if timed_out else "The tool timed out."
            error = {"kind": "tool.timeout", "message": message}
        except ToolError as e:
            error = {"kind": e.kind, "message": str(e)[:10_000]}
        except ToolLost as e:
            status, error = "lost", {"kind": "tool.lost", "message": str(e)}
        except Fault as e:
            error = {"kind": e.kind, "message": e.message}
        except (asyncio.CancelledError, RunEnded, RunLimit):
            context.cancelled = True
            raise
        except (Exception, *EXITS) as e:
            log.exception("run %s: tool %s failed", self._run.id, tool.name)
            error = {"kind": "tool.error", "message": f"The tool failed ({type(e).__name__})."}
        finally:
            context.end()
            self._run._mark(active=-1)
        ms = round((loop.time() - began) * 1000)
        await self._close_call(call, status, ms, result=result, error=error, ref=ref)

    async def _close_call(
        self,
        call: str,
        status: ToolStatus,
        ms: int,
        *,
        result: Any = None,
        error: Json | None = None,
        ref: str | None = None,
    ) -> None:
        await self._run.emit(ToolClose(call, status, ms, result, error, ref), crash="tool_done_before_commit")

    async def _keep_result(self, given: Any, tool: Tool) -> tuple[Any, str | None]:
        """A tool's result as plain JSON, its bytes as files of the user; and the file of one that is shown cut.

        Raises:
            ToolError: It is no JSON, or larger than a file may be.
            Fault: store.full and its like.
        """
        if isinstance(given, Result):
            plain: Any = {"content": [await self._engine.keep_content(self._run.user, item) for item in given.content]}
            if given.data is not None:
                plain["data"] = plain_json(given.data)
        else:
            plain = plain_json(given)
        body = msgspec.json.encode(plain)
        if len(body) <= MAX_RESULT:
            return plain, None
        whole, mime = (plain.encode(), "text/plain") if isinstance(plain, str) else (body, "application/json")
        if len(whole) > self._engine.file_bytes:
            raise ToolError(f"The tool's result is too large ({len(whole)} bytes).")
        name = f"{tool.name}.{'txt' if isinstance(plain, str) else 'json'}"
        kept = await self._engine.blobs.put(self._run.user.id, whole, mime, name)
        note = f"[cut: the result has {len(whole)} bytes]"
        if isinstance(plain, dict) and isinstance(plain.get("content"), list):
            shown = _shortened(plain["content"], MAX_RESULT // 4)
            return {"content": [*shown, {"kind": "text", "text": note}]}, kept.ref
        return f"{whole[: MAX_RESULT // 4].decode(errors='ignore')}\n{note}", kept.ref

    # what a tool asks the model

    async def sample(
        self,
        call: str,
        tool: Tool,
        messages: Sequence[SampleMessage],
        system: str | None,
        max_tokens: int | None,
        temperature: float | None,
        stop: list[str] | None,
    ) -> Sampled:
        """Ask the run's model what a tool wants to know, once a person has allowed it, in a step of its own.

        Raises:
            ToolError: It was denied, or the model failed.
            RunLimit: A budget is used up.
        """
        key = f"{tool.key}#model"
        asked = [text_message(m.role, "\n".join(_content_words(c) for c in m.content)) for m in messages]
        if key not in self._run.object.get("allow", {}):
            tx = self._run._begin()
            shown = [{"role": m.role, "text": m.text[:2000]} for m in asked]
            subject = {"tool": tool.name, "key": key, "origin": tool.origin, "system": system, "messages": shown}
            title = f"Let {tool.title or tool.name} ask the model?"
            ask = self._run.open_ask(
                tx, "approval", title, [o for o in APPROVAL if o != "allow_always"], call=call, subject=subject
            )
            await tx.submit("ask_open")
            self._run._mark(active=-1)
            try:
                answer = await self._run.answer(ask)
            finally:
                self._run._mark(active=1)
            if answer.choice not in ("allow_once", "allow_run"):
                raise ToolError("The user did not let the tool ask the model.")
        async with self._sampling:
            return await self._sample(tool, asked, system, max_tokens, temperature, stop)

    async def _sample(
        self,
        tool: Tool,
        asked: list[Message],
        system: str | None,
        max_tokens: int | None,
        temperature: float | None,
        stop: list[str] | None,
    ) -> Sampled:
        await self._engine.budgets.check(self._run.user.id)
        config = self._run.config()
        name, provider, model = self._run._choose(config)
        number = self._run.object["step"] + 1
        ear = Ear(self._run, name)
        self._run.listen(number, ear)
        await self._run.emit(StepOpen(self._run.id, number, name, tool.origin, now_ms()))
        began = asyncio.get_running_loop().time()
        wanted = msgspec.structs.replace(
            config,
            max_tokens=min(max_tokens or SAMPLE_TOKENS, config.max_tokens or SAMPLE_TOKENS),
            temperature=config.temperature if temperature is None else temperature,
            stop=stop[:4] if stop else None,
        )
        messages = [*([text_message("system", system)] if system else []), *asked]
        request = make_request(model, messages, Toolbox((), {}), wanted)
        try:
            exchange = await Attempts(self._run, number, name, provider, request, wanted, ear).run()
        except ProviderError as e:
            self._run.emit(
                StepClose(self._run.id, number, "failed", ear.usage, error=RunError(e.kind, e.message, e.retry))
            )
            raise ToolError(f"The model failed: {e.message}") from None
        except BaseException:  # the tool may have given up waiting, and its run goes on
            if not self._run.closed and not self._topic.lost:
                self._run.emit(StepClose(self._run.id, number, "cancelled", ear.usage, model=name))
            raise
        ms = round((asyncio.get_running_loop().time() - began) * 1000)
        await self._run.emit(StepClose(self._run.id, number, ear.finish, ear.usage, ms, exchange.request, model=name))
        return Sampled(ear.text, name, ear.finish)


def _checked(box: Toolbox, draft: Draft) -> tuple[Tool | None, Any, Any, Fault | None]:
    """A draft's tool, its arguments, these as the tool takes them, and what is wrong with it."""
    tool = box.find(draft.name)
    fault: Fault | None = None
    params: Any = None
    try:
        args: Any = msgspec.json.decode(draft.text) if draft.text.strip() else {}
    except (msgspec.MsgspecError, RecursionError, UnicodeError):
        args, fault = draft.text, Fault("tool.args", "The arguments are not JSON; send one JSON object.", code=422)
    if fault is None and not isinstance(args, dict):
        fault = Fault("tool.args", "The arguments have to be a JSON object.", code=422)
    if tool is None:
        fault = Fault("tool.unknown", f"There is no tool {draft.name!r}; use one of those that are offered.")
    elif fault is None:
        try:
            params = tool.check(args)
        except Fault as e:
            fault = Fault("tool.args", f"The arguments do not fit: {e.message}", code=422, path=e.data.get("path"))
    return tool, args, params, fault


def _key(opened: Json) -> str:
    """The key of the tool that a call was opened with."""
    return f"{opened['connector']}/{opened['name']}" if opened.get("connector") else str(opened["name"])


def _shortened(content: list[Any], limit: int) -> list[Any]:
    """Content that is too long: as many of its items as fit, the small ones first, and a text as far as it fits."""
    sizes = [len(msgspec.json.encode(item)) for item in content]
    out: dict[int, Any] = {}
    for i in sorted(range(len(content)), key=sizes.__getitem__):
        item = content[i]
        if sizes[i] <= limit:
            out[i] = item
            limit -= sizes[i]
        elif isinstance(item, dict) and isinstance(text := item.get("text"), str):
            out[i] = {**item, "text": text.encode()[:limit].decode(errors="ignore")}
            break
    return [out[i] for i in sorted(out)]


def _content_words(item: Content) -> str:
    """An item as words: what a tool asks the model is text."""
    if isinstance(item, BlobContent):
        return f"[{item.mime}{': ' if item.name else ''}{item.name}]"
    return transcript.content_text({"content": [plain_json(item)]})
