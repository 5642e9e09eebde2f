// The timeline: where the video is, and its segments as bars. Zoomed in, it shows a part that follows the video.

import {clock, make, roving, secondsOf, setAttribute, setText} from "./dom.js";
import {isSegment, keyOf, lanesOf} from "./rows.js";

const STEPS_S = [0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 30, 60, 120, 300, 600, 1200, 1800, 3600];
const NARROWEST_S = 2;

export class Timeline {
  constructor(root, editor, player, hueOf) {
    Object.assign(this, {root, editor, player, hueOf, zoom: 1, from: 0, drawn: ""});
    this.ruler = make("div", {class: "ruler", "aria-hidden": "true"});
    this.bars = make("div", {class: "bars", role: "listbox", "aria-label": "Segments", "aria-orientation": "horizontal"});
    this.handles = make("div", {class: "handles", role: "group", "aria-label": "Borders of the selected segment"});
    this.playhead = make("div", {
      class: "playhead", role: "slider", tabindex: "0", "aria-label": "Position in the video", "aria-valuemin": "0",
    });
    this.mark = make("div", {class: "mark", hidden: true, "aria-hidden": "true"});
    this.track = make("div", {class: "track"}, this.ruler, this.bars, this.mark, this.playhead, this.handles);
    this.window = make("div", {class: "window"});
    this.dot = make("div", {class: "dot"});
    this.overview = make("div", {class: "overview", "aria-hidden": "true", hidden: true}, this.window, this.dot);
    root.append(this.track, this.overview);
    roving(this.bars, ".bar", bar => this.choose(bar.dataset.key));
    this.bars.addEventListener("keydown", event => this.alongBars(event));
    this.track.addEventListener("pointerdown", event => this.grab(event));
    this.overview.addEventListener("pointerdown", event => this.jump(event));
    new ResizeObserver(() => this.draw()).observe(root);
  }

  get duration() {
    return this.player.duration;
  }

  get span() {
    return Math.max(this.duration / this.zoom, Math.min(NARROWEST_S, this.duration)) || 1;
  }

  place(seconds) {
    return `${((seconds - this.from) / this.span) * 100}%`;
  }

  // Seconds under the pointer.
  at(event, element = this.track, from = this.from, span = this.span) {
    const {left, width} = element.getBoundingClientRect();
    const seconds = from + ((event.clientX - left) / width) * span;
    return Math.max(0, Math.min(this.duration, seconds));
  }

  zoomBy(factor) {
    const most = Math.max(1, this.duration / NARROWEST_S);
    this.zoom = Math.max(1, Math.min(most, this.zoom * factor));
    this.from = this.player.shown - this.span / 2;
    this.draw();
  }

  reset() {
    Object.assign(this, {zoom: 1, from: 0});
    this.draw();
  }

  // ---- drawing

  draw() {
    this.from = Math.max(0, Math.min(this.from, this.duration - this.span));
    this.drawRuler();
    this.drawBars();
    this.drawHandles();
    const {mark} = this.editor;
    this.mark.hidden = mark === null;
    if (mark !== null) this.mark.style.left = this.place(mark);
    this.overview.hidden = this.zoom <= 1;
    if (this.duration) {
      this.window.style.left = `${(this.from / this.duration) * 100}%`;
      this.window.style.width = `${(this.span / this.duration) * 100}%`;
    }
    this.drawTime();
  }

  drawTime() {
    const now = this.player.shown;
    if (this.zoom > 1 && (now < this.from || now > this.from + this.span)) {
      this.from = now < this.from ? now - this.span * 0.9 : now - this.span * 0.1;
      return this.draw();
    }
    this.playhead.style.left = this.place(now);
    setAttribute(this.playhead, "aria-valuemax", this.duration.toFixed(2));
    setAttribute(this.playhead, "aria-valuenow", now.toFixed(2));
    setAttribute(this.playhead, "aria-valuetext", `${clock(now)} of ${clock(this.duration)}`);
    if (this.duration) this.dot.style.left = `${(now / this.duration) * 100}%`;
  }

  drawRuler() {
    const wanted = `${this.from} ${this.span} ${this.duration} ${this.track.clientWidth}`;
    if (this.drawn === wanted) return;
    this.drawn = wanted;
    const most = Math.max(2, this.track.clientWidth / 70);
    const step = STEPS_S.find(seconds => this.span / seconds <= most) ?? this.span;
    const ticks = [];
    for (let n = Math.ceil(this.from / step); this.duration && n * step <= this.from + this.span + 1e-9; n += 1) {
      const tick = make("span", {text: clock(n * step, step < 1 ? 1 : 0)});
      tick.style.left = this.place(n * step);
      ticks.push(tick);
    }
    this.ruler.replaceChildren(...ticks);
  }

  drawBars() {
    const {segments, selected} = this.editor;
    const focused = this.bars.contains(document.activeElement);
    const lanes = lanesOf(segments);
    this.bars.style.setProperty("--lanes", Math.max(1, ...lanes.map(lane => lane + 1)));
    while (this.bars.children.length > segments.length) this.bars.lastChild.remove();
    while (this.bars.children.length < segments.length)
      this.bars.append(make("div", {class: "bar", role: "option"}, make("span")));
    segments.forEach((row, place) => this.drawBar(this.bars.children[place], row, lanes[place], place));
    const first = segments.some(row => keyOf(row) === selected) ? null : this.bars.firstChild;
    if (first) first.tabIndex = 0;
    setAttribute(this.bars, "role", segments.length ? "listbox" : null);
    setAttribute(this.bars, "aria-label", segments.length ? "Segments" : null);
    setAttribute(this.bars, "aria-orientation", segments.length ? "horizontal" : null);
    if (focused) (this.bars.querySelector("[aria-selected=true]") ?? first ?? this.playhead).focus();
  }

