/**
 * The frames of protocol `sag.1` as this client sees them (protocol sections 1 to 3 and 8).
 *
 * Types and the telling apart of frames; no I/O and no state. `client` reads frames through here.
 */

/** An event of a topic; without `o` it is ephemeral. */
export interface TopicEvent {
  t?: number;
  /** Offset; in a merged frame the last of its range. */
  o?: number;
  /** The offset that this frame follows; `o - 1` when absent. */
  p?: number;
  e: string;
  d?: any;
  /** 1 in a replayed frame. */
  r?: number;
}

export interface ErrorBody {
  code: number;
  message?: string;
  data?: any;
}

export type Id = number | string;

export interface RequestFrame { id: Id; method: string; params?: any }
export interface NotificationFrame { method: string; params?: any }
export interface ResponseFrame { id: Id; result?: any; error?: ErrorBody }
export interface PingFrame { ping: number; heads?: Record<string, number> }

export type Sorted =
  | { is: 'event'; frame: TopicEvent }
  | { is: 'request'; frame: RequestFrame }
  | { is: 'notification'; frame: NotificationFrame }
  | { is: 'response'; frame: ResponseFrame }
  | { is: 'ping'; frame: PingFrame }
  | { is: 'unknown' };

/** Tells what an object of a text frame is, by its keys in the order of protocol section 1. */
export function sortFrame(frame: any): Sorted {
  if (typeof frame !== 'object' || frame === null) return { is: 'unknown' };
  if ('e' in frame) return { is: 'event', frame };
  if ('method' in frame) return { is: 'id' in frame ? 'request' : 'notification', frame };
  if ('id' in frame) return { is: 'response', frame };
  if ('ping' in frame) return { is: 'ping', frame };
  return { is: 'unknown' };
}

/** A position that the server could not serve: events between it and the snapshot are not told. */
export interface Lost { gen?: string; from?: number }

/** What `topic.subscribe` answers, in the answers of `hello` and `run.start` too. */
export interface SubscribeAnswer {
  t: number;
  mode: 'replay' | 'snapshot';
  gen: string;
  off: number;
  head: number;
  snap?: any;
  lost?: Lost;
}
export type SubscribeOutcome = SubscribeAnswer | { error: ErrorBody };

export interface Bye { code: number; reason?: string; reconnect?: boolean; after_ms?: number }
export interface UserInfo { id: string; name?: string; roles?: string[]; [member: string]: unknown }
export interface ServerInfo { name: string; version: string; [member: string]: unknown }
export interface Limits { frame: number; inflight: number; topics: number; [member: string]: unknown }
/** The session without its secret, which stays inside the client. */
export interface SessionInfo { id: string; resumed: boolean; keep_ms: number }
export interface PingTimes { every_ms: number; timeout_ms: number }

export interface HelloAnswer {
  v: number;
  server?: ServerInfo;
  user?: UserInfo;
  session: { id: string; secret: string; resumed: boolean; keep_ms: number };
  tools_refused?: string[];
  ping?: Partial<PingTimes>;
  limits?: Partial<Limits>;
  topics?: Record<string, SubscribeOutcome>;
}
