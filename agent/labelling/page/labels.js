// The classes: chosen by number, by mouse, or by typing with completion; progress by class; the model's suggestion.

import {byId, make, plural, roving, setAttribute, setText} from "./dom.js";

const NUMBERED = 9;
const MOST_FOUND = 8;

// A colour for each class, far from those of the classes next to it; grey for no label.
export function hueOf(label, order) {
  const place = order.indexOf(label);
  return place < 0 ? 0 : Math.round(175 + place * 137.5) % 360;
}

export class Classes {
  constructor(list, store, editor, {onSame}) {
    Object.assign(this, {list, store, editor, onSame});
    roving(list, ".class");
  }

  number(digit) {
    const found = this.store.classes[digit - 1];
    if (found) this.editor.label(found.label);
    else this.editor.say(`There is no class with number ${digit}. Press t to type a class.`);
  }

  draw() {
    const {classes} = this.store;
    const most = Math.max(1, ...classes.map(({clips}) => clips));
    const current = this.editor.target?.label;
    const focused = this.list.contains(document.activeElement) ? document.activeElement.dataset.label : null;
    while (this.list.children.length > classes.length) this.list.lastChild.remove();
    while (this.list.children.length < classes.length) this.list.append(this.item());
    const reachable = classes.findIndex(({label}) => label === (focused ?? current));
    classes.forEach((found, place) => this.drawItem(this.list.children[place], found, place, {
      most, chosen: found.label === current, reachable: place === Math.max(0, reachable),
    }));
  }

  item() {
    const button = make("button", {type: "button", class: "class", on: {
      click: () => this.editor.label(button.dataset.label),
      mousedown: event => event.preventDefault(),
    }}, make("kbd"), make("span", {class: "name"}), make("span", {class: "clips"}), make("span", {class: "meter"}));
    const same = make("button", {type: "button", class: "quiet same", text: "not in the run", on: {
      click: () => this.onSame(button.dataset.label),
    }});
    return make("li", {}, button, same);
  }

  drawItem(item, {label, clips, inRun}, place, {most, chosen, reachable}) {
    const [button, same] = item.children;
    const [digit, name, count, meter] = button.children;
    button.dataset.label = label;
    button.tabIndex = reachable ? 0 : -1;
    button.style.setProperty("--hue", hueOf(label, this.store.order));
    setAttribute(button, "aria-pressed", chosen);
    setText(digit, place < NUMBERED ? String(place + 1) : "");
    digit.hidden = place >= NUMBERED;
    setText(name, label);
    setText(count, plural(clips, "clip"));
    meter.style.setProperty("--share", clips / most);
    const alias = this.store.aliases?.[label];
    same.hidden = !this.store.run || inRun;
    setText(same, alias ? `counts as ${alias}` : "not in the run");
    setAttribute(same, "aria-label", alias ? `${label} counts as ${alias} in the run` :
      `${label} is not a class of the run: is it the same as one?`);
  }
}

// A text field with a list of the classes that match (ARIA's combobox pattern).
export class ClassField {
  constructor(field, list, store, {onChoose, onNew}) {
    Object.assign(this, {field, list, store, onChoose, onNew, found: [], at: -1});
    field.addEventListener("input", () => this.search());
    field.addEventListener("focus", () => this.search());
    field.addEventListener("blur", () => this.close());
    field.addEventListener("keydown", event => this.key(event));
    list.addEventListener("mousedown", event => {
      event.preventDefault();
      const option = event.target.closest("[role=option]");
      if (option) this.choose([...list.children].indexOf(option));
    });
  }

  get typed() {
    return this.field.value.trim().replace(/\s+/g, " ");
  }

  // Classes that begin with what was typed, then those that hold it; last, a new class.
  search() {
    const typed = this.typed.toLowerCase();
    const labels = this.store.classes.map(({label}) => label);
    const lower = label => label.toLowerCase();
    const rank = label => (lower(label) === typed ? 0 : lower(label).startsWith(typed) ? 1 : 2);
    this.found = labels.filter(label => lower(label).includes(typed)).sort((a, b) => rank(a) - rank(b))
      .slice(0, MOST_FOUND).map(label => ({label}));
    if (this.typed && !labels.includes(this.typed)) this.found.push({label: this.typed, fresh: true});
    this.at = this.typed ? 0 : -1;
    this.draw();
  }

  key(event) {
    if (event.key === "ArrowDown" || event.key === "ArrowUp") {
      event.preventDefault();
      if (this.list.hidden) return this.search();
      const count = this.found.length;
      if (count) this.at = (this.at + (event.key === "ArrowDown" ? 1 : this.at < 0 ? 0 : -1) + count) % count;
      this.draw();
    } else if (event.key === "Enter") {
      event.preventDefault();
      this.choose(this.at);
    } else if (event.key === "Escape") {
      event.preventDefault();
      event.stopPropagation();
      if (this.field.value) {
        this.field.value = "";
        this.search();
      } else this.leave();
    }
  }

  choose(place) {
    const chosen = this.found[place];
    if (!chosen) return;
    this.field.value = "";
    this.leave();
    if (chosen.fresh) this.onNew(chosen.label);
    else this.onChoose(chosen.label);
  }

  // Back to where the keys are.
  leave() {
    byId("player").focus({preventScroll: true});
  }

  close() {
    this.list.hidden = true;
    setAttribute(this.field, "aria-expanded", "false");
    setAttribute(this.field, "aria-activedescendant", null);
  }

  draw() {
    if (document.activeElement !== this.field) return;
    this.list.replaceChildren(...this.found.map(({label, fresh}, place) => make("li", {
      role: "option", id: `found-${place}`, "aria-selected": String(place === this.at),
      text: fresh ? `New class “${label}”` : label, class: fresh ? "fresh" : null,
    })));
    this.list.hidden = !this.found.length;
    setAttribute(this.field, "aria-expanded", String(!this.list.hidden));
    setAttribute(this.field, "aria-activedescendant", this.at >= 0 && this.found.length ? `found-${this.at}` : null);
    this.list.children[this.at]?.scrollIntoView({block: "nearest"});
  }
}
