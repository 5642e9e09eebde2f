// What a person does to the open video: choose a segment, set its borders, give labels. Fires "change".
//
// The target is the selected segment; without one it is the whole video.

import {clock, plural} from "./dom.js";
import {ABOUT, inOrder, isDone, isSegment, keyOf, put, remove} from "./rows.js";

const SHORTEST_S = 0.001;

export class Editor extends EventTarget {
  constructor(store, player, say) {
    super();
    Object.assign(this, {store, player, say, id: null, selected: null, edge: "end", nudged: null});
    this.marks = new Map(); // video -> start of a segment that has no end yet
  }

  changed() {
    this.dispatchEvent(new Event("change"));
  }

  get video() {
    return this.store.video(this.id) ?? null;
  }

  // Rows as they are shown: a border that is being moved has moved already.
  get rows() {
    const rows = inOrder(this.video?.rows ?? []);
    if (this.nudged === null) return rows;
    return inOrder(rows.map(row => (keyOf(row) === keyOf(this.nudged.before) ? this.nudged.after : row)));
  }

  get segments() {
    return this.rows.filter(isSegment);
  }

  // The row of the target; undefined for a whole video without one.
  get target() {
    return this.rows.find(row => keyOf(row) === (this.selected ?? "whole"));
  }

  get mark() {
    return this.marks.get(this.id) ?? null;
  }

  get suggestion() {
    const found = this.store.suggestions.get(this.id);
    return found && this.selected === null ? found : null;
  }

  name(row, rows = this.rows) {
    if (!row || !isSegment(row)) return "the whole video";
    return `segment ${inOrder(rows).filter(isSegment).findIndex(other => keyOf(other) === keyOf(row)) + 1}`;
  }

  // ---- choosing

  open(id) {
    this.settle();
    if (this.id !== id) {
      Object.assign(this, {id, selected: null, edge: "end"});
      this.player.open(this.video);
    }
    this.changed();
  }

  select(row, {seek = true} = {}) {
    this.settle();
    this.selected = row && isSegment(row) ? keyOf(row) : null;
    this.edge = "end";
    if (this.player.loop) this.player.loop = this.selected ? row : null;
    if (row && this.selected && seek) this.player.seek(row.start_s + this.player.margin);
    this.say(this.selected ? `${capital(this.name(row))}, ${row.label || "no label yet"}, ${clock(row.start_s)} to ${
      clock(row.end_s)}.` : "The whole video.");
    this.changed();
  }

  step(by) {
    const segments = this.segments;
    if (!segments.length) return this.say("This video has no segments.");
    const at = segments.findIndex(row => keyOf(row) === this.selected);
    const now = this.player.shown;
    const near = by > 0 ? segments.findIndex(row => row.start_s >= now) : segments.findLastIndex(row => row.start_s < now);
    const next = at >= 0 ? at + by : near >= 0 ? near : by > 0 ? segments.length - 1 : 0;
    this.select(segments[Math.max(0, Math.min(segments.length - 1, next))]);
  }

  // Escape: forgets the start of a new segment, then goes back to the whole video.
  escape() {
    if (this.mark !== null) {
      this.marks.delete(this.id);
      this.say("The start is forgotten.");
      return this.changed();
    }
    return this.select(null);
  }

  // The selection, after rows came in from elsewhere.
  follow() {
    if (this.id !== null && !this.video) {
      this.id = null;
      this.player.close();
      this.say("The video that was open is no longer in the folder.");
    }
    if (this.selected !== null && !this.target) {
      this.selected = null;
      this.player.loop = null;
      this.say("The selected segment was changed or removed in another window.");
    }
    this.changed();
  }

  // ---- saving

  save(changes, said, announcement = `${capital(said)}.`) {
    this.store.act(changes, said);
    this.say(announcement);
    this.changed();
  }

  // Saves a border that was moved step by step, as one change.
  settle() {
    clearTimeout(this.settling);
    const moved = this.nudged;
    this.nudged = null;
    if (!moved || keyOf(moved.before) === keyOf(moved.after)) return;
    const video = this.store.video(moved.video);
    if (video) this.store.act([put(video, moved.before, moved.after)], "times of a segment");
  }

  // What a label is for: kept while the page asks something about it, and the person goes on meanwhile.
  get place() {
    return {id: this.id, key: this.selected ?? "whole"};
  }

  label(label, place = this.place) {
    this.settle();
    const video = this.store.video(place.id);
    if (!video) return;
    if (place.id === this.id && place.key === "whole" && this.mark !== null)
      return this.say(`Not labelled ${label}: a segment is begun. Press o where it ends, or Esc for the whole video.`);
    const before = video.rows.find(row => keyOf(row) === place.key) ?? null;
    if (!before && place.key !== "whole") return this.say(`Not labelled ${label}: the segment is no longer there.`);
    const to = this.name(before, video.rows);
    if (before?.label === label) return this.say(`${capital(to)} is ${label} already.`);
    const where = place.id === this.id ? to : `${to} of ${video.name}`;
    this.save([put(video, before, {...(before ?? blank()), label})], `${label} on ${to}`, `${label}: ${where}.`);
    if (place.id === this.id && place.key === "whole") this.dispatchEvent(new Event("labelled"));
  }

  accept() {
    if (this.suggestion) return this.label(this.suggestion.label);
    return this.say(this.selected === null ? "No suggestion for this video." : "Suggestions are for whole videos.");
  }

  // Group, person and camera of the target.
  describe(name, text) {
    this.settle();
    const before = this.target ?? null;
    if (!this.video || (before?.[name] ?? "") === text) return;
    if (!before) return this.say(`Give ${this.name(before)} a label first.`);
    this.save([put(this.video, before, {...before, [name]: text})], `${name} of ${this.name(before)}`);
  }

