// What the page knows: the program's state, with the changes on top that are not saved yet.
//
// An action is what a person does in one go: one change, or several (a split). Actions are sent in order, one request
// each, and stay in the queue until the answer is there. Fires "change" whenever something is different.

import {getJson, postJson, trust} from "./connection.js";
import {releaseName} from "./kept.js";
import {applied, keyOf, onWire, sameRow} from "./rows.js";

const AGAIN_MS = 3000;
const STEPS = "flamest-label-steps"; // in words, of the steps that can be undone

export class Store extends EventTarget {
  constructor(tab) {
    super();
    Object.assign(this, {
      tab, base: [], shown: new Map(), vocabulary: [], order: [], queue: [], conflicts: [], run: false, aliases: {},
      problems: [], folder: "", revision: null, undoable: 0, redoable: 0, writable: true, savedAt: null, trouble: null, kept: null, model: false,
      extracting: null, suggestions: new Map(), sending: false, acknowledged: 0,
      turn: Promise.resolve(), ended: false,
    });
  }

  get videos() {
    return [...this.shown.values()];
  }

  video(id) {
    return this.shown.get(id);
  }

  // ---- reading

  async load() {
    const state = await this.state();
    await trust(state.proof_key);
    this.take(state);
  }

  state() {
    return getJson(`api/state?tab=${this.tab}`);
  }

  // Reads the state again. An answer that was on its way while a change was saved is older than what is shown.
  async refresh() {
    if (this.reading) {
      this.readAgain = true;
      return;
    }
    this.reading = true;
    try {
      do {
        this.readAgain = false;
        const before = this.acknowledged;
        const state = await this.state();
        if (before === this.acknowledged) this.take(state);
        else this.readAgain = true;
      } while (this.readAgain);
      this.recovered();
    } catch (error) {
      this.lost(error);
    } finally {
      this.reading = false;
    }
  }

  refreshSoon() {
    clearTimeout(this.soon);
    this.soon = setTimeout(() => this.refresh(), Math.min(3000, 250 + this.base.length / 2));
  }

  take(state) {
    this.base = state.videos;
    this.revision = state.revision;
    [this.undoable, this.redoable] = [state.undo ?? 0, state.redo ?? 0];
    for (const name of ["folder", "run", "aliases", "problems", "model", "suggesting", "extracting", "writable"])
      if (state[name] !== undefined) this[name] = state[name];
    for (const {id, suggestion} of state.videos) if (suggestion) this.suggestions.set(id, suggestion);
    this.vocabulary = state.vocabulary;
    this.recompute();
  }

  // The videos as they are once the queue is saved. Classes keep their place, and so their number, while the page is open.
  recompute() {
    this.shown = new Map(this.base.map(video => [video.id, video]));
    for (const change of this.queue.flatMap(action => action.changes)) {
      const video = this.shown.get(change.video);
      if (video) this.shown.set(video.id, {...video, rows: applied(video.rows, change)});
    }
    const used = new Map();
    for (const {rows} of this.shown.values())
      for (const {label} of rows) if (label) used.set(label, (used.get(label) ?? 0) + 1);
    const names = new Set([...this.vocabulary.map(({label}) => label), ...used.keys()]);
    this.order = [...this.order.filter(label => names.has(label)), ...[...names].filter(n => !this.order.includes(n))];
    const inRun = new Set(this.vocabulary.filter(found => found.in_run).map(({label}) => label));
    this.classes = this.order.map(label => ({label, clips: used.get(label) ?? 0, inRun: inRun.has(label)}));
    this.dispatchEvent(new Event("change"));
  }

  // ---- writing

  // Takes over what was not saved before a reload, or by a tab that is gone.
  async resume(kept) {
    this.kept = kept;
    return this.takeOver(kept.read(), await kept.adopt());
  }

  // Takes over what tabs of an earlier run have kept since; returns the number of actions.
  async adopt() {
    return this.ended || !this.kept ? 0 : this.takeOver(await this.kept.adopt());
  }

  takeOver(...kept) {
    const names = new Map(this.base.map(video => [video.name, video.id]));
    const known = change => ({...change, video: names.get(change.name) ?? change.video});
    const queue = kept.flatMap(content => content?.queue ?? []);
    const conflicts = kept.flatMap(content => content?.conflicts ?? []);
    if (!queue.length && !conflicts.length) return 0;
    this.queue.push(...queue.map(action => ({...action, changes: action.changes.map(known)})));
    this.conflicts.push(...conflicts.map(found => ({...found, change: known(found.change)})));
    this.keep();
    this.recompute();
    this.send();
    return queue.length;
  }

  keep() {
    this.kept?.write({queue: this.queue, conflicts: this.conflicts});
  }

  // Saves the changes of one action. `said` describes it: "fall on clip_01.mp4".
  act(changes, said) {
    if (this.ended) return;
    this.queue.push({changes, said});
    this.keep();
    this.recompute();
    this.send();
  }

  async send() {
    if (this.sending || this.ended || !this.queue.length) return;
    this.sending = true;
    clearTimeout(this.again);
    try {
      while (this.queue.length) await this.sendFirst();
      this.recovered();
      this.refreshSoon();
    } catch (error) {
      this.lost(error);
    } finally {
      this.sending = false;
      this.recompute();
    }
  }

