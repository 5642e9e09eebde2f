// The keys of the page. Off where a person types, in dialogs, and where the keys were switched off in the help.

const SPEEDS = [0.25, 0.5, 1, 1.5, 2, 4];
const OFF = "flamest-label-keys-off";

export const keysOn = () => localStorage.getItem(OFF) === null;
export const switchKeys = on => (on ? localStorage.removeItem(OFF) : localStorage.setItem(OFF, "1"));

export function changeSpeed(player, by) {
  const at = SPEEDS.indexOf(player.speed);
  player.speed = SPEEDS[Math.max(0, Math.min(SPEEDS.length - 1, (at < 0 ? 2 : at) + by))];
}

// What each key does. `page` has the parts: editor, player, videos, timeline, classes, and actions of its own.
export function commandsOf({editor, player, videos, timeline, actions}) {
  return {
    " ": () => player.toggle(),
    ",": () => player.step(-1),
    ".": () => player.step(1),
    ArrowLeft: () => player.seek(player.shown - 1),
    ArrowRight: () => player.seek(player.shown + 1),
    "Shift+ArrowLeft": () => editor.nudge(-1),
    "Shift+ArrowRight": () => editor.nudge(1),
    PageUp: () => player.seek(player.shown - 10),
    PageDown: () => player.seek(player.shown + 10),
    Home: () => player.seek(0),
    End: () => player.seek(player.duration),
    i: () => editor.setStart(),
    o: () => editor.setEnd(),
    e: () => editor.switchEdge(),
    s: () => editor.split(),
    l: () => editor.toggleLoop(),
    j: () => editor.step(1),
    k: () => editor.step(-1),
    Escape: () => editor.escape(),
    Delete: () => editor.erase(),
    Backspace: () => editor.erase(),
    Enter: () => editor.accept(),
    n: () => videos.step(1),
    p: () => videos.step(-1),
    N: () => videos.nextUndone(),
    t: actions.type,
    "/": actions.type,
    u: actions.undo,
    "Ctrl+z": actions.undo,
    U: actions.redo,
    "Ctrl+Z": actions.redo,
    "Ctrl+y": actions.redo,
    "-": () => changeSpeed(player, -1),
    "+": () => changeSpeed(player, 1),
    "=": () => changeSpeed(player, 1),
    z: () => timeline.zoomBy(2),
    Z: () => timeline.zoomBy(0.5),
    "?": actions.help,
  };
}

// "Shift+ArrowLeft", "Ctrl+z", "N"; a letter that Shift makes is itself.
function nameOf(event) {
  if (event.altKey) return null;
  if (event.ctrlKey || event.metaKey) return /^[zZy]$/.test(event.key) ? `Ctrl+${event.key}` : null;
  return event.shiftKey && event.key.length > 1 ? `Shift+${event.key}` : event.key;
}

// The digit of a number key, on keyboards too where the row of digits needs Shift (French).
function digitOf(event) {
  if (event.ctrlKey || event.altKey || event.metaKey) return 0;
  if (/^[1-9]$/.test(event.key)) return Number(event.key);
  const [, digit] = (!event.shiftKey && /^Digit([1-9])$/.exec(event.code)) || [];
  return digit && !/^[a-z,./?+=-]$/i.test(event.key) ? Number(digit) : 0;
}

export function listen(page) {
  const commands = commandsOf(page);
  document.addEventListener("keydown", event => {
    const target = event.target;
    if (page.store.ended || event.defaultPrevented || event.isComposing || document.querySelector("dialog[open]")) return;
    const edge = target.closest?.("[data-edge]")?.dataset.edge;
    if (edge && ["ArrowLeft", "ArrowRight"].includes(event.key)) {
      event.preventDefault();
      return page.editor.nudge(event.key === "ArrowLeft" ? -1 : 1, edge);
    }
    if (target.closest?.("input, select, textarea")) return;
    const name = nameOf(event);
    const single = name?.length === 1 && name !== " ";
    if ((name === " " || name === "Enter") && target.closest?.("button, summary, a")) return;
    if (!keysOn() && single && name !== "?") return;
    const digit = digitOf(event);
    const run = digit && keysOn() ? () => page.classes.number(digit) : commands[name];
    if (!run) return;
    event.preventDefault();
    run();
  });
}
