// The list of videos, with what is done and what is not.

import {clock, make, plural, roving, setAttribute, setText} from "./dom.js";
import {isDone, isSegment, stateOf} from "./rows.js";

const SIGNS = {unlabelled: "○", labelled: "●", segments: "◫", problem: "!"};

export class Videos {
  constructor(list, {filter, search, count}, store, editor) {
    Object.assign(this, {list, filter, search, count, store, editor, items: new Map()});
    roving(list, ".video", item => editor.open(item.dataset.id));
    // A click opens a video and leaves the keys (Home, End, the arrows) to it; whoever comes by Tab moves in the list.
    list.addEventListener("mousedown", event => event.preventDefault());
    list.addEventListener("click", event => {
      const item = event.target.closest(".video");
      if (item) editor.open(item.dataset.id);
    });
    filter.addEventListener("change", () => this.draw());
    search.addEventListener("input", () => this.draw());
  }

  // The videos of the list as it is filtered; the open one stays in it.
  get visible() {
    const typed = this.search.value.trim().toLowerCase();
    const wanted = {
      all: () => true, todo: video => !isDone(video) && !video.problem, labelled: video => stateOf(video) === "labelled",
      segments: video => stateOf(video) === "segments", problem: video => Boolean(video.problem),
    }[this.filter.value];
    return this.store.videos.filter(video => video.id === this.editor.id ||
      (wanted(video) && (!typed || video.name.toLowerCase().includes(typed))));
  }

  step(by, wanted = () => true) {
    const videos = this.visible;
    const at = videos.findIndex(({id}) => id === this.editor.id);
    for (let next = at + by; next >= 0 && next < videos.length; next += by)
      if (wanted(videos[next])) {
        this.editor.open(videos[next].id);
        return this.editor.say(`${videos[next].name}: ${described(videos[next])}.`);
      }
    this.editor.say(by > 0 ? "This is the last video of the list." : "This is the first video of the list.");
  }

  nextUndone() {
    const videos = this.visible;
    const at = videos.findIndex(({id}) => id === this.editor.id);
    const next = [...videos.slice(at + 1), ...videos.slice(0, Math.max(at, 0))]
      .find(video => !video.problem && !isDone(video));
    if (!next) return this.editor.say("Every video of the list is labelled.");
    this.editor.open(next.id);
    this.editor.say(`${next.name}: ${described(next)}.`);
  }

  draw() {
    const videos = this.visible;
    const wanted = videos.map(video => this.item(video));
    const same = wanted.length === this.list.children.length && wanted.every((item, n) => item === this.list.children[n]);
    if (!same) {
      const focused = this.list.contains(document.activeElement) ? document.activeElement : null;
      this.list.replaceChildren(...wanted);
      if (focused?.isConnected) focused.focus();
    }
    if (!videos.some(({id}) => id === this.editor.id) && wanted.length) wanted[0].tabIndex = 0;
    setAttribute(this.list, "role", videos.length ? "listbox" : null);
    setAttribute(this.list, "aria-label", videos.length ? "Videos" : null);
    setText(this.count, videos.length === this.store.videos.length ? plural(videos.length, "video") :
      `${videos.length} of ${plural(this.store.videos.length, "video")}`);
    const known = new Set(this.store.videos.map(({id}) => id));
    for (const id of this.items.keys()) if (!known.has(id)) this.items.delete(id);
  }

  item(video) {
    const item = this.items.get(video.id) ?? make("li", {class: "video", role: "option", data: {id: video.id}},
      make("span", {class: "sign", "aria-hidden": "true"}), make("span", {class: "name"}),
      make("span", {class: "about"}));
    this.items.set(video.id, item);
    const [sign, name, about] = item.children;
    const [open, state] = [video.id === this.editor.id, stateOf(video)];
    const was = item.getAttribute("aria-selected");
    item.tabIndex = open ? 0 : -1;
    item.dataset.state = state;
    item.classList.toggle("done", isDone(video));
    setAttribute(item, "aria-selected", open);
    setText(sign, SIGNS[state]);
    setText(name, video.name);
    setText(about, described(video));
    if (open && was !== "true") requestAnimationFrame(() => this.show(item));
    return item;
  }

  // Scrolls the list alone, not the page; the place where Tab goes on stays.
  show(item) {
    const [view, box] = [this.list.getBoundingClientRect(), item.getBoundingClientRect()];
    if (box.top < view.top) this.list.scrollTop -= view.top - box.top;
    else if (box.bottom > view.bottom) this.list.scrollTop += box.bottom - view.bottom;
  }
}

export function described(video) {
  if (video.problem) return `cannot be used: ${video.problem}`;
  const segments = video.rows.filter(isSegment);
  const bare = segments.filter(row => !row.label).length;
  const whole = video.rows.find(row => !isSegment(row))?.label;
  const parts = [
    segments.length ? plural(segments.length, "segment") + (bare ? `, ${bare} without a label` : "") : null,
    whole ? whole : segments.length ? null : "no label",
    video.duration_s ? clock(video.duration_s, 0) : null,
  ];
  return parts.filter(Boolean).join(" · ");
}
