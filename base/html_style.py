"""The style sheet of all pages that are one file: light, dark, phone and print."""

LIGHT = """
  --ground: #f7f6f3; --card: #ffffff; --ink: #1d2126; --muted: #58606a; --line: #e3e1dc; --track: #ecebe7;
  --accent: #0b6e6e; --plain: #8d97a3; --central: #7a4fa3; --local: #a84b08; --quiet: #58606a; --wrong: #b3261e;
  --shade: rgb(0 0 0 / 18%);
"""
DARK = """
  --ground: #14171a; --card: #1b1f24; --ink: #e8eaec; --muted: #a3acb6; --line: #2e343b; --track: #2a3037;
  --accent: #4fc3b8; --plain: #75808c; --central: #c3a0e8; --local: #f0a35e; --quiet: #a3acb6; --wrong: #ff9088;
  --shade: rgb(0 0 0 / 70%);
"""

BASE = """
* { box-sizing: border-box; }
html { -webkit-text-size-adjust: 100%; text-size-adjust: 100%; }
body { margin: 0; background: var(--ground); color: var(--ink); font-variant-numeric: tabular-nums;
  font: 16px/1.55 ui-sans-serif, system-ui, -apple-system, "Segoe UI", Roboto, "Noto Sans", sans-serif; }
main { max-width: 60rem; margin: 0 auto; padding: 3.5rem 1.5rem 5rem; }
h1 { font-size: clamp(1.7rem, 4.5vw, 2.5rem); line-height: 1.15; letter-spacing: -0.02em; font-weight: 650;
  margin: 0 0 0.9rem; text-wrap: balance; overflow-wrap: anywhere; }
h2 { font-size: 1.2rem; line-height: 1.3; font-weight: 650; letter-spacing: -0.01em; margin: 0 0 0.9rem;
  text-wrap: balance; }
h3 { font-size: 0.95rem; font-weight: 600; margin: 0 0 0.5rem; overflow-wrap: anywhere; }
* + h3 { margin-top: 1.75rem; }
p { margin: 0 0 0.75rem; max-width: 46rem; }
small { display: block; font-size: 0.8125rem; line-height: 1.4; font-weight: 400; color: var(--muted); }
header { margin-bottom: 2rem; }
.eyebrow { color: var(--accent); font-weight: 600; font-size: 0.9rem; margin: 0 0 0.5rem; }
.lede { font-size: 1.0625rem; overflow-wrap: anywhere; text-wrap: pretty; }
.muted, .note { color: var(--muted); }
.note { font-size: 0.875rem; margin: 1.25rem 0 0; }
.facts { list-style: none; display: flex; flex-wrap: wrap; gap: 0.15rem 1.4rem; margin: 0 0 0.35rem; padding: 0;
  font-weight: 550; }
section { background: var(--card); border: 1px solid var(--line); border-radius: 14px;
  padding: 1.75rem; margin: 0 0 1.25rem; }
.split { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 20rem), 1fr)); gap: 1.75rem 3rem; }
.split > * { min-width: 0; }
.split.three { grid-template-columns: repeat(auto-fit, minmax(min(100%, 14rem), 1fr)); gap: 1.5rem 2.25rem; }
.scroll { overflow-x: auto; background: linear-gradient(90deg, var(--card) 60%, transparent) left / 2rem 100%,
  linear-gradient(270deg, var(--card) 60%, transparent) right / 2rem 100%,
  linear-gradient(90deg, var(--shade), transparent) left / 0.75rem 100%,
  linear-gradient(270deg, var(--shade), transparent) right / 0.75rem 100%;
  background-repeat: no-repeat; background-attachment: local, local, scroll, scroll; }
:focus-visible { outline: 2px solid var(--accent); outline-offset: 4px; border-radius: 6px; }
details { margin-top: 1.25rem; }
summary { cursor: pointer; color: var(--muted); font-size: 0.9rem; width: fit-content; padding: 0.25rem 0; }
pre { overflow-x: auto; background: var(--track); border-radius: 8px; padding: 0.85rem 1rem; margin: 0 0 1rem;
  font: 0.875rem/1.6 ui-monospace, "SF Mono", Menlo, Consolas, "DejaVu Sans Mono", monospace;
  white-space: pre-wrap; overflow-wrap: anywhere; }
code { font: inherit; }
pre span { display: inline-block; }
dd code { font: 0.8125rem/1.5 ui-monospace, "SF Mono", Menlo, Consolas, "DejaVu Sans Mono", monospace; }
"""

