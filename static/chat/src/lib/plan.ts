/** A plan of a run, as its kind keeps it (`data.plan`), and as a checklist for people. Pure. */
import { isObject } from './forms';

export type StepStatus = 'pending' | 'running' | 'done' | 'failed' | 'dropped';

export interface PlanStep {
  id: string;
  title: string;
  task: string;
  status: StepStatus;
  /** Titles of the steps that it builds on. */
  needs: string[];
  /** The specialist who does it. */
  agent: string;
  /** The agents that tried it, the newest last. */
  speaker: string;
  tries: number;
  /** In which revision of the plan it was written. */
  rev: number;
  result: string;
  error: string;
  /** Since when it is so, Unix ms. */
  ts?: number;
}

export interface Plan {
  rev: number;
  steps: PlanStep[];
  /** Steps that a change took out. */
  dropped: PlanStep[];
  done: number;
  /** How often it was changed since a step failed. */
  mended: number;
  isApproved: boolean;
}

const STATUS = new Set<string>(['pending', 'running', 'done', 'failed', 'dropped']);
const words = (value: unknown): string => (typeof value === 'string' ? value : '');
const count = (value: unknown): number => (typeof value === 'number' ? value : 0);

/** The plan in what a run's kind keeps; null where there is none, or none with steps. */
export function planOf(data: unknown): Plan | null {
  const plan = isObject(data) ? data.plan : null;
  if (!isObject(plan) || !isObject(plan.steps)) return null;
  const given = plan.steps as Record<string, any>;
  const ids = Array.isArray(plan.order) ? plan.order.filter((id): id is string => typeof id === 'string' && isObject(given[id])) : Object.keys(given);
  const all = ids.map((id) => stepOf(id, given));
  if (all.length === 0) return null;
  const steps = all.filter((step) => step.status !== 'dropped');
  return {
    rev: count(plan.rev), mended: count(plan.mended), steps, dropped: all.filter((step) => step.status === 'dropped'),
    done: steps.filter((step) => step.status === 'done').length, isApproved: plan.approved === plan.rev && plan.rev !== undefined,
  };
}

function stepOf(id: string, given: Record<string, any>): PlanStep {
  const { title, task, status, needs, agent, speaker, tries, rev, result, error, ts } = given[id];
  return {
    id, title: words(title) || id, task: words(task), status: STATUS.has(status) ? status : 'pending',
    needs: Array.isArray(needs) ? needs.map((need) => words(given[need]?.title) || String(need)) : [],
    agent: words(agent), speaker: words(speaker), tries: count(tries), rev: count(rev), result: words(result), error: words(error),
    ...(typeof ts === 'number' ? { ts } : {}),
  };
}

/** How far a plan is, in words. */
export function planWords({ steps, done, mended }: Plan): string {
  const failed = steps.filter((step) => step.status === 'failed').length;
  const running = steps.filter((step) => step.status === 'running').length;
  return [
    `${done} of ${steps.length} done`,
    running > 0 ? `${running} running` : '',
    failed > 0 ? `${failed} failed` : '',
    mended > 0 ? `changed ${mended === 1 ? 'once' : `${mended} times`}` : '',
  ].filter(Boolean).join(', ');
}
