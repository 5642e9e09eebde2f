// The page on which people label videos: puts its parts together. docs/guides/labelling.md is its guide.

import {Events, postJson} from "./connection.js";
import {askSame, confirmNewClass, showConflict} from "./dialogs.js";
import {byId, clock, make, plural, setAttribute, setText} from "./dom.js";
import {Editor, progressOf} from "./editor.js";
import {Kept, tabName} from "./kept.js";
import {keysOn, listen, switchKeys} from "./keys.js";
import {ClassField, Classes, hueOf} from "./labels.js";
import {Player} from "./player.js";
import {ABOUT, keyOf, remarksOn} from "./rows.js";
import {Store} from "./store.js";
import {Timeline, Times} from "./timeline.js";
import {described, Videos} from "./videos.js";

const ADVANCE = "flamest-label-advance";
const SEEN_HELP = "flamest-label-seen-help";
const OPEN = "flamest-label-open";
const ADOPT_MS = 2000;

// Says what happened, to eyes and to screen readers. The same sentence twice is said twice.
function say(text) {
  const said = byId("said");
  said.textContent = said.textContent === text ? `${text}\u00a0` : text;
}

class Page {
  constructor(tab) {
    this.store = new Store(tab);
    this.player = new Player(byId("video"));
    this.editor = new Editor(this.store, this.player, say);
    this.videos = new Videos(byId("videos"), {filter: byId("filter"), search: byId("search"), count: byId("count")},
      this.store, this.editor);
    this.timeline = new Timeline(byId("timeline"), this.editor, this.player,
      label => hueOf(label, this.store.order));
    this.times = new Times({start: byId("start"), end: byId("end")}, this.editor);
    this.classes = new Classes(byId("classes"), this.store, this.editor, {onSame: label => askSame(label, this.store)});
    this.field = new ClassField(byId("class-field"), byId("found"), this.store, {
      onChoose: label => this.editor.label(label),
      onNew: label => this.newClass(label),
    });
    this.actions = {
      type: () => byId("class-field").focus(), help: () => this.help(),
      undo: async () => say(await (this.editor.settle(), this.store.undo())),
      redo: async () => say(await (this.editor.settle(), this.store.redo())),
    };
    this.wire();
    listen(this);
  }

  wire() {
    const {store, player, editor, timeline} = this;
    store.addEventListener("change", () => editor.follow());
    store.addEventListener("ended", () => this.end());
    store.addEventListener("refused", ({detail: {action, error}}) => this.refused(action, error));
    editor.addEventListener("change", () => this.draw());
    editor.addEventListener("labelled", () => byId("advance").checked && this.videos.step(1));
    player.addEventListener("time", () => (timeline.drawTime(), this.drawTime()));
    player.addEventListener("state", () => this.drawTime());
    player.addEventListener("facts", () => (timeline.reset(), this.draw()));
    player.addEventListener("problem", ({detail}) => this.playerSays(`This video cannot be shown: ${detail}`));
    player.addEventListener("waiting", () => this.playerSays("Loading …"));
    player.addEventListener("ready", () => this.playerSays(""));
    const clicks = {
      play: () => player.toggle(), back: () => player.step(-1), forward: () => player.step(1),
      "set-start": () => editor.setStart(), "set-end": () => editor.setEnd(), split: () => editor.split(),
      loop: () => editor.toggleLoop(), delete: () => editor.erase(), whole: () => editor.escape(),
      previous: () => this.videos.step(-1), next: () => this.videos.step(1), "next-undone": () => this.videos.nextUndone(),
      undo: this.actions.undo, redo: this.actions.redo, help: this.actions.help, accept: () => editor.accept(),
      "zoom-in": () => timeline.zoomBy(2), "zoom-out": () => timeline.zoomBy(0.5),
      "show-conflict": () => showConflict(store, say),
    };
    for (const [id, run] of Object.entries(clicks)) {
      byId(id).addEventListener("click", run);
      // With the mouse a button does not take the focus: Space still plays.
      byId(id).addEventListener("mousedown", event => event.preventDefault());
    }
    byId("suggesting-switch").addEventListener("click", () => this.switchSuggestions());
    byId("speed").addEventListener("change", ({target}) => (player.speed = Number(target.value)));
    byId("video").addEventListener("click", () => player.toggle());
    byId("advance").checked = localStorage.getItem(ADVANCE) !== null;
    byId("advance").addEventListener("change", ({target}) =>
      target.checked ? localStorage.setItem(ADVANCE, "1") : localStorage.removeItem(ADVANCE));
    byId("keys-on").checked = keysOn();
    byId("keys-on").addEventListener("change", ({target}) => switchKeys(target.checked));
    for (const name of ABOUT)
      byId(name).addEventListener("change", ({target}) => editor.describe(name, target.value.trim()));
    for (const closer of document.querySelectorAll("[data-close]"))
      closer.addEventListener("click", () => closer.closest("dialog").close());
    if (matchMedia("(max-width: 60rem)").matches) byId("videos-part").open = false;
    addEventListener("beforeunload", event => {
      editor.settle();
      if (store.queue.length && !store.ended) event.preventDefault();
    });
    addEventListener("pagehide", () => editor.settle());
  }

