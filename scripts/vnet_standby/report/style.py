# SPDX-License-Identifier: GPL-2.0-or-later
"""The page's style sheet.

Blue and orange for the two paths are what colour-blind readers can tell apart, in light and in
dark; loss is never told by colour alone.
"""

STYLE = """
:root {
  color-scheme: light dark;
  --back: #ffffff; --text: #1b1f24; --quiet: #59636e; --rule: #d8dde3; --box: #f5f7f9;
  --primary: #0069b4; --standby: #d97c00; --lost: #c4123f; --other: #69717a;
  --gap: #7a5cb830; --bulk: #c3ccd6; --phase: #8c98a5;
  --host0: #b9d9cf; --host1: #82b5a5; --warn: #fff4d6; --warn-rule: #c98a00;
  --failover: #5b6ee1; --blackout: #2f353c; --failback: #e0a100;
}
@media (prefers-color-scheme: dark) {
  :root {
    --back: #14171b; --text: #e6e9ed; --quiet: #9ba5b0; --rule: #343b43; --box: #1c2126;
    --primary: #5ab0ee; --standby: #f2a93b; --lost: #ff5f7e; --other: #8c96a0;
    --gap: #a98be84a; --bulk: #3b454f; --phase: #66727f;
    --host0: #24493e; --host1: #37705f; --warn: #342a10; --warn-rule: #d9a520;
  --failover: #8f9dff; --blackout: #c3ccd6; --failback: #f0c34a;
  }
}
* { box-sizing: border-box; }
body { margin: 0; background: var(--back); color: var(--text);
  font: 15px/1.5 system-ui, "Segoe UI", "DejaVu Sans", sans-serif; }
main { max-width: 1200px; margin: 0 auto; padding: 24px 24px 64px; }
h1 { font-size: 26px; line-height: 1.2; margin: 8px 0 4px; }
h2 { font-size: 19px; margin: 40px 0 8px; }
h3 { font-size: 15px; margin: 24px 0 4px; }
p { max-width: 80ch; }
.ground, .note, figcaption { color: var(--quiet); }
.note, figcaption { font-size: 13px; max-width: 100ch; }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(136px, 1fr)); gap: 8px;
  margin: 20px 0; }
.tiles div { background: var(--box); border: 1px solid var(--rule); border-radius: 6px;
  padding: 10px 12px; }
.tiles dt { color: var(--quiet); font-size: 13px; }
.tiles dd { margin: 0; font-size: 22px; font-weight: 600; font-variant-numeric: tabular-nums; }
.tiles small { display: block; color: var(--quiet); font-size: 12px; font-weight: 400; }
.warnings { background: var(--warn); border-left: 4px solid var(--warn-rule); padding: 4px 16px; }
.warnings h2 { margin: 8px 0; font-size: 16px; }
.wide, figure { overflow-x: auto; }
figure { margin: 8px 0; }
table { border-collapse: collapse; font-size: 14px; }
th, td { padding: 5px 14px 5px 0; border-bottom: 1px solid var(--rule); vertical-align: top;
  text-align: left; overflow-wrap: anywhere; }
th { color: var(--quiet); font-weight: 600; white-space: nowrap; }
.figure { text-align: right; white-space: nowrap; font-variant-numeric: tabular-nums; }
td.word { min-width: 5.5em; max-width: 60ch; }
.dense th { white-space: normal; min-width: 6em; vertical-align: bottom; }
.dense td:first-child { min-width: 16em; }
details { margin: 8px 0; }
summary { cursor: pointer; }
pre { background: var(--box); border: 1px solid var(--rule); border-radius: 6px; padding: 12px;
  white-space: pre-wrap; overflow-wrap: anywhere; font-size: 13px; }
.legend { display: flex; flex-wrap: wrap; gap: 4px 20px; list-style: none; padding: 0;
  margin: 8px 0; font-size: 13px; }
.swatch { display: inline-block; width: 22px; height: 12px; margin-right: 6px;
  vertical-align: -1px; border-radius: 2px; }
.swatch.primary { background: var(--primary); }
.swatch.standby { background: var(--standby); }
.swatch.lost { background: var(--lost); }
.swatch.gap { background: var(--gap); border: 1px solid var(--rule); }
.swatch.failover { background: var(--failover); }
.swatch.blackout, .swatch.stopped { background: var(--blackout); }
.swatch.failback { background: var(--failback); }
a { color: inherit; text-decoration-color: var(--other); }
svg { display: block; width: 100%; min-width: 900px; height: auto;
  font: 11px system-ui, "Segoe UI", "DejaVu Sans", sans-serif; fill: var(--text); }
svg .group { font-size: 13px; font-weight: 600; }
svg .lane { font-size: 12px; }
svg .tick, svg .tiny { fill: var(--quiet); }
svg .tiny { font-size: 10px; paint-order: stroke; stroke: var(--back); stroke-width: 3px; }
svg .middle { text-anchor: middle; }
svg .end { text-anchor: end; }
svg .on-primary, svg .on-other { fill: var(--back); font-weight: 600; }
svg .on-standby { fill: #1b1f24; font-weight: 600; }
svg .inside, svg .kind { pointer-events: none; }
svg .grid { stroke: var(--rule); stroke-width: 1; }
svg .base { stroke: var(--quiet); stroke-width: 1; }
svg .when { stroke: var(--quiet); stroke-width: 1; stroke-dasharray: 3 3; }
svg .gap { fill: var(--gap); }
svg .switch, svg .event { fill: var(--text); }
svg .bulk { fill: var(--bulk); }
svg .phase { fill: var(--phase); }
svg .host0 { fill: var(--host0); }
svg .host1 { fill: var(--host1); }
svg .primary { fill: var(--primary); }
svg .standby { fill: var(--standby); }
svg .other { fill: var(--other); }
svg .lost { fill: var(--lost); }
svg .cross { stroke: var(--lost); stroke-width: 1.5; fill: none; }
svg .failover { fill: var(--failover); }
svg .blackout, svg .stopped { fill: var(--blackout); }
svg .failback { fill: var(--failback); }
svg .curve { stroke-width: 1.5; }
svg .curve.primary { stroke: var(--primary); }
svg .curve.standby { stroke: var(--standby); }
svg .curve.failover { stroke: var(--failover); }
svg .curve.failback { stroke: var(--failback); }
svg .curve.other { stroke: var(--other); }
svg .cut { stroke: var(--back); stroke-width: 3; }
svg .hover { fill: transparent; }
@media print { svg { min-width: 0; } main { max-width: none; } }
"""
