/** Runs and conversations as files, and conversations out of files. */
import { hub } from './hub.svelte';
import { notices } from './notices.svelte';
import { router } from './route.svelte';
import { fetchFrom, saveAs, Upload } from './uploads.svelte';

const LABELS: Record<string, string> = { md: 'Markdown', html: 'HTML', pdf: 'PDF', json: 'JSON' };
/** In the order in which people look for them; others follow. */
const ORDER = ['pdf', 'html', 'md', 'json'];
/** The plugin that hands them out as downloads. */
const PLUGIN = 'export';

interface Exported {
  name: string;
  mime: string;
  text?: string;
  ref?: string;
}

/** An entry of a menu. */
interface Entry {
  label: string;
  icon: 'download';
  disabled: boolean;
  run: () => void;
}

class Exports {
  /** The formats that the hub makes. */
  formats = $state.raw<string[]>(['json']);
  /** What is being made. */
  #making = $state.raw<ReadonlySet<string>>(new Set());
  #isAsked = false;

  /** Ask once which formats there are. */
  async load() {
    if (this.#isAsked) return;
    this.#isAsked = true;
    try {
      const { formats } = await hub.client.request<{ formats: { format: string }[] }>('export.formats');
      this.formats = formats.map(({ format }) => format);
    } catch {
      this.#isAsked = false; // the menu goes on with what it has, and asks when a conversation is opened next
    }
  }

  /** Entries of a menu that give out a run or a conversation in each format. */
  items(id: string, isRun: boolean): Entry[] {
    const place = (format: string) => (ORDER.includes(format) ? ORDER.indexOf(format) : ORDER.length);
    return [...this.formats].sort((a, b) => place(a) - place(b)).map((format) => ({
      label: `Export as ${LABELS[format] ?? format}`, icon: 'download', disabled: this.#making.has(`${id}.${format}`), run: () => void this.save(id, format, isRun),
    }));
  }

  async save(id: string, format: string, isRun: boolean) {
    const what = `${id}.${format}`;
    if (this.#making.has(what)) return;
    this.#making = new Set([...this.#making, what]);
    if (format === 'pdf') notices.toast('The PDF is being made…');
    try {
      if (hub.isPluginOn(PLUGIN)) saveAs(...(await fetchFrom(`/api/export/${encodeURIComponent(id)}.${encodeURIComponent(format)}`)));
      else await this.#saveByOperation(id, format, isRun);
    } catch (error) {
      notices.error(error);
    } finally {
      this.#making = new Set([...this.#making].filter((one) => one !== what));
    }
  }

  async #saveByOperation(id: string, format: string, isRun: boolean) {
    const made = isRun
      ? await hub.client.request<Exported>('run.export', { run: id, format })
      : await hub.client.request<Exported>('conversation.export', { conv: id, format });
    if (made.ref) saveAs((await fetchFrom(`/api/files/${encodeURIComponent(made.ref)}`))[0], made.name);
    else saveAs(new Blob([made.text ?? ''], { type: made.mime }), made.name);
  }

  /** Take a conversation in from a file that holds an export, and go to it. */
  async take(file: File) {
    notices.toast(`${file.name} is being imported…`);
    try {
      const { ref } = await Upload.begin(file).done();
      const { conv } = await hub.client.request<{ conv: string }>('conversation.import', { ref });
      router.go(conv);
    } catch (error) {
      notices.error(error);
    }
  }
}

export const exports = new Exports();