  async start() {
    const {store} = this;
    try {
      await store.load();
    } catch (error) {
      store.lost(error);
      if (!store.ended) setTimeout(() => this.start(), 3000);
      return;
    }
    const taken = number => number && say(`${plural(number, "change")} from before ${number === 1 ? "is" : "are"} saved now.`);
    taken(await store.resume(new Kept(store.tab, store.folder)));
    setInterval(async () => taken(await store.adopt()), ADOPT_MS);
    const known = id => store.video(id)?.id;
    const first = known(sessionStorage.getItem(OPEN)) ?? store.videos[0]?.id;
    if (first !== undefined) this.editor.open(first);
    byId("main").removeAttribute("aria-busy");
    this.events = new Events(["changed", "suggestion", "video"], {
      onEvent: (name, data) => this.onEvent(name, data), onLost: () => store.retry(),
      onBack: () => store.retry(),
    });
    if (localStorage.getItem(SEEN_HELP) === null) byId("welcome").hidden = false;
    byId("welcome-close").addEventListener("click", () => {
      localStorage.setItem(SEEN_HELP, "1");
      byId("welcome").hidden = true;
    });
  }

  onEvent(name, data) {
    const {store} = this;
    if (name === "suggestion") {
      store.suggestions.set(data.id, {label: data.label, probability: data.probability});
      return this.draw();
    }
    if (name === "changed" && data.revision === store.revision) return null;
    return store.refreshSoon();
  }

  refused(action, error) {
    byId("refused").hidden = false;
    byId("refused").append(make("p", {text: `Not saved: ${action.said}. ${error.sentence}.`}));
  }

  // The window is of no use any more, but for what it says.
  end() {
    this.events?.stop();
    this.player.element.pause();
    byId("main").inert = true;
    for (const button of document.querySelectorAll("header button")) button.disabled = button.id !== "help";
  }

  newClass(label) {
    const {place} = this.editor;
    return confirmNewClass(label, this.store, chosen => this.editor.label(chosen, place));
  }

  async switchSuggestions() {
    try {
      Object.assign(this.store, await postJson("api/suggestions", {on: !this.store.suggesting}));
    } catch (error) {
      say(`${error.sentence}.`);
    }
    this.draw();
  }

  help() {
    localStorage.setItem(SEEN_HELP, "1");
    byId("welcome").hidden = true;
    byId("help-text").showModal();
  }

  playerSays(text) {
    setText(byId("player-says"), text);
    byId("player-says").hidden = !text;
  }

  // ---- drawing

  draw() {
    if (this.waiting) return;
    this.waiting = true;
    queueMicrotask(() => {
      this.waiting = false;
      this.drawNow();
    });
  }

  drawNow() {
    const {store, editor} = this;
    if (editor.id !== null) sessionStorage.setItem(OPEN, editor.id);
    this.drawHeader();
    this.videos.draw();
    this.timeline.draw();
    this.times.draw();
    this.classes.draw();
    this.drawTarget();
    this.drawSuggestion();
    this.drawList();
    this.drawTime();
    byId("empty").hidden = store.videos.length > 0 || store.revision === null;
    if (store.conflicts.length && !this.asked && !document.querySelector("dialog[open]")) {
      this.asked = true;
      showConflict(store, say);
    }
    if (!store.conflicts.length) this.asked = false;
  }

  drawHeader() {
    const {store} = this;
    const {done, all, text} = progressOf(store.videos);
    setText(byId("folder"), store.folder);
    setText(byId("progress-text"), text);
    byId("progress").max = Math.max(1, all);
    byId("progress").value = done;
    const waiting = store.queue.length;
    const failed = !byId("refused").hidden;
    const time = store.savedAt?.toLocaleTimeString("en-GB");
    setText(byId("saved"), store.trouble ? (waiting ? `${plural(waiting, "change")} not saved yet` : "no connection") :
      waiting ? "saving …" : failed ? "not everything could be saved" : time ? `saved ${time}` : "everything is saved");
    byId("saved").dataset.state = store.trouble || failed ? "trouble" : waiting ? "waiting" : "saved";
    byId("undo").disabled = store.ended || !waiting && !store.undoable;
    byId("redo").disabled = store.ended || waiting > 0 || !store.redoable;
    this.drawTrouble();
    const conflicts = store.conflicts.length;
    byId("conflicts").hidden = !conflicts;
    setText(byId("conflicts-text"), conflicts ? `${plural(conflicts, "change")} met a newer version in the file. ` : "");
    const problems = store.problems ?? [];
    byId("problems").hidden = !problems.length;
    byId("problems-list").replaceChildren(...problems.map(({line, reason}) =>
      make("li", {text: line ? `labels.csv, line ${line}: ${reason}` : reason})));
    setText(byId("problems-title"), `${plural(problems.length, "line")} of labels.csv cannot be read`);
    byId("extracting").hidden = !store.extracting;
    byId("readonly").hidden = store.writable !== false;
  }

