"""The report's style sheet: light, dark and print."""

STYLE = """
:root {
  color-scheme: light dark;
  --ground: #fbfaf8; --card: #ffffff; --ink: #1d2126; --muted: #5b636d; --line: #e3e1dc; --track: #ecebe7;
  --accent: #0b6e6e; --plain: #8d97a3; --central: #7a4fa3; --local: #b4530a; --metadata: #5b636d; --chance: #5b636d;
}
@media (prefers-color-scheme: dark) {
  :root {
    --ground: #14171a; --card: #1b1f24; --ink: #e8eaec; --muted: #a3acb6; --line: #2e343b; --track: #2a3037;
    --accent: #4fc3b8; --plain: #75808c; --central: #c3a0e8; --local: #f0a35e; --metadata: #a3acb6; --chance: #a3acb6;
  }
}
* { box-sizing: border-box; }
html { -webkit-text-size-adjust: 100%; text-size-adjust: 100%; }
body {
  margin: 0; background: var(--ground); color: var(--ink);
  font: 16px/1.55 ui-sans-serif, system-ui, -apple-system, "Segoe UI", Roboto, "Noto Sans", sans-serif;
  font-variant-numeric: tabular-nums;
}
main { max-width: 62rem; margin: 0 auto; padding: 3.5rem 1.5rem 5rem; }
h1 { font-size: clamp(1.7rem, 4.5vw, 2.5rem); line-height: 1.15; letter-spacing: -0.02em; font-weight: 650;
  margin: 0 0 1rem; text-wrap: balance; }
h2 { font-size: 1.15rem; font-weight: 650; letter-spacing: -0.01em; margin: 0 0 1.25rem; }
h3 { font-size: 0.95rem; font-weight: 600; margin: 0 0 0.5rem; }
p { margin: 0 0 0.75rem; }
header { margin-bottom: 2.25rem; }
.eyebrow { color: var(--accent); font-weight: 600; font-size: 0.9rem; margin: 0 0 0.5rem; }
.muted, .note { color: var(--muted); }
.note { font-size: 0.875rem; margin: 1.25rem 0 0; max-width: 46rem; }
.facts { list-style: none; display: flex; flex-wrap: wrap; gap: 0.15rem 1.5rem; margin: 0 0 0.35rem; padding: 0; }
section { background: var(--card); border: 1px solid var(--line); border-radius: 14px;
  padding: 1.75rem; margin: 0 0 1.25rem; }
.split { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 21rem), 1fr)); gap: 1.75rem 3rem; }
.split > * { min-width: 0; }
.hero { font-size: clamp(3.2rem, 9vw, 4.75rem); line-height: 1; letter-spacing: -0.035em; font-weight: 650;
  color: var(--accent); margin: 0 0 0.75rem; }
.verdicts { list-style: none; margin: 1.1rem 0 0; padding: 0; font-weight: 550; }
.verdicts li { padding: 0.45rem 0; border-top: 1px solid var(--line); }
.bars { display: grid; gap: 0.9rem; align-content: start; }
.bar { display: grid; grid-template-columns: 1fr auto; gap: 0.3rem 1rem; font-size: 0.925rem; }
.bar .name { overflow-wrap: anywhere; unicode-bidi: isolate; }
.bar .value { font-weight: 600; white-space: nowrap; }
.track { grid-column: 1 / -1; display: block; height: 9px; border-radius: 5px; background: var(--track);
  overflow: hidden; }
.track > span { display: block; height: 100%; border-radius: 5px; min-width: 2px; }
.plain { background: var(--plain); }
.accent { background: var(--accent); }
.soft { opacity: 0.6; }
.chart, .scroll { overflow-x: auto; }
.chart:focus-visible, .scroll:focus-visible, summary:focus-visible { outline: 2px solid var(--accent);
  outline-offset: 4px; border-radius: 6px; }
svg { display: block; width: 100%; min-width: 38rem; height: auto; font-size: 13px; overflow: visible; }
svg text { fill: var(--ink); }
svg .tick { fill: var(--muted); font-size: 12px; }
svg .end { text-anchor: end; }
svg .middle { text-anchor: middle; }
svg .best { fill: var(--accent); font-weight: 600; paint-order: stroke; stroke: var(--card); stroke-width: 4px; }
.grid { stroke: var(--line); stroke-width: 1; fill: none; }
.line { fill: none; stroke-width: 1.75; }
.leader { fill: none; stroke-width: 1; opacity: 0.6; }
.federated { stroke: var(--accent); }
.central { stroke: var(--central); }
.local { stroke: var(--local); }
.metadata { stroke: var(--metadata); }
.chance { stroke: var(--chance); }
.line.federated { stroke-width: 3; stroke-linejoin: round; stroke-linecap: round; }
.line.central { stroke-dasharray: 10 4; }
.line.local { stroke-dasharray: 5 4; }
.line.metadata { stroke-dasharray: 8 4 2 4; }
.line.chance { stroke-dasharray: 2 4; }
svg .label { stroke: none; font-weight: 550; }
svg .label.federated { fill: var(--accent); font-weight: 650; }
svg .label.central { fill: var(--central); }
svg .label.local { fill: var(--local); }
svg .label.metadata, svg .label.chance { fill: var(--muted); }
.dot { fill: var(--accent); stroke: var(--card); stroke-width: 2; }
.ring { fill: none; stroke: var(--accent); stroke-width: 1.5; }
details { margin-top: 1rem; }
summary { cursor: pointer; color: var(--muted); font-size: 0.9rem; width: fit-content; }
table { border-collapse: collapse; width: 100%; font-size: 0.925rem; }
table.narrow { width: auto; margin-top: 0.75rem; }
th, td { padding: 0.5rem 0.6rem; text-align: right; border-bottom: 1px solid var(--line); white-space: nowrap;
  unicode-bidi: isolate; }
th:first-child { text-align: left; padding-left: 0; }
td:last-child, thead th:last-child { padding-right: 0; }
thead th { color: var(--muted); font-weight: 500; font-size: 0.85rem; vertical-align: bottom; white-space: normal; }
tbody th { font-weight: 600; }
tbody tr:last-child > * { border-bottom: 0; }
.heat { display: inline-block; min-width: 3rem; padding: 0.1rem 0.45rem; border-radius: 6px;
  background: color-mix(in srgb, var(--accent) calc(var(--share) * 42%), transparent); }
.meter { display: inline-grid; grid-template-columns: 3.6rem 6rem; align-items: center; gap: 0.75rem; }
.meter .track { grid-column: auto; }
.frames { display: flex; gap: 0.5rem; overflow-x: auto; margin-bottom: 1.5rem; }
.frames img { display: block; flex: 1 1 0; min-width: 5.5rem; max-width: 11rem; border-radius: 8px; }
dl { margin: 0; font-size: 0.925rem; }
dl > div { display: flex; justify-content: space-between; gap: 1.5rem; padding: 0.45rem 0;
  border-bottom: 1px solid var(--line); }
dl > div:last-child { border-bottom: 0; }
dt { color: var(--muted); }
dd { margin: 0; min-width: 4.5rem; text-align: right; font-weight: 550; overflow-wrap: anywhere;
  unicode-bidi: isolate; }
@media (max-width: 34rem) {
  main { padding: 2rem 0.9rem 3rem; }
  section { padding: 1.25rem 1.1rem; border-radius: 10px; }
}
@media print {
  :root { --ground: #fff; --card: #fff; --ink: #000; --muted: #444; --line: #ccc; --track: #eee;
    --accent: #0b6e6e; --plain: #8d97a3; --central: #7a4fa3; --local: #b4530a; --metadata: #444; --chance: #444; }
  body { font-size: 11pt; print-color-adjust: exact; -webkit-print-color-adjust: exact; }
  main { max-width: none; padding: 0; }
  section { border: 0; border-top: 1px solid var(--line); border-radius: 0; padding: 1.1rem 0; break-inside: avoid; }
  svg { min-width: 0; }
  .chart, .scroll, .frames { overflow: visible; }
  .frames img { min-width: 0; }
  .meter { grid-template-columns: 3.6rem 3rem; }
  summary { display: none; }
  details::details-content { content-visibility: visible; display: block; }
}
"""