TABLES = """
table { border-collapse: collapse; width: 100%; font-size: 0.925rem; }
table.narrow { width: auto; margin-top: 0.75rem; }
th, td { padding: 0.5rem 0.6rem; text-align: right; border-bottom: 1px solid var(--line); white-space: nowrap;
  unicode-bidi: isolate; }
th:first-child { text-align: left; padding-left: 0; }
td:last-child, thead th:last-child { padding-right: 0; }
thead th { color: var(--muted); font-weight: 500; font-size: 0.85rem; vertical-align: bottom; white-space: normal; }
tbody th { font-weight: 600; }
tbody tr:last-child > * { border-bottom: 0; }
dl { margin: 0; font-size: 0.925rem; }
dl > div { display: flex; justify-content: space-between; gap: 0.15rem 1.5rem; padding: 0.45rem 0;
  border-bottom: 1px solid var(--line); }
dl > div:last-child { border-bottom: 0; }
dt { color: var(--muted); }
dd { margin: 0 0 0 auto; min-width: min(7rem, 60%); text-align: right; font-weight: 550; overflow-wrap: anywhere;
  unicode-bidi: isolate; }
.gains th:first-child { white-space: normal; overflow-wrap: anywhere; min-width: 6rem; }
.gains .graph { width: 45%; padding: 0.5rem 1rem; }
.gains thead .graph { text-align: left; color: var(--muted); font-size: 0.8125rem; vertical-align: bottom; }
.gains thead i { display: inline-block; width: 0.7rem; height: 0.7rem; border-radius: 3px; margin: 0 0.35rem 0 0; }
.gains thead i + i { margin-left: 0.6rem; }
.gains .gain { font-weight: 650; }
.scroll tbody th { white-space: normal; overflow-wrap: anywhere; min-width: 9.5rem; max-width: 22rem; }
.meter { display: inline-grid; grid-template-columns: 3.6rem 4rem; align-items: center; gap: 0.75rem; }
.meter .track { grid-column: auto; }
"""

BARS = """
.hero { font-size: clamp(3.2rem, 9vw, 4.75rem); line-height: 1; letter-spacing: -0.035em; font-weight: 650;
  color: var(--accent); margin: 0 0 0.75rem; }
.figure { font-size: 1.75rem; line-height: 1.2; font-weight: 650; letter-spacing: -0.02em; margin: 0 0 0.25rem; }
.verdicts { list-style: none; margin: 1.1rem 0 0; padding: 0; font-weight: 550; }
.verdicts li { padding: 0.45rem 0; border-top: 1px solid var(--line); }
.bars { display: grid; gap: 0.9rem; align-content: start; }
.bars.thin { gap: 0.6rem; margin-top: 1rem; }
.bar { display: grid; grid-template-columns: 1fr auto; gap: 0.3rem 1rem; font-size: 0.925rem; }
.bar .name { overflow-wrap: anywhere; unicode-bidi: isolate; min-width: 0; }
.bar .value { font-weight: 600; white-space: nowrap; }
.track { grid-column: 1 / -1; display: flex; height: 9px; border-radius: 5px; background: var(--track);
  overflow: hidden; }
.track > span { display: block; height: 100%; }
.track > span:first-child { min-width: 2px; }
.plain { background: var(--plain); }
.accent { background: var(--accent); }
.loss { background: repeating-linear-gradient(135deg, var(--wrong) 0 3px, transparent 3px 6px); }
.badge { display: inline-block; margin-left: 0.5rem; padding: 0 0.45rem; border: 1px solid var(--accent);
  border-radius: 9px; color: var(--accent); font-size: 0.75rem; font-weight: 600; line-height: 1.35; }
.strips { display: grid; gap: 0.85rem; }
.strips p { display: flex; flex-wrap: wrap; justify-content: space-between; gap: 0 1rem; max-width: none;
  margin: 0 0 0.25rem; font-size: 0.925rem; overflow-wrap: anywhere; }
.strips p span { color: var(--muted); }
.strip { display: flex; gap: 2px; height: 22px; }
.strip.dense { gap: 0; border-radius: 4px; overflow: hidden; }
.strip i { flex: 1 1 0; border-radius: 3px;
  background: color-mix(in srgb, var(--accent) calc(var(--share) * 100%), var(--track)); }
.strip.dense i { border-radius: 0; }
.overlap { display: grid; gap: 4px; margin: 0.75rem 0 1.25rem; max-width: 46rem; }
.overlap > div { display: grid; grid-template-columns: 3.5rem 1fr; align-items: center; }
.overlap span { font-size: 0.8125rem; color: var(--muted); }
.overlap > div > div > div { display: flex; gap: 1px; height: 14px; border-radius: 4px; overflow: hidden; }
.overlap > div > div > div > span { background: var(--plain); }
.overlap > div > div > div > span:nth-child(odd) { background: var(--accent); }
.steps { margin: 0 0 1.25rem; padding-left: 1.4rem; max-width: 46rem; }
.steps li { margin-bottom: 0.5rem; padding-left: 0.25rem; }
.verdict { font-weight: 650; margin: 0 0 0.6rem; }
.verdict.right { color: var(--accent); }
.verdict.wrong { color: var(--wrong); }
.frames { display: grid; grid-template-columns: repeat(4, minmax(0, 1fr)); gap: 4px; margin-bottom: 0.75rem;
  max-width: 34rem; }
.frames img { display: block; width: 100%; height: auto; border-radius: 5px; }
.clip dd { flex: 1 1 0; }
"""

