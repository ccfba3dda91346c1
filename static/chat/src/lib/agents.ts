/**
 * Who acts in a run: what an agent is called, which colour and which side it has, and what it hands over. Pure.
 *
 * The hub names agents by short ids; what people call them comes with the run (`titles`), or with its config (`bots`).
 */
import { mergePatch, type RunState, type ToolState } from '@sag/client';

export interface Speaker {
  id: string;
  name: string;
  /** Which of the page's colours for agents it has, from 1. */
  colour: number;
  /** Where its words stand; one side where there are more than two, or one. */
  side: 'left' | 'right';
}

export interface Named {
  name: string;
  /** 0 where the page has none. */
  colour: number;
}

/** Something that an agent did, told in a thin line: that it handed over to another, or made a plan. */
export interface Line {
  who: Named;
  to?: Named;
  text: string;
}

/** So many colours there are; then they begin again. */
export const COLOURS = 6;

/** The agents of a run: those of its config in their order, then the others in the order in which they began. */
export function speakersOf(run: RunState): Map<string, Speaker> {
  const bots = botsOf(run);
  const ids = [...new Set([...Object.keys(bots), ...Object.keys(run.agents ?? {})])];
  const colours = [...new Set(ids.map(baseOf))];
  const talkers = Object.keys(bots).length > 0 ? Object.keys(bots) : isDialogue(run.kind) ? ids : [];
  return new Map(ids.map((id) => [id, {
    id,
    name: run.titles?.[id] || nameOf(bots[id]) || titled(id),
    colour: (colours.indexOf(baseOf(id)) % COLOURS) + 1,
    side: talkers.length === 2 && talkers[1] === id ? 'right' : 'left',
  }]));
}

/** An agent that has another go at something is called `find.2`, and has the colour of the first one. */
function baseOf(id: string): string {
  return id.replace(/\.\d+$/, '');
}

/** Whether the agents of a kind talk with each other, rather than with the person. */
export function isDialogue(kind: string | undefined): boolean {
  return kind === 'dialogue';
}

/** The bots of a run's config, by id, with what the layers below it say of them. */
export function botsOf(run: Pick<RunState, 'config'> & { base?: unknown }): Record<string, any> {
  const below = (run.base as Record<string, any> | undefined)?.bots ?? {};
  return mergePatch(below, run.config?.bots ?? {});
}

function nameOf(bot: any): string {
  return typeof bot?.name === 'string' ? bot.name : '';
}

/** An id as people would write it: `billing_desk` is `Billing desk`. */
export function titled(id: string): string {
  const words = id.replace(/[._-]+/g, ' ').trim();
  return words.charAt(0).toUpperCase() + words.slice(1);
}

/** Who chooses the next speaker takes no turn itself. */
export const MODERATOR = 'moderator';

/** What a call that ends its agent's turn says in a line; null where it is a call like others. */
export function lineOf(tool: ToolState, speakers: ReadonlyMap<string, Speaker>): Line | null {
  if (tool.ends !== true || tool.status !== 'ok' || typeof tool.args !== 'object' || tool.args === null) return null;
  const args = tool.args as Record<string, unknown>;
  const of = (id: string): Named => {
    const known = speakers.get(id);
    return { name: known?.name ?? titled(id), colour: known?.colour ?? 0 };
  };
  const who = of(tool.agent ?? '');
  if (tool.name === 'hand_over' && typeof args.agent === 'string') return { who, to: of(args.agent), text: typeof args.note === 'string' ? args.note : '' };
  if (tool.name === 'next_speaker' && typeof args.bot === 'string') return { who, to: byName(args.bot, speakers) ?? of(args.bot), text: '' };
  if (tool.name === 'give_up' && typeof args.reason === 'string') return { who, text: `gave up: ${args.reason}` };
  if (!Array.isArray(args.steps)) return null;
  const steps = args.steps.length === 1 ? '1 step' : `${args.steps.length} steps`;
  if (tool.name === 'make_plan') return { who, text: `made a plan of ${steps}` };
  return tool.name === 'revise_plan' ? { who, text: `changed the plan: ${args.steps.length === 0 ? 'nothing is left to do' : `${steps} to do`}` } : null;
}

/** A moderator may call an agent by its name. */
function byName(name: string, speakers: ReadonlyMap<string, Speaker>): Named | undefined {
  return [...speakers.values()].find((one) => one.name === name);
}
