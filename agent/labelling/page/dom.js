// Elements and times as text. Whatever a file or a label is called goes into the page as text, never as HTML.

// Returns an element: make("button", {class: "quiet", text: name, "aria-pressed": "true", on: {click: run}}, child, …).
export function make(tag, properties = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (value === null || value === undefined || value === false) continue;
    if (name === "text") element.textContent = value;
    else if (name === "on") for (const [event, run] of Object.entries(value)) element.addEventListener(event, run);
    else if (name === "data") Object.assign(element.dataset, value);
    else element.setAttribute(name, value === true ? "" : value);
  }
  element.append(...children.filter(child => child !== null && child !== undefined));
  return element;
}

export const byId = id => document.getElementById(id);

// Sets an attribute or text only where it differs: screen readers hear changes alone.
export function setText(element, text) {
  if (element.textContent !== text) element.textContent = text;
}

export function setAttribute(element, name, value) {
  if (value === null) element.removeAttribute(name);
  else if (element.getAttribute(name) !== String(value)) element.setAttribute(name, value);
}

// 62.5 -> "1:02.50"; what a person reads on a player.
export function clock(seconds, decimals = 2) {
  if (seconds === null || seconds === undefined || !Number.isFinite(seconds)) return "–";
  const scale = 10 ** decimals;
  const ticks = Math.round(seconds * scale);
  const whole = Math.floor(ticks / scale);
  const [hours, minutes, rest] = [Math.floor(whole / 3600), Math.floor(whole / 60) % 60, whole % 60];
  const fraction = decimals ? `.${String(ticks % scale).padStart(decimals, "0")}` : "";
  const head = hours ? `${hours}:${String(minutes).padStart(2, "0")}` : String(minutes);
  return `${head}:${String(rest).padStart(2, "0")}${fraction}`;
}

// "1:02.5", "62.5" or "62,5" -> 62.5; NaN for anything else.
export function secondsOf(text) {
  const parts = text.trim().replace(",", ".").split(":");
  if (parts.length > 3 || parts.some(part => !/^\d+(\.\d+)?$/.test(part))) return NaN;
  return parts.reduce((sum, part) => sum * 60 + Number(part), 0);
}

export const plural = (count, one, many = `${one}s`) => `${count} ${count === 1 ? one : many}`;

// Arrow keys, Home and End move through the elements of a list of which one can be reached with Tab.
export function roving(list, selector, onMove = () => {}) {
  list.addEventListener("keydown", event => {
    const items = [...list.querySelectorAll(selector)];
    const at = items.indexOf(document.activeElement);
    const step = {ArrowDown: 1, ArrowUp: -1, Home: -items.length, End: items.length}[event.key];
    if (at < 0 || !step || event.ctrlKey || event.altKey || event.metaKey || event.shiftKey) return;
    event.preventDefault();
    event.stopPropagation();
    const next = items[Math.max(0, Math.min(items.length - 1, at + step))];
    for (const item of items) item.tabIndex = item === next ? 0 : -1;
    next.focus();
    onMove(next);
  });
}
