// Questions to the person: a class that is nearly another one, two versions of a row, a class with another name.

import {getJson, postJson} from "./connection.js";
import {byId, clock, make, setText} from "./dom.js";
import {isSegment} from "./rows.js";

const button = (text, run, kind = "") => make("button", {type: "button", class: kind, text, on: {click: run}});

// Shows a <dialog> with these buttons; the first one has the focus.
function show(dialog, buttons) {
  const row = dialog.querySelector(".buttons");
  row.replaceChildren(...buttons);
  if (!dialog.open) dialog.showModal();
  row.querySelector("button")?.focus();
}

// Before a new class is made: is it one that exists, written otherwise?
export async function confirmNewClass(label, store, choose) {
  let near;
  try {
    ({near} = await getJson(`api/near?label=${encodeURIComponent(label)}`));
  } catch {
    near = store.classes.map(found => found.label).filter(known => distance(known, label) <= 2);
  }
  const outside = store.run && !store.classes.some(found => found.inRun && found.label === label);
  if (!near.length && !outside) return choose(label);
  const dialog = byId("near");
  const done = chosen => () => {
    dialog.close();
    if (chosen !== null) choose(chosen);
  };
  setText(byId("near-title"), near.length ? `Did you mean ${near[0]}?` : `“${label}” is a new class`);
  setText(byId("near-text"), (near.length ? `“${label}” is nearly the same as a class that exists. ` : "") +
    (outside ? `The run does not know “${label}”: such clips are not trained on, unless your administrator adds it.` : ""));
  return show(dialog, [
    ...near.slice(0, 3).map((known, place) => button(`Use ${known}`, done(known), place ? "" : "main")),
    button(`New class “${label}”`, done(label)), button("Cancel", done(null), "quiet"),
  ]);
}

// Edits between two words; for when the program cannot be asked.
function distance(a, b) {
  let row = [...Array(b.length + 1).keys()];
  for (let i = 1; i <= a.length; i += 1) {
    const next = [i];
    for (let j = 1; j <= b.length; j += 1)
      next.push(Math.min(next[j - 1] + 1, row[j] + 1, row[j - 1] + (a[i - 1] === b[j - 1] ? 0 : 1)));
    row = next;
  }
  return row[b.length];
}

// A class that the run does not know: which of the run's classes is it? Shows the lines for agent.toml.
export function askSame(label, store) {
  const dialog = byId("same");
  const known = store.classes.filter(found => found.inRun).map(found => found.label);
  const choice = byId("same-choice");
  const lines = byId("same-lines");
  choice.replaceChildren(...known.map(name => make("option", {text: name, value: name})));
  if (store.aliases?.[label]) choice.value = store.aliases[label];
  setText(byId("same-title"), `“${label}” is not a class of the run`);
  const fill = async () => {
    try {
      setText(lines, (await postJson("api/alias", {label, as: choice.value})).lines.trim());
    } catch (error) {
      setText(lines, error.sentence ?? error.message);
    }
  };
  choice.onchange = fill;
  fill();
  show(dialog, [
    button("Copy the lines", () => navigator.clipboard?.writeText(lines.textContent), "main"),
    button("Close", () => dialog.close(), "quiet"),
  ]);
  choice.focus();
}

const version = (title, row, video) => make("div", {class: "version"}, make("h3", {text: title}),
  ...(row ? [
    make("p", {class: "value", text: row.label || "no label"}),
    make("p", {text: isSegment(row) ? `${clock(row.start_s, 3)} to ${clock(row.end_s, 3)}` : "the whole video"}),
    ...["person", "camera", "group"].filter(name => row[name]).map(name => make("p", {text: `${name}: ${row[name]}`})),
  ] : [make("p", {class: "value", text: "removed"})]));

// Shows the first conflict with both versions; the next one follows.
export function showConflict(store, say) {
  const dialog = byId("conflict");
  const [found] = store.conflicts;
  if (!found) return dialog.close();
  const {change, theirs} = found;
  setText(byId("conflict-video"), change.name ?? "");
  byId("versions").replaceChildren(
    version("Yours", change.op === "remove" ? null : change), version("In the file now", theirs));
  const decide = mine => () => {
    store.decide(found, mine);
    say(mine ? "Yours is kept." : "What is in the file stays.");
    if (store.conflicts.length) showConflict(store, say);
    else dialog.close();
  };
  return show(dialog, [
    button("Keep mine", decide(true), "main"), button("Keep what is in the file", decide(false), "main"),
    button("Decide later", () => dialog.close(), "quiet"),
  ]);
}
