/**
 * Files on their way to the hub, and files that it has. An upload tells how far it is, tries again by itself where the
 * line broke, and waits for a person where the hub refused it.
 */
import type { FileRef } from './drafts';
import { load } from './storage';

const RETRY_MS = [1000, 3000, 9000];
/** So many images stay in memory; those that were not looked at for longest are fetched again. */
const IMAGES_KEPT = 80;
/** What a browser draws from its bytes alone, without script in it. */
const IMAGES = /^image\/(?:png|jpe?g|gif|webp|avif|bmp)$/i;
const NAME_CHARS = 200;

export function isImage(mime: string | undefined): boolean {
  return IMAGES.test(mime ?? '');
}

let last = 0;

export class Upload {
  readonly id = ++last;
  readonly name: string;
  readonly mime: string;
  readonly size: number | undefined;
  /** From 0 to 1. */
  progress = $state(0);
  error = $state('');
  /** What the hub keeps it as. */
  file = $state.raw<FileRef | null>(null);
  readonly #source: File | null;
  #request: XMLHttpRequest | null = null;
  #timer: ReturnType<typeof setTimeout> | null = null;
  #tries = 0;
  #waiting: { resolve: (file: FileRef) => void; reject: (error: Error) => void }[] = [];

  private constructor(source: File | null, kept: FileRef | null) {
    this.#source = source;
    this.file = kept;
    if (kept) this.progress = 1;
    this.name = kept?.name || source?.name.slice(-NAME_CHARS) || 'File';
    this.mime = kept?.mime ?? (source?.type || 'application/octet-stream');
    this.size = kept?.size ?? source?.size;
    if (source) this.#send();
  }

  static begin(source: File): Upload {
    return new Upload(source, null);
  }

  static kept(file: FileRef): Upload {
    return new Upload(null, file);
  }

  get isUnderway(): boolean {
    return this.file === null && this.error === '';
  }

  /** The local content of an image, for a preview before the hub has it. */
  get source(): Blob | null {
    return this.#source;
  }

