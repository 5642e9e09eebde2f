// Requests to the program that serves this page, and its events. Nothing else is ever asked.
//
// When the program has ended, any user of the machine may listen in its place. So after a lost connection whoever is
// there has to prove that it is the same run of the program, before anything more is sent.

const RETRY_MS = [1000, 2000, 3000, 5000];
const WITHIN_MS = 20000;
const HIDDEN_MS = 60000;

// `lasting`: the program cannot be reached, or asks to try again; the same request may succeed later.
export class RequestError extends Error {
  constructor(message, {fix = "", code = "", status = 0} = {}) {
    super(message);
    Object.assign(this, {fix, code, status});
  }

  get lasting() {
    return ![400, 404, 405, 413, 415, 422].includes(this.status) && this.code !== "video";
  }

  // This window is of an earlier run of the program.
  get locked() {
    return this.status === 403;
  }

  get sentence() {
    return this.fix ? `${this.message}: ${this.fix}` : this.message;
  }
}

let key = null; // of the run that this page came from
let doubted = false;

// Takes the key that the program proves itself with.
export async function trust(hex) {
  const bytes = Uint8Array.from(hex.match(/../g), two => parseInt(two, 16));
  key = await crypto.subtle.importKey("raw", bytes, {name: "HMAC", hash: "SHA-256"}, false, ["sign"]);
}

async function checkProgram() {
  if (!doubted || key === null) return;
  const nonce = crypto.randomUUID();
  let answer;
  try {
    answer = await fetch(`/proof?nonce=${nonce}`, {signal: AbortSignal.timeout(WITHIN_MS), credentials: "omit"});
  } catch {
    throw new RequestError("no connection");
  }
  const {proof} = await answer.json().catch(() => ({}));
  const bytes = new Uint8Array(await crypto.subtle.sign("HMAC", key, new TextEncoder().encode(nonce)));
  if (proof !== Array.from(bytes, byte => byte.toString(16).padStart(2, "0")).join(""))
    throw new RequestError("the program was started again", {code: "other_run", status: 403});
  doubted = false;
}

async function ask(path, options = {}) {
  await checkProgram();
  let answer;
  try {
    answer = await fetch(path, {signal: AbortSignal.timeout(WITHIN_MS), credentials: "same-origin", ...options});
  } catch (error) {
    if (options.signal?.aborted) throw error;
    doubted = true;
    throw new RequestError("no connection");
  }
  if (answer.ok) return answer;
  const {error = {}} = await answer.json().catch(() => ({}));
  throw new RequestError(error.message ?? `answer ${answer.status}`, {...error, status: answer.status});
}

export const getJson = async (path, options) => (await ask(path, options)).json();
export const getBytes = async (path, options) => (await ask(path, options)).arrayBuffer();
export const postJson = async (path, content) => (await ask(path, {
  method: "POST", body: JSON.stringify(content), headers: {"Content-Type": "application/json", "X-Flamest": "label"},
})).json();

// Server-Sent Events for as long as the page is seen. `onEvent(name, data)`; `onLost()` when the stream is cut, and
// `onBack()` when it is there again. A page in the background gives its stream up: a browser has few to one host.
export class Events {
  constructor(names, {onEvent, onLost, onBack}) {
    Object.assign(this, {names, onEvent, onLost, onBack, failures: 0});
    this.open();
    document.addEventListener("visibilitychange", () => this.onVisibility());
  }

  onVisibility() {
    clearTimeout(this.hiding);
    if (document.hidden) this.hiding = setTimeout(() => this.pause(), HIDDEN_MS);
    else if (this.source === null && !this.stopped) this.open();
  }

  pause() {
    clearTimeout(this.timer);
    this.source?.close();
    this.source = this.opening = null;
    doubted = true;
  }

  // For good: nothing opens it again.
  stop() {
    this.pause();
    this.stopped = true;
  }

  async open() {
    clearTimeout(this.timer);
    const opening = (this.opening = {});
    try {
      await checkProgram();
    } catch {
      if (opening === this.opening) this.retry();
      return;
    }
    if (opening !== this.opening || this.stopped) return;
    this.source?.close();
    this.source = new EventSource("api/events");
    this.source.onopen = () => {
      if (this.failures || this.opened) this.onBack();
      Object.assign(this, {failures: 0, opened: true});
    };
    this.source.onerror = () => this.retry();
    for (const name of this.names)
      this.source.addEventListener(name, ({data}) => this.onEvent(name, data ? JSON.parse(data) : {}));
  }

  retry() {
    this.pause();
    this.onLost();
    if (this.stopped) return;
    this.timer = setTimeout(() => this.open(), RETRY_MS[Math.min(this.failures++, RETRY_MS.length - 1)]);
  }
}
