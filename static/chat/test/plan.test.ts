import { describe, expect, it } from 'vitest';
import { planOf, planWords } from '../src/lib/plan';

const DATA = {
  plan: {
    rev: 2, order: ['find', 'old', 'sum'], said: 1, mended: 1, approved: 2,
    steps: {
      find: { title: 'Find the figures', task: 'Find', needs: [], agent: 'data', status: 'done', rev: 1, tries: 1, speaker: 'find', result: '**3**', ts: 5 },
      old: { title: 'Guess', task: 'Guess', needs: [], status: 'dropped', rev: 1, tries: 0 },
      sum: { title: 'Add up', task: 'Add', needs: ['find', 'gone'], status: 'running', rev: 2, tries: 2, speaker: 'sum.2', ts: 9 },
    },
  },
};

describe('a plan', () => {
  it('is a checklist in its order, with what was dropped apart', () => {
    const plan = planOf(DATA)!;
    expect(plan.steps.map((step) => [step.id, step.status, step.needs])).toEqual([['find', 'done', []], ['sum', 'running', ['Find the figures', 'gone']]]);
    expect(plan.dropped.map((step) => step.id)).toEqual(['old']);
    expect([plan.rev, plan.done, plan.isApproved]).toEqual([2, 1, true]);
    expect(planWords(plan)).toBe('1 of 2 done, 1 running, changed once');
  });

  it('is none where a kind keeps no plan, or one without steps', () => {
    expect([planOf(undefined), planOf({}), planOf({ plan: null }), planOf({ plan: { rev: 1, order: [], steps: {} } }), planOf({ plan: 'five steps' })]).toEqual([null, null, null, null, null]);
  });

  it('stands with what is odd left out of it', () => {
    const plan = planOf({ plan: { order: ['a', 'nowhere', 7], steps: { a: { status: 'lost in thought' } } } })!;
    expect(plan.steps).toEqual([{ id: 'a', title: 'a', task: '', status: 'pending', needs: [], agent: '', speaker: '', tries: 0, rev: 0, result: '', error: '' }]);
    expect(plan.isApproved).toBe(false);
  });
});
