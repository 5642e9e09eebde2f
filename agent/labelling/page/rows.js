// Rows of labels.csv as the page sees them, and changes of them. No element and no request in here.

const micros = seconds => (seconds === null || seconds === undefined ? "" : Math.round(seconds * 1e6));

// A row is known by its video and its times: "whole" for the whole video.
export const keyOf = span => {
  const [start, end] = [micros(span?.start_s), micros(span?.end_s)];
  return start === "" && end === "" ? "whole" : `${start}-${end}`;
};

export const isSegment = row => keyOf(row) !== "whole";
export const spanOf = row => (row ? {start_s: row.start_s, end_s: row.end_s} : null);

// Names of a set of columns that a person may fill in besides label and times.
export const ABOUT = ["group", "person", "camera"];

const plain = (row, path) => ({
  path, label: row.label ?? "", start_s: row.start_s ?? null, end_s: row.end_s ?? null,
  ...Object.fromEntries(ABOUT.map(name => [name, row[name] ?? ""])),
});

// The change that puts `after` in the place of `before` (null: a row that is not there yet).
export function put(video, before, after) {
  const row = plain(after, video.path);
  return {
    op: "put", video: video.id, name: video.name, ...row, replaces: spanOf(before),
    expected: before ? plain(before, before.path ?? video.path) : null,
  };
}

export function remove(video, row) {
  return {
    op: "remove", video: video.id, name: video.name, ...plain(row, video.path), replaces: spanOf(row),
    expected: plain(row, row.path ?? video.path),
  };
}

// What is sent of a change.
export function onWire(change) {
  const {op, video, label, start_s, end_s, replaces, expected, group, person, camera} = change;
  return {op, video, label, start_s, end_s, replaces, expected, group, person, camera};
}

// The rows after a change; a change that was made already changes nothing.
export function applied(rows, change) {
  const gone = new Set([keyOf(change)]);
  if (change.replaces) gone.add(keyOf(change.replaces));
  const kept = rows.filter(row => !gone.has(keyOf(row)));
  return change.op === "put" ? inOrder([...kept, plain(change, change.path)]) : kept;
}

// The whole video first, then segments by start.
export function inOrder(rows) {
  return [...rows].sort((a, b) => (a.start_s ?? -1) - (b.start_s ?? -1) || (a.end_s ?? 0) - (b.end_s ?? 0));
}

export const sameRow = (a, b) =>
  Boolean(a) === Boolean(b) &&
  (!a || (keyOf(a) === keyOf(b) && ["label", ...ABOUT].every(name => (a[name] ?? "") === (b[name] ?? ""))));

// "unlabelled", "labelled", "segments" or "problem".
export function stateOf(video) {
  if (video.problem) return "problem";
  if (video.rows.some(isSegment)) return "segments";
  return video.rows.some(row => row.label) ? "labelled" : "unlabelled";
}

// Nothing is left to do: a label on the whole video, or on each of its segments.
export const isDone = video => video.rows.length > 0 && video.rows.filter(
  row => isSegment(row) || !video.rows.some(isSegment)).every(row => row.label);

// Lanes for segments that overlap, so that no bar hides another: [lane of each row].
export function lanesOf(segments) {
  const ends = [];
  return segments.map(({start_s, end_s}) => {
    let lane = ends.findIndex(end => end <= start_s + 1e-7);
    if (lane < 0) lane = ends.length;
    ends[lane] = end_s;
    return lane;
  });
}

// Lines that a person should look at: overlaps of two segments, and a label on the whole video next to segments.
export function remarksOn(rows, clock) {
  const segments = rows.filter(isSegment);
  const remarks = segments.slice(1).flatMap((row, place) => {
    const before = segments[place];
    return row.start_s < before.end_s - 1e-7
      ? [`Segments ${place + 1} and ${place + 2} overlap from ${clock(row.start_s)} to ${
        clock(Math.min(before.end_s, row.end_s))}.`]
      : [];
  });
  const whole = rows.find(row => !isSegment(row));
  if (segments.length && whole?.label)
    remarks.unshift(`The whole video counts as a clip of “${whole.label}” too, next to its segments. ` +
      "If that is wrong, press Escape, then Delete.");
  return remarks;
}