  drawBar(bar, row, lane, place) {
    const key = keyOf(row);
    const chosen = key === this.editor.selected;
    bar.dataset.key = key;
    bar.style.left = this.place(row.start_s);
    bar.style.width = `${((row.end_s - row.start_s) / this.span) * 100}%`;
    bar.style.setProperty("--lane", lane);
    bar.style.setProperty("--hue", this.hueOf(row.label));
    bar.tabIndex = chosen ? 0 : -1;
    setAttribute(bar, "aria-selected", chosen);
    const name = row.label || "no label yet";
    setAttribute(bar, "aria-label", `Segment ${place + 1}: ${name}, ${clock(row.start_s)} to ${clock(row.end_s)}`);
    setAttribute(bar, "title", `${name}, ${clock(row.start_s)} to ${clock(row.end_s)}`);
    bar.classList.toggle("bare", !row.label);
    setText(bar.firstChild, row.label || "?");
  }

  drawHandles() {
    const row = this.editor.selected === null ? null : this.editor.target;
    if (!row || !isSegment(row)) {
      this.handles.replaceChildren();
      this.handles.hidden = true;
      return;
    }
    this.handles.hidden = false;
    for (const edge of ["start", "end"]) {
      const handle = this.handles.querySelector(`[data-edge=${edge}]`) ?? this.handles.appendChild(make("div", {
        class: "handle", role: "slider", tabindex: "0", data: {edge}, "aria-label": `${edge === "start" ? "Start" : "End"} of the segment`,
        "aria-valuemin": "0",
      }));
      const value = row[`${edge}_s`];
      handle.style.left = this.place(value);
      handle.classList.toggle("active", this.editor.edge === edge);
      handle.hidden = value < this.from - 1e-6 || value > this.from + this.span + 1e-6;
      setAttribute(handle, "aria-valuemax", this.duration.toFixed(3));
      setAttribute(handle, "aria-valuenow", value.toFixed(3));
      setAttribute(handle, "aria-valuetext", clock(value, 3));
    }
  }

  // ---- mouse and keys

  choose(key) {
    const row = this.editor.segments.find(row => keyOf(row) === key);
    if (row) this.editor.select(row);
  }

  alongBars(event) {
    const step = {ArrowRight: 1, ArrowLeft: -1}[event.key];
    if (!step || event.shiftKey || event.ctrlKey || event.altKey || event.metaKey) return;
    event.preventDefault();
    event.stopPropagation();
    if (this.editor.selected === null) return this.choose(document.activeElement.dataset.key);
    this.editor.step(step);
  }

  grab(event) {
    if (event.button !== 0 || !this.duration) return;
    event.preventDefault();
    const bar = event.target.closest(".bar");
    const edge = event.target.closest(".handle")?.dataset.edge;
    if (bar) this.choose(bar.dataset.key);
    if (bar || edge) event.target.closest("[tabindex]").focus();
    const move = at => {
      const seconds = this.at(at);
      if (!edge) return this.player.seek(seconds);
      this.editor.move(edge, seconds, {now: false});
      this.player.seek(edge === "start" ? seconds + this.player.margin : Math.max(0, seconds - this.player.margin));
    };
    if (!edge) move(event);
    this.track.setPointerCapture(event.pointerId);
    this.track.onpointermove = move;
    this.track.onpointerup = this.track.onpointercancel = () => {
      this.track.onpointermove = this.track.onpointerup = this.track.onpointercancel = null;
      this.editor.settle();
      this.editor.changed();
    };
  }

  jump(event) {
    if (!this.duration) return;
    event.preventDefault();
    this.player.seek(this.at(event, this.overview, 0, this.duration));
  }
}

// The two fields with the times of the selected segment, and the sentence about the target.
export class Times {
  constructor(fields, editor) {
    Object.assign(this, {fields, editor});
    for (const [edge, field] of Object.entries(fields)) {
      field.addEventListener("change", () => this.enter(edge, field));
      field.addEventListener("keydown", event => {
        if (event.key === "Enter") this.enter(edge, field);
        if (event.key === "Escape") this.draw(true);
      });
    }
  }

  enter(edge, field) {
    const seconds = secondsOf(field.value);
    const wrong = Number.isNaN(seconds);
    setAttribute(field, "aria-invalid", wrong ? "true" : null);
    if (wrong) return this.editor.say("Expected a time such as 12.5 or 1:02.5.");
    this.editor.move(edge, seconds);
    this.draw(true);
  }

  draw(all = false) {
    const row = this.editor.selected === null ? null : this.editor.target;
    for (const [edge, field] of Object.entries(this.fields)) {
      field.disabled = !row;
      if (field === document.activeElement && !all) continue;
      field.value = row ? clock(row[`${edge}_s`], 3) : "";
      setAttribute(field, "aria-invalid", null);
    }
  }
}
