// Runs AG-UI's public client, HttpAgent, unchanged: a job as JSON on stdin, what came as JSON on stdout.
//
// A job has `url`, `thread`, `tools`, and `turns`, one after the other on one agent. A turn has what runAgent is given
// besides, `say` (a user's message before it), `answers` (what each of the frontend's tools gives; then the agent runs
// again), `abort` (at the first event of that type).
import { HttpAgent } from "@ag-ui/client";

let input = "";
for await (const piece of process.stdin) input += piece;
const job = JSON.parse(input);
const agent = new HttpAgent({ url: job.url, threadId: job.thread, initialMessages: job.messages ?? [] });
const warnings = [];
console.warn = (...words) => warnings.push(words.map(String).join(" "));
let said = 0;

async function run(parameters, abort) {
  const events = [];
  const finished = {};
  const subscriber = {
    onEvent({ event }) {
      events.push(event);
      if (event.type === abort) agent.abortRun();
    },
    onRunFinishedEvent({ event, messages, state, agent: _, input: __, ...rest }) {
      Object.assign(finished, rest);
    },
  };
  try {
    await agent.runAgent({ tools: job.tools ?? [], ...parameters }, subscriber);
    return { events, finished };
  } catch (e) {
    return { events, finished, error: String(e.message), status: e.status ?? null };
  }
}

const out = [];
for (const turn of job.turns) {
  const { say, answers, abort, ...parameters } = turn;
  if (say !== undefined) agent.addMessage({ id: `said-${++said}`, role: "user", content: say });
  out.push(await run(parameters, abort));
  for (let round = 0; answers && round < 5 && out.at(-1).finished.pendingToolCallIds?.length; round++) {
    const calls = agent.messages.flatMap((m) => m.toolCalls ?? []);
    for (const id of out.at(-1).finished.pendingToolCallIds) {
      const name = calls.find((call) => call.id === id).function.name;
      agent.addMessage({ id: `answer-${id}`, role: "tool", toolCallId: id, content: answers[name] });
    }
    out.push(await run(parameters));
  }
}
console.log(JSON.stringify({ runs: out, messages: agent.messages, state: agent.state, warnings }));
