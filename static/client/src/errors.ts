/**
 * The one error class of the client, and the errors that it makes itself.
 *
 * Errors of the server keep its `kind`; those that arise here have a kind that begins with `client.`. Everything above
 * throws or rejects with these.
 */
import type { ErrorBody } from './wire';

/**
 * A request that was not fulfilled.
 *
 * `code` is one of JSON-RPC's negative codes or an HTTP status, `kind` the stable name to branch on, `retry` says
 * whether the same request may succeed later, `afterMs` how long to wait before.
 *
 * Kinds made by this client: `client.cancelled` (499), `client.timeout` (408), `client.closed` (503: the client was
 * closed or sent away for good), `client.cut` (503: the connection broke under a request that may not be sent again),
 * `client.frame` (413: larger than the server's `limits.frame`), `client.hello` (502: an answer that makes no sense).
 */
export class RpcError extends Error {
  override readonly name = 'RpcError';
  readonly code: number;
  readonly kind: string;
  readonly retry: boolean;
  readonly afterMs?: number;
  readonly data?: any;

  constructor(body: ErrorBody) {
    const data = body.data;
    super(body.message ?? data?.kind ?? `error ${body.code}`);
    this.code = body.code;
    this.kind = typeof data?.kind === 'string' ? data.kind : String(body.code);
    this.retry = data?.retry === true;
    if (typeof data?.after_ms === 'number') this.afterMs = data.after_ms;
    if (data !== undefined) this.data = data;
  }
}

/** Makes an error that arose in this client. */
export function clientError(code: number, kind: string, message: string, retry = false): RpcError {
  return new RpcError({ code, message, data: { kind: `client.${kind}`, retry } });
}
