"""Style and script of a training's report, on top of `engine.visualization.document.STYLE`."""

STYLE = """
:root { --c0: #1b1f24; --c1: #0072b2; --c2: #d55e00; --c3: #008f68; --c4: #b3588f; --c5: #b98000; }
@media screen and (prefers-color-scheme: dark) { :root { --c0: #e6e9ed; --c1: #56b4e9; --c2: #ff8a3d; --c3: #2fc79a;
  --c4: #e59ac6; --c5: #f0c04a; } }
body { max-width: 1340px; }
nav { font-size: 13px; margin: .6em 0; display: flex; flex-wrap: wrap; gap: 2px 1em; }
.lead { color: var(--dim); overflow-wrap: anywhere; }
.tiles { display: flex; flex-wrap: wrap; gap: 10px; margin: 1em 0; }
.tiles div { background: var(--soft); border-radius: 6px; padding: 8px 14px; min-width: 96px; }
.tiles b { display: block; font-size: 21px; font-variant-numeric: tabular-nums; white-space: nowrap; }
.tiles span { font-size: 12px; color: var(--dim); }
.notes { border-left: 4px solid var(--c2); background: var(--soft); padding: 6px 14px; margin: 1em 0;
  overflow-wrap: anywhere; } .notes p { margin: 4px 0; }
.charts { display: grid; gap: 8px 22px; grid-template-columns: repeat(auto-fit, minmax(min(100%, 380px), 1fr)); }
.chart { position: relative; margin: .4em 0; min-width: 0; break-inside: avoid; }
.chart > svg { width: 100%; display: block; }
.chart figcaption { min-height: 42px; color: var(--ink); }
.legend { display: flex; flex-wrap: wrap; gap: 0 14px; color: var(--dim); } .legend svg { vertical-align: middle; }
svg text { font: 12px system-ui, sans-serif; fill: var(--dim); }
.grid { stroke: var(--line); stroke-width: .7; } .line { fill: none; stroke-width: 1.7; stroke-linejoin: round; }
.mark { stroke: var(--c2); stroke-width: 1; stroke-dasharray: 2 2; } .hair { stroke: var(--dim); stroke-width: .8; }
.band { stroke: none; opacity: .18; } .dot { stroke: none; }
.c0 { stroke: var(--c0); } .c1 { stroke: var(--c1); } .c2 { stroke: var(--c2); } .c3 { stroke: var(--c3); }
.c4 { stroke: var(--c4); } .c5 { stroke: var(--c5); }
.band.c0, .dot.c0 { fill: var(--c0); } .band.c1, .dot.c1 { fill: var(--c1); } .band.c2, .dot.c2 { fill: var(--c2); }
.band.c3, .dot.c3 { fill: var(--c3); } .band.c4, .dot.c4 { fill: var(--c4); } .band.c5, .dot.c5 { fill: var(--c5); }
output { position: absolute; display: none; pointer-events: none; background: var(--paper); z-index: 2;
  border: 1px solid var(--line); border-radius: 4px; padding: 3px 8px; font-size: 12px; white-space: pre;
  font-variant-numeric: tabular-nums;
  box-shadow: 0 1px 5px #0004; }
.bars svg { width: 100%; min-width: 760px; display: block; } .roll { overflow-x: auto; }
.bar { fill: var(--c1); } .hit { fill: transparent; } g:hover .bar { fill: var(--c2); }
td meter { width: 90px; }
.page { border: 1px solid var(--line); border-radius: 6px; padding: 10px 14px; margin: 14px 0; break-inside: avoid; }
.page h3 { margin: 0 0 4px; font-size: 15px; overflow-wrap: anywhere; } .page p { margin: 2px 0 8px; font-size: 13px;
  color: var(--dim); overflow-wrap: anywhere; }
.views { display: grid; grid-template-columns: minmax(0, 2.2fr) minmax(0, 1fr) minmax(0, 1fr); gap: 12px;
  align-items: start; }
.views figure { margin: 0; min-width: 0; } .views img { display: block; max-height: 900px; width: auto;
  cursor: zoom-in; }
.views .whole { overflow: auto; } .views img.large { max-width: none; max-height: none; cursor: zoom-out; }
.keys { display: flex; flex-wrap: wrap; gap: 4px 18px; font-size: 13px; } .keys i { display: inline-block; width: 22px;
  height: 12px; border: 3px solid; margin-right: 6px; vertical-align: -2px; border-radius: 2px; }
details { margin: .8em 0; } summary { cursor: pointer; }
.code { position: relative; } .code button { position: absolute; top: 6px; right: 6px; font: 12px system-ui, sans-serif;
  color: var(--ink); background: var(--paper); border: 1px solid var(--line); border-radius: 4px; padding: 3px 9px; }
.code pre { padding-top: 38px; white-space: pre-wrap; overflow-wrap: anywhere; }
@media (max-width: 640px) { body { margin: 1em auto; padding: 0 .7em; } .views { grid-template-columns: 1fr 1fr; }
  .views .whole { grid-column: 1 / -1; } .page { padding: 8px; } }
@media print { * { print-color-adjust: exact; }
  body { max-width: none; margin: 0; } nav, .code button { display: none; }
  .code pre { padding-top: 10px; } .charts { grid-template-columns: 1fr 1fr; }
  .views img { max-height: 800px; } }
"""

