// A client written from docs/ alone, without the hub's source: node plain_client.mjs URL MESSAGE does one run.
const [url, text] = process.argv.slice(2), start = { input: [{ kind: 'text', text }], key: crypto.randomUUID() }
let ws, resume, timer, waiting, nextId = 0, quiet, tries = 0, after = 0, over = false // the connection
let run, topic, topics = {}, t, at = {}, asking, state = { messages: [], runs: {} }, printed = new Map() // the run
const { assign, entries } = Object, watch = () => (clearTimeout(timer), (timer = setTimeout(gone, quiet, 1006)))
const send = (thing) => ws.send(JSON.stringify(thing))
const request = (method, params, then) => (waiting.set(++nextId, then), send({ id: nextId, method, params }))
function connect() {
  ;(ws = new WebSocket(url, 'sag.1.json')), (waiting = new Map()), (quiet = 10_000), (after = 0), watch()
  ws.onopen = () => request('hello', { v: 1, client: { id: 'plain', kind: 'cli' }, topics, resume }, greeted)
  ws.onmessage = ({ data }) => (watch(), [JSON.parse(data)].flat().forEach(receive)) // one object, or an array
  ws.onclose = ws.onerror = ({ code = 1006 }) => gone(code) // Node 20 tells of a refused connection by an error alone
}
function gone(code) { // this connection is of no use any more
  clearTimeout(timer), (ws.onopen = ws.onmessage = ws.onclose = ws.onerror = null), ws.close()
  if (code === 4003) resume = null // somebody else goes on with the session
  if (code >= 4500) end('failed', `The hub closed for good: ${code}.`)
  else setTimeout(connect, after + Math.random() * Math.min(30_000, 500 * 2 ** tries++))
}
function receive(x) {
  if (over || !ws.onmessage) return // what stood before in this batch was the end of it
  if ('e' in x) event(x)
  else if ('ping' in x) send({ pong: x.ping }), x.heads?.[t] > at.off && subscribe()
  else if (x.method === 'bye') after = x.params.after_ms
  else if (x.method === 'topic.closed') x.params.t === t && subscribe() // answered by an error if it is no more
  else if (x.error?.data?.retry) (after = x.error.data.after_ms ?? 500), gone(1000) // sent again after the next hello
  else if (x.error) /^ask\./.test(x.error.data?.kind) ? console.error(x.error.message) : end('failed', x.error.message)
  else waiting.get(x.id)?.(x.result)
}
function greeted({ session, ping, topics }) {
  ;(resume = { session: session.id, secret: session.secret }), (tries = 0)
  ;(quiet = ping.every_ms + ping.timeout_ms), watch()
  if (run) return place(topics[topic])
  request('run.start', start, (answer) => (({ run } = answer), (topic = `conv:${answer.conv}`), place(answer.topic)))
}
const subscribe = () => asking === ws || ((asking = ws), request('topic.subscribe', { topic, ...at }, place))
function place(answer) { // the answer of a subscribe
  if (!answer?.t) return subscribe() // it was refused beside other things: ask for it alone
  ;({ t, gen: at.gen, off: at.off } = answer), (topics[topic] = at), (asking = null), (state = answer.snap ?? state)
  entries(state.asks).forEach(allow), show()
}
const allow = ([ask, d]) => d.run === run && request('ask.answer', { ask, choice: 'allow_once', key: start.key + ask })
function event({ t: under, o, p = o - 1, e, d }) { // the cursor rule
  if (under !== t || asking === ws || o === undefined || o <= at.off) return
  if (p !== at.off) return subscribe()
  fold[e]?.(d), (at.off = o), show()
}
const part = (n) => state.messages.flatMap((m) => m.parts).find((p) => p.part === n) ?? {} // {}: of no consequence
const merge = (to, patch) => entries(patch).forEach(([k, v]) => // RFC 7396
  v === null ? delete to[k] : Object(v) === v && !Array.isArray(v) ? merge((to[k] ??= {}), v) : (to[k] = v))
const fold = { // by the documentation's table
  'message.add': (d) => state.messages.push({ ...d, parts: d.parts.map((p) => ({ ...p, open: false })) }),
  'message.drop': (d) => (state.messages = state.messages.filter((m) => m.msg !== d.msg)),
  'part.open': ({ run: _, msg: id, ...d }) =>
    state.messages.find(({ msg }) => msg === id)?.parts.push({ ...d, text: '', open: true }),
  delta: (d) => d.forEach((x, i) => i % 2 && (part(d[i - 1]).text += x)),
  'part.close': (d) => assign(part(d.part), { open: false }, d.partial && { partial: true }),
  'part.drop': (d) => state.messages.forEach((m) => (m.parts = m.parts.filter((p) => p.part !== d.part))),
  'run.open': ({ run: id, ...d }) => (state.runs[id] = { ...d, step: 0, usage: { input: 0, output: 0 } }),
  run: (d) => merge(state.runs[d.run] ?? {}, d.patch),
  'run.close': ({ run: id, ts, ...d }) => assign(state.runs[id] ?? {}, { error: undefined, after_ms: undefined }, d),
  'tool.open': ({ call, ...d }) => (state.tools[call] = { ...d, status: 'running' }),
  'tool.progress': ({ call, ...d }) => console.error(assign(state.tools[call] ?? {}, { progress: d }).progress),
  'tool.close': ({ call, ...d }) => assign(state.tools[call] ?? {}, d),
  'ask.open': ({ ask, ...d }) => allow([ask, (state.asks[ask] = d)]),
  'ask.close': (d) => delete state.asks[d.ask],
}
const spoken = () => state.messages.filter((m) => m.role === 'assistant' && m.run === run)
  .flatMap((m) => m.parts).filter((p) => p.kind === 'text')
function show() { // print what is new, and see the end
  for (const p of spoken()) process.stdout.write(p.text.slice(printed.get(p.part))), printed.set(p.part, p.text.length)
  if (/^(done|cancelled|failed|limit|interrupted)$/.test(state.runs[run]?.status)) end(state.runs[run].status)
}
function end(status, why) {
  ;(over = true), clearTimeout(timer), (why ??= state.runs[run]?.error?.message) && console.error(why)
  const last = JSON.stringify({ status, text: spoken().map((p) => p.text).join('') })
  process.stdout.write(`\n${last}\n`, () => process.exit(status === 'done' ? 0 : 1))
}
connect()
