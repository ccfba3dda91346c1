/**
 * Everything that a frontend imports of the socket client.
 *
 * The other modules of this folder are private: what is not named here may change.
 */
export { Client } from './client';
export type { ConfigAnswer, Events, PatchAnswer, RunAnswer, StartRun } from './client';
export { RpcError } from './errors';
export type { Clock, ClientTool, Options, RequestOptions, Status, ToolContext, ToolContent, ToolResult } from './options';
export type { ErrorKind, Events as TopicEvents, Operations } from './protocol.gen';
export { emptyClient, emptyConv, emptyHub, emptyUser, mergePatch, reduceClient, reduceConv, reduceHub, reduceUser } from './reduce';
export type {
  AppliedConfig, Asked, AskState, ClientState, ConfigChange, ConfigDoc, ConvProperties, ConvState, HubState, InboxAsk, InboxConv, InboxRun,
  Message, OpenStep, Part, PartKind, Role, RunFault, RunState, RunStatus, ToolProgress, ToolState, ToolStatus, Trimmed, Usage, UserState,
  Waiting,
} from './shapes';
export type { Change, TopicHandle } from './topic';
export type { Bye, Limits, Lost, ServerInfo, SessionInfo, TopicEvent, UserInfo } from './wire';
