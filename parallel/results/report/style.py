"""The report's style sheet. Colours are Okabe and Ito's (2008), told apart by colour-blind readers, darkened on light
and lightened on dark ground until marks stand out 3:1; text goes by 4.5:1 or more.
"""

STYLE = """
:root {
  color-scheme: light dark;
  --ground: #fcfbf9; --panel: #ffffff; --ink: #1d1f23; --muted: #63676e; --rule: #e2dfd9; --grid: #eceae5;
  --best: #f1f6f3;
  --single: #7b7f87; --data_parallel: #0072b2; --model_parallel: #d55e00; --one_weird_trick: #00875f;
  --ddp: #3a97d1; --from_file: #b8568c; --searched: #b87900; --other: #5d4e9b;
  --compute: #4f6d8f; --communication: #d55e00; --wait: #e69f00; --idle: #c9c6bf; --rest: #e6e3dd;
}
@media (prefers-color-scheme: dark) {
  :root {
    --ground: #14161a; --panel: #1a1d22; --ink: #e7e6e3; --muted: #9aa0a8; --rule: #31353c; --grid: #282c32;
    --best: #1b2723;
    --single: #9a9fa8; --data_parallel: #4aa5e0; --model_parallel: #f0853c; --one_weird_trick: #2fbf93;
    --ddp: #8ccbf2; --from_file: #df93bd; --searched: #efb63a; --other: #a99bea;
    --compute: #7d9fc6; --communication: #f0853c; --wait: #efb63a; --idle: #555a62; --rest: #383c43;
  }
}
* { box-sizing: border-box; }
body {
  margin: 0; background: var(--ground); color: var(--ink);
  font: 16px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", "Noto Sans", sans-serif;
  -webkit-font-smoothing: antialiased;
}
main { max-width: 1320px; margin: 0 auto; padding: 56px 28px 96px; }
h1, h2, h3 { font-family: Charter, "Bitstream Charter", "Iowan Old Style", Georgia, "Noto Serif", serif;
  font-weight: 600; line-height: 1.2; letter-spacing: -0.005em; text-wrap: balance; }
h1 { font-size: 38px; margin: 0 0 10px; }
h2 { font-size: 26px; margin: 72px 0 4px; }
h3 { font-size: 19px; margin: 44px 0 2px; }
p { margin: 6px 0; max-width: 46em; }
.eyebrow { color: var(--muted); font-size: 13px; letter-spacing: .08em; text-transform: uppercase; margin: 0 0 10px; }
.lead { font-size: 18px; margin: 14px 0 4px; }
.caption { max-width: 66em; }
.caption, .where { color: var(--muted); font-size: 14px; }
.where b { color: var(--ink); font-weight: 600; }
.figure { margin: 10px 0 0; overflow-x: auto; }
.figure svg { display: block; width: 100%; min-width: 720px; height: auto; overflow: visible; }
svg text { font-size: 13px; fill: var(--ink); font-variant-numeric: tabular-nums; }
svg .small { font-size: 12px; fill: var(--muted); }
svg .name { font-weight: 600; }
svg .strong { font-weight: 600; font-size: 14px; }
svg .grid { stroke: var(--grid); stroke-width: 1; }
svg .axis { stroke: var(--rule); stroke-width: 1; }
svg .mark { stroke: var(--ink); stroke-width: 1.25; stroke-dasharray: 3 3; }
svg .halo { paint-order: stroke; stroke: var(--ground); stroke-width: 4px; stroke-linejoin: round; }
svg .on { fill: #fff; font-size: 12px; font-weight: 600; }
svg .off { font-size: 12px; }
svg .end { font-size: 12px; font-weight: 500; }
@media (prefers-color-scheme: dark) { svg .on { fill: #14161a; } }
.table { overflow-x: auto; margin: 22px 0 6px; }
table { border-collapse: collapse; font-size: 13px; font-variant-numeric: tabular-nums; white-space: nowrap; }
.table table { min-width: 100%; }
th { font-weight: 500; color: var(--muted); text-align: right; padding: 4px 6px 7px; vertical-align: bottom;
  border-bottom: 1px solid var(--ink); font-size: 12.5px; }
th.group { text-align: center; border-bottom: 1px solid var(--rule); padding-bottom: 3px; }
th.none { border: 0; padding: 0; }
td { text-align: right; padding: 7px 6px; border-bottom: 1px solid var(--rule); }
th.word, td.word { text-align: left; }
td:first-child, th:first-child { padding-left: 0; }
td:last-child, th:last-child { padding-right: 0; }
tr.baseline td, tr.machine td { color: var(--muted); }
tr.best td { background: var(--best); }
td .chip { display: inline-block; width: 10px; height: 10px; border-radius: 2px; margin-right: 8px; }
td .role { color: var(--muted); font-size: 12px; font-weight: 400; }
td .chip ~ .role { margin-left: 7px; }
td.key { font-weight: 600; color: var(--ink); }
.curves { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 460px), 1fr)); gap: 24px 24px; }
.curves svg { min-width: 0; }
.legend { display: flex; flex-wrap: wrap; gap: 4px 20px; font-size: 13px; color: var(--muted); margin: 8px 0 0; }
.legend span::before { content: ""; display: inline-block; width: 11px; height: 11px; border-radius: 2px;
  margin-right: 7px; background: var(--c); vertical-align: -1px; }
.notes { margin: 18px 0 0; padding: 0; list-style: none; font-size: 14px; }
.notes li { border-left: 3px solid var(--rule); padding: 2px 0 2px 12px; margin: 8px 0; max-width: 62em;
  overflow-wrap: anywhere; }
details { border-bottom: 1px solid var(--rule); padding: 9px 0; font-size: 14px; }
summary { cursor: pointer; }
summary b { font-weight: 600; }
summary span { color: var(--muted); }
details table { margin: 10px 0; white-space: normal; }
details td { text-align: left; padding: 3px 24px 3px 0; border: 0; vertical-align: top; overflow-wrap: anywhere; }
details td:first-child { color: var(--muted); white-space: nowrap; }
pre { font: 12.5px/1.5 ui-monospace, "SF Mono", Menlo, Consolas, "DejaVu Sans Mono", monospace; margin: 8px 0;
  padding: 12px 14px; background: var(--panel); border: 1px solid var(--rule); border-radius: 4px; overflow: auto;
  max-height: 420px; }
footer { margin-top: 72px; color: var(--muted); font-size: 13px; }
@media (max-width: 640px) { main { padding: 32px 16px 64px; } h1 { font-size: 30px; } }
@media print { main { max-width: none; padding: 0; } details { break-inside: avoid; } .figure { break-inside: avoid; } }
"""