  erase() {
    this.settle();
    const row = this.target;
    if (!row) return this.say("Nothing to delete: the whole video has no label.");
    const what = isSegment(row) ? `${this.name(row)} deleted` : "label of the whole video deleted";
    this.selected = null;
    this.player.loop = null;
    this.save([remove(this.video, row)], what, `${capital(what)}. Press u to undo.`);
  }

  // ---- segments

  setStart() {
    if (!this.canMark()) return;
    const now = this.player.startHere;
    const row = this.selected !== null ? this.target : null;
    if (row && now < row.end_s - SHORTEST_S) return this.move("start", now);
    this.settle();
    this.selected = null;
    this.player.loop = null;
    this.marks.set(this.id, now);
    this.say(`A new segment starts at ${clock(now)}. Press o where it ends.`);
    this.changed();
  }

  setEnd() {
    if (!this.canMark()) return;
    const now = this.player.endHere;
    if (this.mark !== null) return this.add(this.mark, now);
    const row = this.selected !== null ? this.target : null;
    if (!row) return this.say("Press i where the segment starts, then o where it ends.");
    if (now <= row.start_s + SHORTEST_S) return this.say("The end must be after the start.");
    this.move("end", now);
  }

  canMark() {
    if (this.video && !this.video.problem && (this.player.facts || this.player.duration)) return true;
    this.say(this.video?.problem ? "This video cannot be used." : "The video is not ready yet.");
    return false;
  }

  add(start_s, end_s) {
    if (end_s <= start_s + SHORTEST_S) return this.say("The end must be after the start: go forward, then press o.");
    const span = {start_s, end_s};
    if (this.segments.some(row => keyOf(row) === keyOf(span))) return this.say("There is a segment with these times.");
    this.marks.delete(this.id);
    // A row that only says "this video, no label" becomes the segment.
    const whole = this.rows.find(row => !isSegment(row));
    const before = whole && !whole.label ? whole : null;
    const change = put(this.video, before, {...(before ?? blank(whole)), ...span});
    this.selected = keyOf(span);
    this.edge = "end";
    this.save([change], "new segment", `Segment from ${clock(start_s)} to ${clock(end_s)}. Now give it a label.`);
  }

  move(edge, seconds, {now = true} = {}) {
    const row = this.target;
    if (!row || !isSegment(row)) return;
    const before = this.nudged?.before ?? row;
    const limit = edge === "start" ? row.end_s - this.player.frame / 2 : row.start_s + this.player.frame / 2;
    let value = edge === "start" ? Math.min(seconds, limit) : Math.max(seconds, limit);
    value = Math.round(Math.max(0, Math.min(value, this.player.duration || value)) * 1000) / 1000;
    const after = {...row, [`${edge}_s`]: value};
    if (!(after.start_s < after.end_s)) return this.say("The end must be after the start.");
    const key = keyOf(after);
    if (key !== this.selected && this.segments.some(other => keyOf(other) === key))
      return this.say("There is a segment with these times.");
    Object.assign(this, {edge, selected: key, nudged: {video: this.id, before, after}});
    if (this.player.loop) this.player.loop = after;
    clearTimeout(this.settling);
    if (now) this.settle();
    else this.settling = setTimeout(() => (this.settle(), this.changed()), 600);
    this.say(`${edge === "start" ? "Start" : "End"} at ${clock(value, 3)}.`);
    this.changed();
  }

  // Moves a border by frames; a few in a row are saved as one change.
  nudge(frames, edge = this.edge) {
    const row = this.selected !== null ? this.target : null;
    if (!row) return this.say("Select a segment first, with j or k.");
    const seconds = row[`${edge}_s`] + frames * this.player.frame;
    this.player.element.pause();
    this.move(edge, seconds, {now: false});
    const moved = this.target[`${edge}_s`];
    this.player.seek(Math.max(0, edge === "start" ? moved + this.player.margin : moved - this.player.margin));
  }

  switchEdge() {
    if (this.selected === null) return this.say("Select a segment first, with j or k.");
    this.edge = this.edge === "start" ? "end" : "start";
    this.say(`Shift and the arrow keys now move the ${this.edge}.`);
    this.changed();
  }

  split() {
    this.settle();
    const now = this.player.startHere;
    const inside = row => row.start_s + SHORTEST_S < now && now < row.end_s - SHORTEST_S;
    const chosen = this.selected !== null ? this.target : null;
    const row = chosen && inside(chosen) ? chosen : this.segments.find(inside);
    if (!row) return this.say("Nothing to split here: go to a place inside a segment.");
    const second = {...row, start_s: now};
    const changes = [put(this.video, row, {...row, end_s: now}), put(this.video, null, second)];
    this.selected = keyOf(second);
    this.save(changes, `${this.name(row)} split`, `Split at ${clock(now)}; the second part is selected.`);
  }

  toggleLoop() {
    const row = this.selected !== null ? this.target : null;
    if (this.player.loop || !row) {
      const was = this.player.loop;
      this.player.loop = null;
      this.say(was ? "Loop off." : "Select a segment first, with j or k.");
    } else {
      this.player.loop = row;
      this.say("The segment plays again and again.");
      this.player.restart();
    }
    this.changed();
  }
}

// A row without a label. A new segment is of the same person as the whole video.
const blank = like => ({label: "", start_s: null, end_s: null,
  ...Object.fromEntries(ABOUT.map(name => [name, like?.[name] ?? ""]))});

const capital = text => text[0].toUpperCase() + text.slice(1);

// "12 of 40 videos done".
export function progressOf(videos) {
  const usable = videos.filter(video => !video.problem);
  const done = usable.filter(isDone).length;
  return {done, all: usable.length, text: `${done} of ${plural(usable.length, "video")} labelled`};
}
