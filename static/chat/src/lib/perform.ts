/** Does what a command says, through what the page has for it anyway. */
import type { Command } from './commands';
import { composer } from './composer.svelte';
import { connectors, type Preset } from './connectors.svelte';
import { hub } from './hub.svelte';
import { describePatch } from './live';
import { notices } from './notices.svelte';
import { preferences } from './preferences.svelte';
import type { OfferedPrompt, Resource } from './prompts';
import { router } from './route.svelte';
import { ui } from './ui.svelte';

/** Open the model picker for the reply that is being written, the conversation, or the chat to come. */
export function pickModel() {
  if (ui.picking) return;
  ui.picking = {
    title: 'Choose a model',
    note: hub.isBusy ? 'For the reply that is being written, from its next step on.'
      : router.conv === null ? 'For this new chat.'
      : 'For this conversation, from the next message on.',
    current: hub.model?.id ?? null,
    onpick: (model) => void configure('model', model),
  };
}

/** Open the model picker for a message that a model failed on; it is sent again once another one is chosen. */
export function pickAnother(failed: string | null, sendAgain: () => void) {
  ui.picking = {
    title: 'Choose another model',
    note: 'For this conversation. Your message is sent to it again.',
    current: failed,
    onpick: async (model) => {
      if (model === hub.model?.id || (await hub.configure('model', model)) !== null) sendAgain();
    },
  };
}

export async function perform(command: Command) {
  switch (command.name) {
    case 'new':
      router.go(null);
      composer.focus();
      break;
    case 'stop':
      if (hub.isBusy) await hub.stop();
      else notices.toast('No reply is being written.');
      break;
    case 'connectors':
      ui.dialog = 'connectors';
      break;
    case 'settings':
      ui.live = true;
      break;
    case 'help':
      ui.dialog = 'shortcuts';
      break;
    case 'theme':
      preferences.theme = command.theme ?? (isDark() ? 'light' : 'dark');
      break;
    case 'model':
      await configure('model', command.model);
      break;
    case 'temperature':
      await configure('temperature', command.temperature);
      break;
    case 'system':
      await configure('system', command.system);
      break;
    case 'preset':
      await setPreset(connectors.presets.find((one) => one.name === command.preset));
      break;
  }
}

function isDark(): boolean {
  return preferences.theme === 'system' ? matchMedia('(prefers-color-scheme: dark)').matches : preferences.theme === 'dark';
}

/** Set a preset; for the chat to come it is seen as chips. */
export async function setPreset(preset: Preset | undefined) {
  if (preset && (await connectors.applyPreset(preset)) && router.conv !== null) notices.toast(`${preset.title}, from the next message`);
}

/** Put a prompt into the composer, or ask for its arguments first. */
export async function usePrompt(prompt: OfferedPrompt) {
  if (prompt.arguments?.length) {
    ui.filling = { kind: 'prompt', prompt };
    return;
  }
  try {
    const { text, uploads } = await connectors.getPrompt(prompt, {});
    composer.add(uploads);
    composer.append(text);
  } catch (error) {
    notices.error(error);
  }
}

/** Attach a resource, or ask first what its address lacks. */
export function useResource(resource: Resource) {
  if (resource.template) ui.filling = { kind: 'resource', resource };
  else void connectors.attach(resource);
}

const WHERE = { run: 'from the next step', conv: 'from the next message' };

async function configure(name: 'model' | 'temperature' | 'system', value: string | number | null) {
  const at = await hub.configure(name, value);
  if (at === null || (at === 'new' && value !== null)) return; // told already, or seen as a chip
  const shown = name === 'model' && typeof value === 'string' ? hub.modelName(value) : value;
  notices.toast(at === 'new' ? describePatch({ [name]: null }) : `${describePatch({ [name]: shown })}, ${WHERE[at]}`);
}