# Hovering (nearest step of every line), larger pictures, copying a command. The page is whole without it.
SCRIPT = """
'use strict';
for (const figure of document.querySelectorAll('.chart')) {
  const data = JSON.parse(figure.dataset.chart), svg = figure.querySelector(':scope > svg');
  const hair = svg.querySelector('.hair'), box = figure.querySelector('output'), [left, right, low, high] = data.x;
  const hide = () => { box.style.display = 'none'; hair.setAttribute('visibility', 'hidden'); };
  svg.addEventListener('pointermove', event => {
    const area = svg.getBoundingClientRect(), unit = svg.viewBox.baseVal.width / area.width;
    const at = low + ((event.clientX - area.left) * unit - left) / (right - left) * (high - low);
    let step = null;
    for (const [, points] of data.lines) for (const [x, y] of points)
      if (y !== null && (step === null || Math.abs(x - at) < Math.abs(step - at))) step = x;
    const rows = ['step ' + Math.round(step)];
    for (const [name, points] of data.lines) {
      const found = points.filter(point => point[0] === step).pop();
      if (found) rows.push(name + '  ' + (found[1] === null ? 'no number' : found[1]));
    }
    box.textContent = rows.join('\\n');
    const x = left + (step - low) / ((high - low) || 1) * (right - left);
    hair.setAttribute('x1', x); hair.setAttribute('x2', x); hair.setAttribute('visibility', 'visible');
    box.style.display = 'block';
    const place = x / unit + 12, wide = box.offsetWidth;
    box.style.left = (place + wide > figure.clientWidth ? Math.max(0, x / unit - wide - 12) : place) + 'px';
    box.style.top = (svg.getBoundingClientRect().top - figure.getBoundingClientRect().top + 14) + 'px';
  });
  svg.addEventListener('pointerleave', hide);
}
for (const image of document.querySelectorAll('.views img'))
  image.addEventListener('click', () => image.classList.toggle('large'));
for (const pre of document.querySelectorAll('.code pre')) {
  const button = document.createElement('button');
  button.textContent = 'copy';
  button.addEventListener('click', () => {
    getSelection().selectAllChildren(pre);
    const told = () => { button.textContent = 'copied'; };
    const old = () => { if (document.execCommand('copy')) told(); };  // a page without the clipboard's permission
    if (navigator.clipboard) navigator.clipboard.writeText(pre.textContent).then(told, old); else old();
  });
  pre.before(button);
}
"""
