/** What is in the composer, as the draft of the conversation that is open; written behind the typing. */
import { joinTexts, newDraft, readDraft, writeDraft, joinDraft, type Draft } from './drafts';
import { notices } from './notices.svelte';
import { Upload } from './uploads.svelte';

const WRITE_MS = 200;
/** A message takes 64 parts at most; this leaves room, and is more than anybody looks through. */
const MAX_FILES = 30;

class Composer {
  text = $state('');
  uploads = $state.raw<Upload[]>([]);
  /** The model of this one message; null for that of the conversation. */
  model = $state<string | null>(null);
  /** What a chat that is not begun will begin with. */
  config = $state.raw<Record<string, unknown>>({});
  /** The kind of run to begin; null for that of the conversation. */
  kind = $state<string | null>(null);
  /** What was set up for runs of kinds, by kind. */
  setups = $state.raw<Record<string, Record<string, unknown>>>({});
  /** Grows when the composer should take the focus. */
  focusWanted = $state(0);
  #conv: string | null = null;
  #timer: ReturnType<typeof setTimeout> | null = null;

  constructor() {
    this.#show(readDraft(null));
    window.addEventListener('pagehide', () => this.flush());
    document.addEventListener('visibilitychange', () => this.flush());
  }

  get isEmpty(): boolean {
    return this.text.trim() === '' && this.uploads.length === 0;
  }

  get isUploading(): boolean {
    return this.uploads.some((upload) => upload.isUnderway);
  }

  /** Show the draft of another conversation. */
  open(conv: string | null) {
    if (conv === this.#conv) return;
    this.flush();
    this.#leave(this.#conv, this.uploads.filter((upload) => upload.isUnderway));
    this.#conv = conv;
    this.#show(readDraft(conv));
  }

  set(text: string) {
    this.text = text;
    this.#timer ??= setTimeout(() => this.flush(), WRITE_MS);
  }

  choose(model: string | null) {
    this.model = model;
    this.flush();
  }

  /** Set what a new chat begins with; null takes a value back. */
  configure(name: string, value: unknown) {
    const { [name]: _, ...others } = this.config;
    this.config = value === null ? others : { ...others, [name]: value };
    this.flush();
  }

  chooseKind(kind: string | null) {
    this.kind = kind;
    this.flush();
  }

  /** Set up the next run of a kind. */
  setUp(kind: string, setup: Record<string, unknown>) {
    this.setups = { ...this.setups, [kind]: setup };
    this.flush();
  }

  attach(files: File[]) {
    this.add(files.slice(0, this.#room(files.length)).map((file) => Upload.begin(file)));
  }

  /** Attach what is on its way already, or there. */
  add(uploads: Upload[]) {
    const added = uploads.slice(0, this.#room(uploads.length));
    this.uploads = [...this.uploads, ...added];
    for (const upload of added) upload.done().then(() => this.#kept(upload), () => undefined);
  }

  /** For how many more files there is room; said where they are too many. */
  #room(wanted: number): number {
    const room = Math.max(0, MAX_FILES - this.uploads.length);
    if (wanted > room) notices.toast(`A message takes ${MAX_FILES} files at most.`, 'error');
    return room;
  }

  /** Write something behind what is there. */
  append(text: string) {
    this.set(joinTexts(text, this.text));
    this.focus();
  }

  detach(upload: Upload) {
    upload.cancel();
    this.uploads = this.uploads.filter((u) => u !== upload);
    this.flush();
  }

  /** Hand over what is there, and begin anew. */
  take(): { draft: Draft; uploads: Upload[] } {
    const taken = { draft: this.#draft(), uploads: this.uploads };
    this.#show(newDraft());
    this.flush();
    return taken;
  }

  clear() {
    this.text = '';
    this.flush();
  }

  focus() {
    this.focusWanted += 1;
  }

  /** A chat that was new has its name now: what was typed since goes with it. */
  adopt(conv: string) {
    if (this.#conv !== null) return;
    if (this.#timer) clearTimeout(this.#timer);
    this.#timer = null;
    writeDraft(null, newDraft());
    this.#conv = conv;
    writeDraft(conv, this.#draft());
  }

  /** What could not be sent, or is to be changed: it is never lost. */
  putBack(conv: string | null, returning: Partial<Draft>, uploads?: Upload[]) {
    const draft = newDraft(returning);
    if (conv !== this.#conv) {
      const files = uploads ? uploads.flatMap((u) => u.file ?? []) : draft.files;
      writeDraft(conv, joinDraft(readDraft(conv), { ...draft, files }));
      this.#leave(conv, uploads?.filter((u) => u.isUnderway) ?? []);
      return;
    }
    this.text = joinTexts(this.text, draft.text);
    this.uploads = [...(uploads ?? draft.files.map((file) => Upload.kept(file))), ...this.uploads];
    for (const upload of uploads ?? []) upload.done().then(() => this.#kept(upload), () => undefined);
    this.model ??= draft.model;
    this.config = { ...draft.config, ...this.config };
    this.kind ??= draft.kind;
    this.setups = { ...draft.setups, ...this.setups };
    this.flush();
    this.focus();
  }

  flush() {
    if (this.#timer) clearTimeout(this.#timer);
    this.#timer = null;
    writeDraft(this.#conv, this.#draft());
  }

  #draft(): Draft {
    const { text, model, config, kind, setups } = this;
    return { text, files: this.uploads.flatMap((u) => u.file ?? []), model, config, kind, setups };
  }

  #show(draft: Draft) {
    this.text = draft.text;
    this.uploads = draft.files.map((file) => Upload.kept(file));
    this.model = draft.model;
    this.config = draft.config;
    this.kind = draft.kind;
    this.setups = draft.setups;
  }

  #kept(upload: Upload) {
    if (this.uploads.includes(upload)) this.flush();
  }

  /** Uploads of a conversation that is left arrive in its draft. */
  #leave(conv: string | null, uploads: Upload[]) {
    for (const upload of uploads) {
      upload.done().then(
        (file) => this.putBack(conv, { files: [file] }),
        () => notices.toast(`${upload.name} was not uploaded.`, 'error'),
      );
    }
  }
}

export const composer = new Composer();