CHART = """
.chart { --right: 12.5rem; font-size: 0.875rem; }
.plot { position: relative; height: 300px; margin: 1.4rem var(--right) 0 3rem; }
.plot > svg { position: absolute; inset: 0; width: 100%; height: 100%; overflow: visible; }
.chart path { vector-effect: non-scaling-stroke; fill: none; }
.tick { position: absolute; color: var(--muted); font-size: 0.8125rem; line-height: 1; white-space: nowrap; }
.tick.y { right: calc(100% + 0.6rem); transform: translateY(-50%); }
.tick.x { top: calc(100% + 0.6rem); transform: translateX(-50%); }
.axis { margin: 1.75rem var(--right) 0 3rem; text-align: center; max-width: none; color: var(--muted);
  font-size: 0.8125rem; line-height: 1; }
.ends { position: absolute; left: 100%; top: 0; }
.ends svg { display: block; overflow: visible; }
.label { position: absolute; left: 22px; transform: translateY(-50%); line-height: 1; white-space: nowrap;
  font-weight: 550; }
.legend { display: none; list-style: none; margin: 1rem 0 0; padding: 0; gap: 0.3rem 1.25rem; flex-wrap: wrap; }
.legend li { display: flex; align-items: center; gap: 0.5rem; }
.legend svg { width: 32px; height: 8px; flex: none; }
.grid { stroke: var(--line); stroke-width: 1; }
.line { stroke-width: 1.75; }
.leader { stroke-width: 1; opacity: 0.6; }
.line.federated, .leader.federated { stroke: var(--accent); }
.line.central, .leader.central { stroke: var(--central); }
.line.local, .leader.local { stroke: var(--local); }
.line.metadata, .line.chance, .leader.metadata, .leader.chance { stroke: var(--quiet); }
.line.federated { stroke-width: 3; stroke-linejoin: round; stroke-linecap: round; }
.line.central { stroke-dasharray: 10 4; }
.line.local { stroke-dasharray: 5 4; }
.line.metadata { stroke-dasharray: 8 4 2 4; }
.line.chance { stroke-dasharray: 2 4; }
.dot { stroke: var(--accent); stroke-width: 8; stroke-linecap: round; }
.label.federated { color: var(--accent); font-weight: 650; }
.label.central { color: var(--central); }
.label.local { color: var(--local); }
.label.metadata, .label.chance { color: var(--quiet); }
@media (max-width: 44rem) {
  .chart { --right: 0.25rem; }
  .ends { display: none; }
  .legend { display: flex; }
}
"""

NARROW = """
@media (max-width: 34rem) {
  main { padding: 2rem 0.75rem 3rem; }
  section { padding: 1.25rem 1rem; border-radius: 10px; }
  header { padding: 0 0.25rem; }
  th, td { padding: 0.5rem 0.35rem; }
  thead th { font-size: 0.8rem; }
  .gains th:first-child { min-width: 0; }
  .gains, .gains thead, .gains tbody { display: block; }
  .gains tr { display: grid; grid-template-columns: minmax(0, 1fr) 3.9rem 4.6rem 3.7rem; align-items: baseline;
    border-bottom: 1px solid var(--line); padding: 0.5rem 0; }
  .gains tbody tr:last-child { border: 0; }
  .gains tr > * { padding: 0; border: 0; }
  .gains .graph { grid-row: 2; grid-column: 1 / -1; width: auto; padding: 0.4rem 0 0; }
  .meter { grid-template-columns: auto; }
  .meter .track { display: none; }
  dl > div { flex-wrap: wrap; column-gap: 0.75rem; }
}
"""

PRINT = """
@media print {
  body { font-size: 10.5pt; background: #fff; print-color-adjust: exact; -webkit-print-color-adjust: exact; }
  main { max-width: none; padding: 0; }
  section { border: 0; border-top: 1px solid var(--line); border-radius: 0; padding: 1.1rem 0; break-inside: avoid; }
  .scroll { overflow: visible; background: none; }
  summary { display: none; }
  details::details-content { content-visibility: visible; display: block; }
}
"""

STYLE = f"""
:root {{ color-scheme: light dark; {LIGHT}}}
@media screen and (prefers-color-scheme: dark) {{ :root {{ {DARK}}} }}
@media print {{ :root {{ color-scheme: light; }} }}
{BASE}{TABLES}{BARS}{CHART}{NARROW}{PRINT}"""