  drawTrouble() {
    const {trouble, queue} = this.store;
    const box = byId("trouble");
    if (!trouble) {
      box.hidden = true;
      return setText(box, "");
    }
    const kept = queue.length ? ` Your ${plural(queue.length, "change")} ${queue.length === 1 ? "is" : "are"} kept in ` +
      `this browser and saved ${trouble.locked ? "by the new window" : "as soon as it works again"}. If the program was ` +
      `started with another number than ${location.port}: flamest-agent label --port ${location.port}` : "";
    const what = trouble.locked ? "This window's address is no longer valid, because the program was started again. " +
      "Open the address that it shows now, in this browser." : trouble.status ? `Not saved: ${trouble.sentence}.` :
      "The connection to the program is lost: is it still running? This page keeps trying.";
    box.hidden = false;
    return setText(box, what + kept);
  }

  drawTarget() {
    const {editor} = this;
    const {video, target, mark} = editor;
    const chosen = editor.selected !== null && target;
    setText(byId("video-title"), video?.name ?? "No video is open");
    setText(byId("video-about"), video ? described(video) : "");
    const place = chosen ? `Segment ${editor.segments.findIndex(row => keyOf(row) === editor.selected) + 1} of ${
      editor.segments.length}` : "Whole video";
    setText(byId("target"), place);
    setText(byId("target-label"), target?.label || "no label yet");
    byId("target-label").classList.toggle("bare", !target?.label);
    setText(byId("target-times"), mark !== null ? `a new segment starts at ${clock(mark)}: press o where it ends` :
      chosen ? `${clock(target.start_s)} to ${clock(target.end_s)}` : "");
    byId("whole").hidden = !chosen && mark === null;
    setText(byId("whole-text"), mark !== null ? "Forget the start" : "Back to the whole video");
    setAttribute(byId("loop"), "aria-pressed", Boolean(this.player.loop));
    for (const name of ABOUT) {
      const field = byId(name);
      if (field !== document.activeElement) field.value = target?.[name] ?? "";
      field.disabled = !target;
    }
    const remarks = remarksOn(editor.rows, seconds => clock(seconds));
    byId("remarks").replaceChildren(...remarks.map(text => make("p", {text})));
  }

  drawSuggestion() {
    const {suggestion, target} = this.editor;
    const shown = suggestion && target?.label !== suggestion.label;
    byId("suggestion").hidden = !shown;
    byId("suggesting").hidden = !this.store.model;
    setText(byId("suggesting-text"), this.store.suggesting ?
      "The model is looking at the videos without a label." : "The model suggests nothing new.");
    setText(byId("suggesting-switch"), this.store.suggesting ? "Stop" : "Start");
    if (shown) setText(byId("suggestion-text"),
      `The model suggests ${suggestion.label} (${Math.round(suggestion.probability * 100)} %).`);
  }

  drawList() {
    const {editor} = this;
    const {segments} = editor;
    byId("list-part").hidden = !segments.length;
    setText(byId("list-title"), `All ${plural(segments.length, "segment")} as a list`);
    const rows = segments.map((row, place) => make("tr", {class: keyOf(row) === editor.selected ? "chosen" : null},
      make("td", {text: String(place + 1)}),
      make("th", {scope: "row"}, make("button", {type: "button", class: "link", text: row.label || "no label",
        data: {key: keyOf(row)}, on: {click: () => editor.select(row)}})),
      make("td", {text: clock(row.start_s)}), make("td", {text: clock(row.end_s)}),
      make("td", {text: `${(row.end_s - row.start_s).toFixed(2)} s`})));
    const key = document.activeElement?.closest?.("#list")?.querySelector(":focus")?.dataset.key;
    byId("list").replaceChildren(...rows);
    if (key) byId("list").querySelector(`[data-key="${CSS.escape(key)}"]`)?.focus();
  }

  drawTime() {
    const {player} = this;
    setText(byId("time"), `${clock(player.shown)} / ${clock(player.duration)}`);
    setText(byId("play-text"), player.playing ? "Pause" : "Play");
    byId("play").dataset.playing = player.playing;
    if (byId("speed").value !== String(player.speed)) byId("speed").value = String(player.speed);
  }
}

new Page(await tabName()).start();