  async sendFirst() {
    const [action] = this.queue;
    let answer;
    action.sent = true;
    this.keep();
    try {
      answer = await postJson("api/changes", {tab: this.tab, changes: action.changes.map(change => this.wired(change))});
    } catch (error) {
      if (error.lasting !== false) throw error;
      this.queue.shift();
      this.keep();
      this.dispatchEvent(new CustomEvent("refused", {detail: {action, error}}));
      return;
    }
    this.queue.shift();
    const conflicts = matched(answer.conflicts, action).filter(({change, theirs}) =>
      change.op === "put" ? !sameRow(change, theirs) : theirs);
    this.conflicts.push(...conflicts);
    this.keep();
    const {steps} = this;
    if (steps.length === answer.undo - 1) this.steps = [...steps, action.said];
    this.saved(answer);
  }

  get steps() {
    return JSON.parse(sessionStorage.getItem(STEPS) ?? "[]");
  }

  set steps(words) {
    sessionStorage.setItem(STEPS, JSON.stringify(words.slice(-1000)));
  }

  // A change as it is sent. Rows that were made here get the path that the program has given them.
  wired(change) {
    const sent = onWire(change);
    const path = this.base.find(({id}) => id === change.video)?.rows[0]?.path;
    return path && sent.expected ? {...sent, expected: {...sent.expected, path}} : sent;
  }

  saved(answer) {
    this.acknowledged += 1;
    const fresh = new Map((answer.videos ?? []).map(video => [video.id, video]));
    this.base = this.base.map(video => fresh.get(video.id) ?? video);
    this.revision = answer.revision;
    [this.undoable, this.redoable] = [answer.undo, answer.redo ?? 0];
    this.savedAt = new Date();
    this.recompute();
  }

  // Undoes this tab's last action, after what is on its way; returns a sentence about it.
  undo() {
    return (this.turn = this.turn.then(() => this.undoNow()));
  }

  redo() {
    return (this.turn = this.turn.then(() => this.redoNow()));
  }

  async undoNow() {
    // One that was sent, and had no answer yet, may be in the file.
    if (this.queue.length && !this.queue.at(-1).sent) {
      const {said} = this.queue.pop();
      this.keep();
      this.recompute();
      return `Undone: ${said}.`;
    }
    while (this.sending && this.queue.length) await new Promise(resolve => setTimeout(resolve, 20));
    if (this.queue.length) return "Not undone: the change before is not saved yet.";
    if (!this.undoable) return "Nothing to undo.";
    const {steps} = this;
    const said = await this.replay("api/undo", `Undone: ${
      (steps.length === this.undoable && steps.at(-1)) || "the last change"}`, "Not undone");
    if (this.undoable < steps.length) this.steps = steps.slice(0, -1);
    return said;
  }

  async redoNow() {
    if (this.queue.length || !this.redoable) return "Nothing to do again.";
    return this.replay("api/redo", "Done again", "Not done again");
  }

  async replay(path, done, failed) {
    try {
      const answer = await postJson(path, {tab: this.tab});
      this.saved(answer);
      this.refreshSoon();
      if (answer.conflicts.length) return `${failed}: someone else has changed this since. What they saved stays.`;
      return `${done} (${(answer.videos ?? []).map(({name}) => name).join(", ")}).`;
    } catch (error) {
      this.lost(error);
      return `${failed}: ${error.sentence ?? error.message}.`;
    }
  }

  // Decides a conflict: with this tab's version, or with what is in the file.
  decide(conflict, mine) {
    this.conflicts = this.conflicts.filter(found => found !== conflict);
    const {change, theirs} = conflict;
    const found = theirs && {...theirs, label: theirs.label ?? ""};
    if (mine) this.act([{...change, expected: found ?? null, replaces: found ? spanIn(found) : null}], conflict.said);
    this.keep();
    this.recompute();
  }

  // ---- the connection

  lost(error) {
    this.trouble = error;
    clearTimeout(this.again);
    if (error.locked) this.end();
    else this.again = setTimeout(() => this.retry(), AGAIN_MS);
    this.dispatchEvent(new Event("change"));
  }

  // This window is of an earlier run: what it has kept is for a window of the new one.
  end() {
    if (this.ended) return;
    this.ended = true;
    releaseName();
    this.dispatchEvent(new Event("ended"));
  }

  retry() {
    if (this.ended) return;
    if (this.queue.length) this.send();
    else this.refresh();
  }

  recovered() {
    if (!this.trouble) return;
    this.trouble = null;
    this.dispatchEvent(new Event("change"));
  }
}

const spanIn = ({start_s, end_s}) => ({start_s, end_s});

// Each conflict with the change that it is about, and the row that is in the file now (null: none).
function matched(conflicts, action) {
  const left = [...action.changes];
  return conflicts.map(({video, row}) => {
    const about = change => change.video === video && [keyOf(change), keyOf(change.replaces ?? change)].includes(keyOf(row));
    const change = (row && left.find(about)) ?? left.find(found => found.video === video && found.replaces) ??
      left.find(found => found.video === video) ?? action.changes[0];
    left.splice(left.indexOf(change), 1);
    return {change, theirs: row ?? null, said: action.said};
  });
}
