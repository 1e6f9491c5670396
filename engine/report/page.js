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
    box.textContent = rows.join('\n');
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