  /** The file once the hub has it. @throws Error where it will not without a person. */
  done(): Promise<FileRef> {
    if (this.file) return Promise.resolve(this.file);
    if (this.error) return Promise.reject(new Error(this.error));
    return new Promise((resolve, reject) => this.#waiting.push({ resolve, reject }));
  }

  retry() {
    if (this.file || !this.error) return;
    this.#tries = 0;
    this.#send();
  }

  /** Nobody wants it any more. */
  cancel() {
    if (this.#timer) clearTimeout(this.#timer);
    const request = this.#request;
    this.#request = null;
    request?.abort();
    this.#fail('The upload was cancelled.');
  }

  #send() {
    const request = new XMLHttpRequest();
    this.#request = request;
    this.error = '';
    this.progress = 0;
    request.open('POST', `/api/files?name=${encodeURIComponent(this.name)}`);
    for (const [name, value] of Object.entries(authorization())) request.setRequestHeader(name, value);
    request.setRequestHeader('content-type', this.mime);
    request.upload.onprogress = (event) => {
      if (event.lengthComputable) this.progress = event.loaded / event.total;
    };
    request.onload = () => this.#onAnswer(request);
    request.onerror = () => this.#onBreak(request);
    request.send(this.#source);
  }

  #onAnswer(request: XMLHttpRequest) {
    if (request !== this.#request) return;
    this.#request = null;
    const answer = parse(request.responseText);
    if (request.status === 200 && typeof answer?.ref === 'string') {
      this.progress = 1;
      this.file = { ref: answer.ref, mime: this.mime, name: this.name, ...(this.size === undefined ? {} : { size: this.size }) };
      if (this.#source && isImage(this.mime)) images.put(answer.ref, this.#source);
      for (const { resolve } of this.#waiting.splice(0)) resolve(this.file);
    } else if (request.status === 429 || request.status >= 500) {
      this.#again(messageOf(answer, request.status));
    } else {
      this.#fail(messageOf(answer, request.status));
    }
  }

  #onBreak(request: XMLHttpRequest) {
    if (request !== this.#request) return;
    this.#request = null;
    this.#again('The upload broke off.');
  }

  #again(error: string) {
    const wait = RETRY_MS[this.#tries++];
    if (wait === undefined) this.#fail(error);
    else this.#timer = setTimeout(() => this.#send(), wait);
  }

  #fail(error: string) {
    if (this.file) return;
    this.error = error;
    for (const { reject } of this.#waiting.splice(0)) reject(new Error(error));
  }
}

/** How much of some files is there, in percent. */
export function uploaded(uploads: Upload[]): number {
  const share = uploads.reduce((sum, upload) => sum + upload.progress * (upload.size ?? 1), 0);
  const whole = uploads.reduce((sum, upload) => sum + (upload.size ?? 1), 0);
  return whole === 0 ? 0 : Math.floor((100 * share) / whole);
}

function parse(text: string): any {
  try {
    return JSON.parse(text);
  } catch {
    return null;
  }
}

function messageOf(answer: any, status: number): string {
  if (status === 413) return 'The file is larger than the hub takes.';
  const message = answer?.error?.message;
  return typeof message === 'string' && message ? message : `The hub did not take the file (${status}).`;
}

function authorization(): Record<string, string> {
  const token = load<string>('token', '');
  return token ? { authorization: `Bearer ${token}` } : {};
}

/** The content of a file that the hub keeps. The hub hands it out as an attachment, never as a page. */
async function fetchFile(ref: string): Promise<Blob> {
  const answer = await fetch(`/api/files/${encodeURIComponent(ref)}`, { headers: authorization() });
  if (!answer.ok) throw new Error(answer.status === 404 ? 'The file is not there any more.' : `The file did not come (${answer.status}).`);
  return answer.blob();
}

/** Addresses of images, by ref. */
class Images {
  readonly #urls = new Map<string, Promise<string>>();

  put(ref: string, content: Blob) {
    if (!this.#urls.has(ref)) this.#keep(ref, Promise.resolve(URL.createObjectURL(content)));
  }

  url(ref: string): Promise<string> {
    const known = this.#urls.get(ref);
    if (known) {
      this.#urls.delete(ref);
      this.#urls.set(ref, known);
      return known;
    }
    const url = fetchFile(ref).then((blob) => {
      if (!isImage(blob.type)) throw new Error('The file is no image.');
      return URL.createObjectURL(blob);
    });
    url.catch(() => this.#urls.delete(ref));
    this.#keep(ref, url);
    return url;
  }

  #keep(ref: string, url: Promise<string>) {
    this.#urls.set(ref, url);
    for (const [oldest, old] of this.#urls) {
      if (this.#urls.size <= IMAGES_KEPT) break;
      this.#urls.delete(oldest);
      void old.then((address) => URL.revokeObjectURL(address), () => undefined);
    }
  }
}

export const images = new Images();

/** Hand a file to the browser's downloads, under a name that may depend on what it is. */
export async function download(ref: string, name: string | ((mime: string) => string)) {
  const content = await fetchFile(ref);
  saveAs(content, typeof name === 'string' ? name : name(content.type));
}

/**
 * What a path of the hub gives as a download, with the name that it has there.
 *
 * @throws Error In the hub's words, where it does not.
 */
export async function fetchFrom(path: string): Promise<[content: Blob, name: string]> {
  const answer = await fetch(path, { headers: authorization() });
  if (!answer.ok) throw new Error(parse(await answer.text())?.error?.message || `The file did not come (${answer.status}).`);
  const told = answer.headers.get('content-disposition') ?? '';
  const encoded = /filename\*=UTF-8''([^;]+)/i.exec(told)?.[1];
  const plain = /filename="([^"]*)"/i.exec(told)?.[1];
  return [await answer.blob(), (encoded && decodeURIComponent(encoded)) || plain || path.split('/').at(-1)!];
}

export function saveAs(content: Blob, name: string) {
  const url = URL.createObjectURL(content);
  const link = document.createElement('a');
  link.href = url;
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(url), 60_000);
}

/** The files of a paste or a drop; folders are told apart, since a browser offers them as files that cannot be read. */
export function filesOf(data: DataTransfer): { files: File[]; folders: number } {
  const items = [...data.items].filter((item) => item.kind === 'file');
  const folders = items.filter((item) => item.webkitGetAsEntry?.()?.isDirectory).length;
  const files = items.filter((item) => !item.webkitGetAsEntry?.()?.isDirectory).flatMap((item) => item.getAsFile() ?? []);
  return { files, folders };
}
