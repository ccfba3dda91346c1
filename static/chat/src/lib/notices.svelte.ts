/** Short messages: toasts that are seen, and announcements that are heard by screen readers alone. */

export interface Toast {
  id: number;
  text: string;
  tone: 'plain' | 'error';
}

const TOAST_MS = 6000;

class Notices {
  toasts = $state<Toast[]>([]);
  announcement = $state('');
  #last = 0;

  toast(text: string, tone: Toast['tone'] = 'plain') {
    const id = ++this.#last;
    this.toasts = [...this.toasts.slice(-2), { id, text, tone }];
    setTimeout(() => this.dismiss(id), TOAST_MS);
  }

  error(error: unknown) {
    this.toast(error instanceof Error ? error.message : String(error), 'error');
  }

  dismiss(id: number) {
    this.toasts = this.toasts.filter((toast) => toast.id !== id);
  }

  /** Say a finished piece. The same words twice in a row are said twice. */
  announce(text: string) {
    this.announcement = '';
    requestAnimationFrame(() => (this.announcement = text));
  }
}

export const notices = new Notices();
