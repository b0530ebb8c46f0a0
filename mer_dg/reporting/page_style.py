"""Style sheet of the HTML page: light and dark, phone, desktop and print."""

CSS = """
:root {
  --paper: #ffffff; --ink: #1b1f24; --soft: #565d66; --line: #d8dce1; --panel: #f5f6f8;
  --grid: #dddddd; --rule: #888888; --axis: #555555;
  --good: #0a6b4b; --bad: #a33c00; --open: #4b5563; --link: #0b5ea8;
  color-scheme: light dark;
}
@media (prefers-color-scheme: dark) {
  :root {
    --paper: #15181c; --ink: #e6e8eb; --soft: #a3abb5; --line: #363c44;
    --panel: #1e2228; --grid: #343a41; --rule: #8b929a; --axis: #b3bac2;
    --good: #4cc79a; --bad: #f29a63; --open: #b4bcc6; --link: #7db8f0;
  }
}
* { box-sizing: border-box; }
html { -webkit-text-size-adjust: 100%; }
body {
  margin: 0 auto; max-width: 62rem; padding: 1.25rem clamp(.9rem, 4vw, 2rem) 3rem;
  background: var(--paper); color: var(--ink);
  font: 1rem/1.55 system-ui, -apple-system, "Segoe UI", Roboto, sans-serif;
  overflow-wrap: break-word;
}
h1 { font-size: 1.7rem; line-height: 1.2; margin: 0 0 .2rem; }
h2 { font-size: 1.25rem; margin: 2.4rem 0 .6rem; }
h3 { font-size: 1.05rem; margin: 1.8rem 0 .5rem; }
p { margin: .5rem 0; max-width: 44rem; }
a { color: var(--link); }
nav { font-size: .92rem; }
nav a { margin-right: .9rem; white-space: nowrap; }
code { font: .88em ui-monospace, SFMono-Regular, Menlo, Consolas, monospace; }
.soft, figcaption, .note { color: var(--soft); font-size: .88rem; }
.answer {
  border: 1px solid var(--line); border-left: .4rem solid var(--open);
  border-radius: .4rem; background: var(--panel); padding: .8rem 1rem; margin: 1rem 0;
}
.answer.better { border-left-color: var(--good); }
.answer.worse { border-left-color: var(--bad); }
.answer .short { font-size: 1.15rem; font-weight: 600; margin: 0; }
.verdicts { list-style: none; padding: 0; margin: .6rem 0 0; }
.verdicts li { padding: .45rem 0; border-top: 1px solid var(--line); max-width: 48rem; }
.mark { font-weight: 700; white-space: nowrap; }
.better .mark { color: var(--good); }
.worse .mark { color: var(--bad); }
.unclear .mark { color: var(--open); }
.scroll { overflow-x: auto; margin: .8rem 0; }
table { border-collapse: collapse; font-size: .92rem; }
th, td { padding: .32rem .7rem; text-align: right; white-space: nowrap; }
th:first-child, td:first-child { text-align: left; }
thead th {
  border-bottom: 2px solid var(--line); font-weight: 600; vertical-align: bottom;
}
tbody td, tbody th { border-bottom: 1px solid var(--line); font-weight: 400; }
.numbers th:first-child { position: sticky; left: 0; background: var(--paper); }
td strong { font-weight: 700; }
td em { font-style: normal; text-decoration: underline; text-underline-offset: .18em; }
.facts td, .facts th { text-align: left; white-space: normal; vertical-align: top; }
.facts th { color: var(--soft); min-width: 8rem; }
figure { margin: 1rem 0; }
figure svg { display: block; max-width: 100%; height: auto; }
figure svg * { stroke-linejoin: round; stroke-linecap: butt; }
figure .wide { overflow-x: auto; }
figure .wide svg { max-width: none; }
.key span { display: inline-block; margin-right: 1.1rem; white-space: nowrap; }
figure .key svg { display: inline-block; vertical-align: middle; overflow: visible; }
.panels { display: flex; flex-wrap: wrap; gap: .6rem 1.2rem; }
.panels > div { flex: 0 1 auto; max-width: 100%; }
@media (max-width: 34rem) {
  th, td { padding: .3rem .45rem; }
  h1 { font-size: 1.45rem; }
}
@media print {
  :root {
    --paper: #ffffff; --ink: #000000; --soft: #444444; --line: #bbbbbb;
    --panel: #ffffff; --grid: #dddddd; --rule: #888888; --axis: #555555;
    --good: #0a6b4b; --bad: #a33c00; --open: #4b5563; --link: #000000;
  }
  body { max-width: none; padding: 0; font-size: 9.5pt; }
  nav { display: none; }
  figure, .answer, .numbers, tr { break-inside: avoid; }
  h2, h3 { break-after: avoid; }
  .scroll, figure .wide { overflow: visible; }
  .panels { gap: .3rem .6rem; }
  .panels > div { width: 31%; }
  figure .wide svg { max-width: 100%; height: auto; }
  table { font-size: 8pt; }
  th, td { padding: .2rem .35rem; white-space: normal; }
}
"""
