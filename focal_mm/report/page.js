'use strict';
// Everything from files is set as the text of an element, never as markup.
const report = JSON.parse(document.getElementById('data').textContent);
const runs = report.runs;
const many = runs.length > 1;
const LETTERS = 'ABCDEFGH';
const DASHES = ['', '7 4', '2 3', '10 3 2 3', '1 5', '12 6', '4 2', '8 2 2 2'];
const COLORS = 8;

// ---- elements -------------------------------------------------------------------------------

function make(name, attributes = {}, ...children) {
  return fill(document.createElement(name), attributes, children);
}
function draw(name, attributes = {}, ...children) {
  return fill(document.createElementNS('http://www.w3.org/2000/svg', name), attributes, children);
}
function fill(element, attributes, children) {
  for (const [key, value] of Object.entries(attributes)) {
    if (key.startsWith('on')) element.addEventListener(key.slice(2), value);
    else if (value !== null && value !== false) element.setAttribute(key, value === true ? '' : value);
  }
  element.append(...children.flat(Infinity).filter((child) => child !== null && child !== undefined));
  return element;
}
function text(value, digits = 4) {
  if (value === null || value === undefined) return '–';
  if (typeof value !== 'number' || Number.isInteger(value)) return String(value);
  return String(Number(value.toPrecision(digits)));
}
function table(header, rows, attributes = {}) {
  const numeric = header.map((_, i) => rows.length > 0 && rows.every((row) => row[i] === null || typeof row[i] === 'number'));
  const cell = (value, i) => value instanceof Node
    ? make('td', {}, value)
    : make('td', {class: numeric[i] ? 'number' : 'text'}, text(value, 6));
  return make('div', {class: 'scroll', tabindex: 0, role: 'region', 'aria-label': attributes.label || 'table'},
    make('table', attributes,
      make('thead', {}, make('tr', {}, header.map((name, i) => make('th', {scope: 'col', class: numeric[i] ? 'number' : ''}, name)))),
      make('tbody', {}, rows.map((row) => make('tr', {}, row.map(cell))))));
}
function details(summary, build) {
  const element = make('details', {}, make('summary', {}, summary));
  element.addEventListener('toggle', () => {
    if (element.open && element.children.length === 1) element.append(build());
  });
  return element;
}
// A part of the data that is damaged spoils its own section only.
function section(id, title, build) {
  const element = make('section', {id, 'aria-label': title}, make('h2', {}, title));
  document.getElementById('content').append(element);
  try {
    element.append(...[build()].flat(Infinity).filter((child) => child !== null));
  } catch (error) {
    element.append(make('p', {class: 'note'}, `The data of this section is damaged (${error.message}).`));
  }
  document.getElementById('nav').append(make('a', {href: `#${id}`}, title));
}
function ofRun(i, name) {
  return many ? `${LETTERS[i]}: ${name}` : name;
}
function eachRun(build) {
  return make('div', {class: 'runs'}, runs.map((run, i) =>
    make('div', {}, many ? make('h3', {}, ofRun(i, run.name)) : null, build(run, i))));
}
function absent(what, why) {
  return make('p', {class: 'quiet absent'}, `No ${what}: ${why}`);
}

// ---- charts ---------------------------------------------------------------------------------

let smoothing = 0;
const smoothed = []; // the charts that the slider redraws

function average(points, weight) {
  let value = 0;
  let total = 0;
  return points.map(([x, y]) => {
    if (typeof y === 'number') {
      value = weight * value + (1 - weight) * y;
      total = weight * total + (1 - weight);
    }
    return [x, total ? value / total : null];
  });
}
function ticks(low, high, count, least = 0) {
  const raw = Math.max((high - low) / count, least);
  const power = 10 ** Math.floor(Math.log10(raw));
  const step = [1, 2, 5, 10].find((factor) => factor * power >= raw * 0.999) * power;
  const found = [];
  for (let i = Math.ceil(low / step); i * step <= high + step * 1e-9; i++) found.push(Number((i * step).toPrecision(12)));
  return found;
}
function nearest(points, x) {
  let low = 0;
  let high = points.length - 1;
  while (low < high) {
    const middle = (low + high) >> 1;
    if (points[middle][0] < x) low = middle + 1; else high = middle;
  }
  return low > 0 && x - points[low - 1][0] < points[low][0] - x ? low - 1 : low;
}

/* A chart of lines: drag, + and - zoom, arrows move the cursor, 0 shows all.
   series: [{name, run, points: [[x, y], ...], hidden}], y a number, a text if not finite, or null */
function chart(title, series, {x: xLabel = 'iteration', smooth = false, log = false, range = null} = {}) {
  series = series.filter((one) => one.points.length);
  if (!series.length) return null;
  const names = [...new Set(series.map((one) => one.name))];
  for (const one of series) {
    const i = names.indexOf(one.name);
    one.color = `var(--c${i % COLORS})`;
    one.dash = DASHES[(many ? one.run : Math.floor(i / COLORS)) % DASHES.length];
  }
  const xs = [...new Set(series.flatMap((one) => one.points.map((point) => point[0])))].sort((a, b) => a - b);
  const whole = [xs[0], xs[xs.length - 1]];
  if (whole[0] === whole[1]) { whole[0] -= 0.5; whole[1] += 0.5; }
  let view = [...whole];
  let cursor = null;
  let dragged = null;
  let logarithmic = false;
  let map = {};

  const svg = draw('svg', {tabindex: 0, role: 'img',
    'aria-label': `${title}. Drag, or + and −, to zoom; arrow keys to move the cursor; 0 to show all.`});
  const legend = make('ul', {class: 'legend'});
  const at = make('span', {class: 'quiet at'});
  const reset = make('button', {type: 'button', disabled: true, onclick: () => zoom(whole)}, 'Show all');
  const tools = make('div', {class: 'tools'}, reset,
    log ? make('label', {}, make('input', {type: 'checkbox', onchange: (event) => { logarithmic = event.target.checked; render(); }}), 'logarithmic') : null, at);
  for (const one of series) {
    one.value = make('span', {class: 'value'});
    legend.append(make('li', {}, make('button', {type: 'button', 'aria-pressed': String(!one.hidden), onclick: (event) => {
      one.hidden = !one.hidden;
      event.currentTarget.setAttribute('aria-pressed', String(!one.hidden));
      render();
    }}, draw('svg', {viewBox: '0 0 22 8', 'aria-hidden': 'true'}, draw('path', {d: 'M0 4H22', stroke: one.color, 'stroke-width': 2.5, 'stroke-dasharray': one.dash})),
    make('span', {}, ofRun(one.run, one.name)), one.value)));
  }

  function zoom([low, high]) {
    if (high - low < (whole[1] - whole[0]) * 1e-4) return;
    view = [Math.max(low, whole[0]), Math.min(high, whole[1])];
    reset.disabled = view[0] === whole[0] && view[1] === whole[1];
    render();
  }
  function inside(points) {
    return points.filter(([x]) => x >= view[0] && x <= view[1]);
  }
  function render() {
    const width = Math.max(280, svg.clientWidth || 600);
    const height = width < 500 ? 220 : 280;
    const bottom = 34;
    svg.setAttribute('viewBox', `0 0 ${width} ${height}`);
    svg.setAttribute('height', height);
    svg.replaceChildren();
    const shown = series.filter((one) => !one.hidden);
    for (const one of shown) one.line = smooth && smoothing ? average(one.points, smoothing) : one.points;
    let ys = shown.flatMap((one) => inside(one.line).map((point) => point[1])).filter((y) => typeof y === 'number' && (!logarithmic || y > 0));
    if (range && view[0] === whole[0] && view[1] === whole[1]) ys = ys.concat(range);
    let low = ys.reduce((a, b) => Math.min(a, b), Infinity);
    let high = ys.reduce((a, b) => Math.max(a, b), -Infinity);
    if (!ys.length) { low = 0; high = 1; }
    const scale = logarithmic ? Math.log10 : (y) => y;
    const margin = (scale(high) - scale(low)) * 0.06 || Math.abs(scale(high)) * 0.1 || 1;
    const top = range && high <= range[1] ? scale(high) : scale(high) + margin;
    const base = !logarithmic && low >= 0 && scale(low) - margin < 0 ? 0 : scale(low) - margin;
    const py = (y) => 8 + (top - scale(y)) / (top - base) * (height - bottom - 8);
    const marks = logarithmic
      ? ticks(base, top, 4).map((power) => 10 ** power) : ticks(base, top, height < 250 ? 4 : 6);
    // A digit is at most 8 pixels wide.
    const left = Math.max(52, ...marks.map((y) => 10 + 8 * text(y, 3).length));
    const px = (x) => left + (x - view[0]) / (view[1] - view[0]) * (width - left - 10);
    map = {px, width, left};
    for (const y of marks) {
      svg.append(draw('line', {class: 'grid', x1: left, x2: width - 10, y1: py(y), y2: py(y)}),
        draw('text', {x: left - 6, y: py(y) + 4, 'text-anchor': 'end'}, text(y, 3)));
    }
    for (const x of ticks(view[0], view[1], width < 500 ? 5 : 8, xLabel === 'recall' ? 0 : 1)) {
      svg.append(draw('text', {x: px(x), y: height - 18, 'text-anchor': 'middle'}, text(x, 6)));
    }
    svg.append(draw('text', {x: (left + width) / 2, y: height - 3, 'text-anchor': 'middle'}, xLabel));
    for (const one of shown) {
      const from = Math.max(0, nearest(one.points, view[0]) - 1);
      const to = nearest(one.points, view[1]) + 2;
      if (smooth && smoothing) svg.append(line(one.points.slice(from, to), one, px, py, 0.25));
      svg.append(line(one.line.slice(from, to), one, px, py, 1));
      for (const [x, y] of inside(one.points)) {
        if (typeof y === 'string') {
          svg.append(draw('path', {class: 'nonfinite', d: `M${px(x) - 5} 4h10l-5 9z`, fill: 'var(--bad)'}, draw('title', {}, `${one.name} is ${y} at ${x}`)));
        }
      }
    }
    svg.append(draw('rect', {x: 0, y: 0, width: left, height: height - bottom + 2, fill: 'var(--page)', opacity: 0}));
    point();
  }
  function line(points, one, px, py, opacity) {
    let path = '';
    let pen = 'M';
    const drawn = [];
    for (const [x, y] of points) {
      if (typeof y === 'number' && (!logarithmic || y > 0)) {
        path += `${pen}${px(x).toFixed(1)} ${py(y).toFixed(1)}`;
        pen = 'L';
        drawn.push([x, y]);
      } else pen = 'M';
    }
    const group = draw('g', {'clip-path': 'inset(0 0 0 0)', opacity},
      draw('path', {d: path, fill: 'none', stroke: one.color, 'stroke-width': 2, 'stroke-dasharray': one.dash}));
    if (drawn.length < 40 && opacity === 1) {
      for (const [x, y] of drawn) if (x >= view[0] && x <= view[1]) group.append(draw('circle', {cx: px(x), cy: py(y), r: 2.6, fill: one.color}));
    }
    return group;
  }
  function point() {
    svg.querySelectorAll('.cursor, .zoom').forEach((element) => element.remove());
    if (dragged && Math.abs(dragged[1] - dragged[0]) > 3) {
      svg.append(draw('rect', {class: 'zoom', x: Math.min(...dragged), y: 0, width: Math.abs(dragged[1] - dragged[0]), height: '100%'}));
    }
    at.textContent = cursor === null ? '' : `${xLabel} ${text(cursor, 8)}`;
    if (cursor !== null && cursor >= view[0] && cursor <= view[1]) {
      svg.append(draw('line', {class: 'cursor', x1: map.px(cursor), x2: map.px(cursor), y1: 0, y2: '88%'}));
    }
    for (const one of series) {
      const last = one.points.length - 1;
      const source = one.line || one.points;
      const found = source[cursor === null ? last : nearest(source, cursor)];
      one.value.textContent = one.hidden || (range && cursor === null) ? '' : text(found[1]);
    }
  }
  function under(event) {
    const box = svg.getBoundingClientRect();
    return (event.clientX - box.left) / box.width * map.width;
  }
  function toX(px) {
    const share = Math.min(1, Math.max(0, (px - map.left) / (map.width - map.left - 10)));
    return view[0] + share * (view[1] - view[0]);
  }
  svg.addEventListener('pointermove', (event) => {
    cursor = xs[nearest(xs.map((x) => [x]), toX(under(event)))];
    if (dragged) dragged[1] = under(event);
    point();
  });
  svg.addEventListener('pointerdown', (event) => {
    dragged = [under(event), under(event)];
    svg.setPointerCapture(event.pointerId);
  });
  svg.addEventListener('pointerup', () => {
    const ends = dragged;
    dragged = null;
    if (ends && Math.abs(ends[1] - ends[0]) > 8) zoom(ends.map(toX).sort((a, b) => a - b)); else point();
  });
  svg.addEventListener('pointercancel', () => { dragged = null; point(); });
  svg.addEventListener('pointerleave', () => { if (!dragged) { cursor = null; point(); } });
  svg.addEventListener('dblclick', () => zoom(whole));
  svg.addEventListener('keydown', (event) => {
    const i = cursor === null ? xs.length - 1 : nearest(xs.map((x) => [x]), cursor);
    const [low, high] = view;
    const middle = cursor === null ? (low + high) / 2 : cursor;
    const actions = {
      ArrowLeft: () => { cursor = xs[Math.max(0, i - 1)]; point(); },
      ArrowRight: () => { cursor = xs[Math.min(xs.length - 1, i + 1)]; point(); },
      Home: () => { cursor = xs[0]; point(); },
      End: () => { cursor = xs[xs.length - 1]; point(); },
      '+': () => zoom([middle - (middle - low) / 2, middle + (high - middle) / 2]),
      '=': () => zoom([middle - (middle - low) / 2, middle + (high - middle) / 2]),
      '-': () => zoom([middle - (middle - low) * 2, middle + (high - middle) * 2]),
      0: () => zoom(whole),
      Escape: () => zoom(whole),
    };
    if (actions[event.key]) { event.preventDefault(); actions[event.key](); }
  });
  svg.addEventListener('blur', () => { cursor = null; point(); });
  if (smooth) smoothed.push(render);
  new ResizeObserver(render).observe(svg);

  const numbers = details('Numbers', () => {
    const values = series.map((one) => new Map(one.points));
    return table([xLabel, ...series.map((one) => ofRun(one.run, one.name))],
      xs.map((x) => [x, ...values.map((map) => map.has(x) ? map.get(x) : null)]), {class: 'numbers', label: `Numbers of: ${title}`});
  });
  return make('div', {class: 'chart'}, make('h3', {}, title), tools, svg, legend, numbers);
}
function curves(from, names, shown = () => true) {
  return names.flatMap((name) => runs.map((run, i) => ({name, run: i, points: run[from][name] || [], hidden: !shown(name)})));
}
function namesOf(from) {
  return [...new Set(runs.flatMap((run) => Object.keys(run[from])))];
}

// ---- summary --------------------------------------------------------------------------------

const MAIN = /(^|\/)(bbox_mAP|segm_mAP|mIoU|top1|PQ|AP|pascal_voc\/mAP|mAP)$/;
document.getElementById('title').textContent = runs.map((run, i) => ofRun(i, run.name)).join(' beside ');
document.title = `${runs.map((run) => run.name).join(' | ')} – report`;
document.getElementById('made').textContent = `Made ${report.made} by focal_mm ${report.version}.`;

function progress(state) {
  const epoch = state.max_epochs ? `, epoch ${text(state.epoch)} of ${state.max_epochs}` : '';
  return `iteration ${state.iter}${state.max_iters ? ` of ${state.max_iters}` : ''}${epoch}`;
}
section('summary', 'Summary', () => eachRun((run) => {
  const state = run.state;
  const rows = [
    ['folder', run.path],
    ['how far', progress(state)],
    ['last line', state.alive ? `${state.alive}, ${state.silent} before this page` : null],
    ['time in training', state.training],
    ['last checkpoint', state.checkpoint],
  ];
  for (const [name, points] of Object.entries(run.val).filter(([name]) => !/time$/.test(name))) {
    const numbers = points.filter((point) => typeof point[1] === 'number');
    if (!MAIN.test(name) || !numbers.length) continue;
    const best = numbers.reduce((a, b) => (b[1] > a[1] ? b : a));
    rows.push([name, `${text(points[points.length - 1][1])} at the last validation; best ${text(best[1])} at ${run.by_epoch ? 'epoch' : 'iteration'} ${best[0]}`]);
  }
  for (const test of run.tests) {
    const main = Object.entries(test.metrics).filter(([name]) => !/time$/.test(name));
    rows.push([`test of ${test.start}`, main.map(([name, value]) => `${name} ${text(value)}`).join(', ')]);
  }
  const kind = {finished: 'finished', 'going on': 'going on', stopped: 'stopped before its end'}[state.kind];
  return make('div', {},
    make('p', {}, make('span', {class: `badge ${state.kind.replace(' ', '-')}`}, kind)),
    run.notes.map((note) => make('p', {class: 'note'}, note)),
    table(['', ''], rows, {label: 'Summary'}),
    run.starts.length > 1 ? make('ol', {}, run.starts.map((start) => make('li', {}, start))) : null);
}));

// ---- losses ---------------------------------------------------------------------------------

const trained = namesOf('train').filter((name) => !['time', 'data_time', 'memory'].includes(name));
const losses = trained.filter((name) => /loss/.test(name));
const rates = trained.filter((name) => /(^|\/)lr$/.test(name) || name === 'momentum');
const others = trained.filter((name) => !losses.includes(name) && !rates.includes(name));
const slider = make('input', {type: 'range', min: 0, max: 0.99, step: 0.01, value: 0, id: 'smoothing', oninput: (event) => {
  smoothing = Number(event.target.value);
  level.textContent = smoothing.toFixed(2);
  smoothed.forEach((render) => render());
}});
const level = make('output', {for: 'smoothing'}, '0.00');
losses.sort((a, b) => (b === 'loss') - (a === 'loss'));
section('losses', 'Losses and learning rate', () => trained.length
  ? [make('div', {class: 'tools'}, make('label', {}, 'Smoothing', slider, level)),
    make('div', {class: 'charts'},
      chart('Losses', curves('train', losses, (name) => losses.indexOf(name) < COLORS), {smooth: true, log: true}),
      chart('Learning rate', curves('train', rates), {log: true}),
      chart('Other numbers of training', curves('train', others, (name) => name !== 'grad_norm' || others.length === 1), {smooth: true}))]
  : absent('losses', 'nothing was logged of training.'));

// ---- metrics --------------------------------------------------------------------------------

const measured = namesOf('val').filter((name) => !['time', 'data_time', 'memory'].includes(name));
const mainOnes = measured.filter((name) => MAIN.test(name));
section('metrics', 'Metrics', () => measured.length
  ? make('div', {class: 'charts'}, chart('Validation', curves('val', measured, (name) => (mainOnes.length ? mainOnes : measured.slice(0, 4)).includes(name)),
    {x: runs[0].by_epoch ? 'epoch' : 'iteration'}))
  : absent('metrics', 'no validation has been logged.'));

const ABSENT = 'mmengine does not write it. focal-mm report --evaluate makes it from a checkpoint, and focal_mm.ReportHook at each validation.';
function heat(value, low, high) {
  const share = typeof value === 'number' && high > low ? (value - low) / (high - low) : 0;
  return `background: rgba(var(--heat), ${(0.45 * share).toFixed(3)})`;
}
section('classes', 'Classes', () => eachRun((run) => {
  const found = run.validations.filter((one) => one.by_class);
  if (!found.length) return absent('results of each class', ABSENT);
  const last = found[found.length - 1];
  const metrics = Object.keys(last.by_class);
  const body = make('div', {});
  const choice = make('select', {'aria-label': 'Metric', onchange: render}, metrics.map((name) => make('option', {}, name)));
  const filter = make('input', {type: 'search', placeholder: 'filter classes', 'aria-label': 'Filter classes', oninput: render});
  function render() {
    const metric = choice.value;
    const values = found.map((one) => one.by_class[metric] || []);
    const all = values.flat().filter((value) => typeof value === 'number');
    const low = Math.min(0, ...all.slice(0, 1e4));
    const high = all.reduce((a, b) => Math.max(a, b), -Infinity);
    const order = last.classes.map((_, i) => i).filter((i) => last.classes[i].toLowerCase().includes(filter.value.toLowerCase()));
    const final = values[values.length - 1];
    order.sort((a, b) => (final[a] ?? Infinity) - (final[b] ?? Infinity));
    body.replaceChildren(make('div', {class: 'scroll', tabindex: 0, role: 'region', 'aria-label': `${metric} of each class`},
      make('table', {class: 'heat'},
        make('thead', {}, make('tr', {}, make('th', {scope: 'col'}, 'class'), found.map((one) => make('th', {scope: 'col', class: 'number'}, `${run.by_epoch ? 'epoch' : 'iter'} ${run.by_epoch ? one.epoch : one.iter}`)))),
        make('tbody', {}, order.map((i) => make('tr', {},
          make('th', {scope: 'row'}, make('span', {class: 'swatch', style: `background: ${last.palette[i]}`}), last.classes[i]),
          values.map((column) => make('td', {class: 'number', style: heat(column[i], low, high)}, text(column[i])))))))));
  }
  render();
  return [make('div', {class: 'tools'}, make('label', {}, 'Metric', choice), last.classes.length > 12 ? filter : null),
    make('p', {class: 'quiet'}, `Worst at the top. ${run.validations.length > found.length ? 'Some validations have no results of classes.' : ''}`), body];
}));

// ---- curves and confusion -------------------------------------------------------------------

function precisionRecall() {
  const known = runs.map((run) => run.details && run.details.curves ? run.details : null);
  const classes = [...new Set(known.filter(Boolean).flatMap((one) => one.classes))];
  const place = make('div', {});
  const choice = make('select', {'aria-label': 'Class', onchange: render}, make('option', {value: ''}, 'mean of all classes'), classes.map((name) => make('option', {value: name}, name)));
  function render() {
    const series = [];
    known.forEach((one, run) => one && one.curves.forEach(({name, recall, precision}) => {
      for (const [iou, rows] of Object.entries(precision)) {
        const chosen = choice.value ? [rows[one.classes.indexOf(choice.value)]] : rows;
        const points = recall.map((x, i) => {
          const column = chosen.map((row) => row && row[i]).filter((value) => typeof value === 'number');
          return [x, column.length ? column.reduce((a, b) => a + b) / column.length : null];
        });
        if (points.some((point) => point[1] !== null)) series.push({name: `${name}, ${name === 'keypoints' ? 'OKS' : 'IoU'} ${iou}`, run, points});
      }
    }));
    place.replaceChildren(chart('Precision over recall', series, {x: 'recall', range: [0, 1]}) || absent('curve', 'there is no object of this class.'));
  }
  render();
  return [make('div', {class: 'tools'}, make('label', {}, 'Class', choice)), make('div', {class: 'charts'}, place)];
}
function confusion(run) {
  const found = run.details;
  const count = found.classes.length;
  const totals = new Array(count).fill(0);
  for (const [truth, , number] of found.confusion) totals[truth] += number;
  const share = (truth, number) => number / totals[truth];
  const unit = found.kind === 'labels' ? 'pixels' : 'pictures';
  const off = found.confusion.filter(([truth, guess]) => truth !== guess).slice(0, 200);
  const pairs = table(['truth', 'taken for', unit, '% of the truth'],
    off.map(([truth, guess, number]) => [found.classes[truth], found.classes[guess], number, count > 151 ? null : Number((100 * share(truth, number)).toFixed(2))]), {label: 'What is confused most'});
  if (count > 151) return [make('p', {}, 'The matrix is too large for a page; this is what is confused most.'), pairs];
  const matrix = Array.from({length: count}, () => new Array(count).fill(0));
  for (const [truth, guess, number] of found.confusion) matrix[truth][guess] = number;
  let shown;
  if (count <= 12) {
    shown = make('div', {class: 'scroll', tabindex: 0, role: 'region', 'aria-label': 'Confusion matrix'}, make('table', {class: 'heat confusion'},
      make('thead', {}, make('tr', {}, make('th', {}, 'truth \\ prediction'), found.classes.map((name) => make('th', {scope: 'col', class: 'number'}, name)))),
      make('tbody', {}, matrix.map((row, truth) => make('tr', {}, make('th', {scope: 'row'}, found.classes[truth]),
        row.map((number) => make('td', {class: 'number', style: heat(totals[truth] ? share(truth, number) : 0, 0, 1), title: `${number} ${unit}`},
          totals[truth] ? `${(100 * share(truth, number)).toFixed(1)} %` : '–')))))));
  } else {
    const canvas = make('canvas', {class: 'matrix', width: count, height: count, role: 'img', 'aria-label': 'Confusion matrix; the table below has its largest entries'});
    const paint = canvas.getContext('2d');
    const color = getComputedStyle(document.documentElement).getPropertyValue('--heat');
    matrix.forEach((row, truth) => row.forEach((number, guess) => {
      paint.fillStyle = `rgba(${color}, ${totals[truth] ? Math.sqrt(share(truth, number)) : 0})`;
      paint.fillRect(guess, truth, 1, 1);
    }));
    const at = make('p', {class: 'quiet'}, 'Rows: truth; columns: prediction. Point at a cell.');
    canvas.addEventListener('pointermove', (event) => {
      const box = canvas.getBoundingClientRect();
      const truth = Math.min(count - 1, Math.max(0, Math.floor((event.clientY - box.top) / box.height * count)));
      const guess = Math.min(count - 1, Math.max(0, Math.floor((event.clientX - box.left) / box.width * count)));
      at.textContent = `${found.classes[truth]} taken for ${found.classes[guess]}: ${matrix[truth][guess]} ${unit}`
        + (totals[truth] ? `, ${(100 * share(truth, matrix[truth][guess])).toFixed(1)} % of the truth` : '');
    });
    shown = [canvas, at];
  }
  return [shown, details('What is confused most', () => pairs)];
}
const curved = runs.some((run) => run.details && run.details.curves);
const confused = runs.some((run) => run.details && run.details.confusion);
if (curved) section('curves', 'Precision and recall', precisionRecall);
if (confused) {
  section('confusion', 'Confusion', () => eachRun((run) => run.details && run.details.confusion
    ? confusion(run) : absent('confusion matrix', ABSENT)));
}
if (!curved && !confused) section('curves', 'Curves and confusion', () => absent('precision-recall curves or confusion matrix', ABSENT));

// ---- pictures -------------------------------------------------------------------------------

const NAMES = 8; // objects of a picture whose names are written, those with the highest scores

function scene(picture, drawn, info) {
  const [width, height] = picture.size && picture.size[0] ? picture.size : [480, 480];
  const unit = Math.max(width, height) / 300;
  const svg = draw('svg', {viewBox: `0 0 ${width} ${height}`, role: 'img', 'aria-label': `${drawn === picture.truth ? 'truth' : 'prediction'} of ${picture.name}`});
  if (picture.photo) svg.append(draw('image', {href: `data:image/jpeg;base64,${picture.photo}`, width, height, preserveAspectRatio: 'none'}));
  if (drawn.overlay) svg.append(draw('image', {class: 'overlay', href: `data:image/png;base64,${drawn.overlay}`, width, height, preserveAspectRatio: 'none', opacity: 0.55, style: 'image-rendering: pixelated'}));
  const boxes = drawn.boxes || [];
  const named = new Set([...boxes].sort((a, b) => (b.score ?? 1) - (a.score ?? 1)).slice(0, NAMES));
  for (const one of boxes) {
    const [x, y, w, h] = one.box;
    const color = info.palette[one.label];
    const label = `${info.classes[one.label]}${one.score === null ? '' : ` ${one.score.toFixed(2)}`}${one.crowd ? ' (crowd)' : ''}`;
    svg.append(draw('rect', {x, y, width: w, height: h, fill: 'none', stroke: '#000', 'stroke-opacity': 0.6, 'stroke-width': (one.faulty ? 3.4 : 2.2) * unit}));
    svg.append(draw('rect', {class: 'object', x, y, width: w, height: h, fill: 'transparent', stroke: color, 'stroke-width': (one.faulty ? 2.4 : 1.2) * unit,
      'stroke-dasharray': one.faulty ? `${5 * unit} ${3 * unit}` : null}, draw('title', {}, label + (one.faulty ? (drawn === picture.truth ? ', missed' : ', wrong') : ''))));
    for (const [px, py, seen] of one.points || []) if (seen) svg.append(draw('circle', {cx: px, cy: py, r: 2.5 * unit, fill: color, stroke: '#000', 'stroke-width': unit / 2}));
    if (named.has(one)) svg.append(draw('text', {class: 'name', x: Math.max(0, x) + 2 * unit, y: Math.max(0, y) + 12 * unit, style: `font-size: ${11 * unit}px; stroke-width: ${2.5 * unit}px`}, label));
  }
  return svg;
}
section('worst', 'The worst pictures', () => eachRun((run) => {
  const found = run.details;
  if (!found || !found.worst) return absent('worst pictures', ABSENT);
  const when = `of the validation after iteration ${found.iter}`;
  if (!found.worst.length) return make('p', {}, `No picture has an error, ${when}.`);
  const judged = {
    objects: 'by the F1 score of the objects with a score of 0.3 or more, at an IoU of 0.5; dashed: missed or wrong',
    labels: 'by the mean IoU of the classes in a picture',
    classes: 'by the probability of the true class; only pictures that were taken for another one',
  }[found.kind];
  const gallery = make('div', {class: many ? 'gallery narrow' : 'gallery'}, found.worst.map((picture) => make('figure', {},
    picture.truth
      ? make('div', {class: 'pair'}, make('span', {}, 'truth'), make('span', {}, 'prediction'), scene(picture, picture.truth, found), scene(picture, picture.found, found))
      : make('div', {class: 'pair single'}, picture.photo ? make('img', {src: `data:image/jpeg;base64,${picture.photo}`, alt: picture.name, style: 'max-width: 100%'}) : null),
    make('figcaption', {}, make('strong', {}, picture.name), ` ${picture.note}`, picture.photo ? '' : ' (the photograph could not be read)'))));
  const overlays = gallery.querySelectorAll('.overlay');
  const names = gallery.querySelectorAll('.name');
  const seen = found.kind === 'labels' ? found.classes.map((_, i) => i).filter((i) => found.confusion.some((entry) => entry[0] === i || entry[1] === i)) : [];
  return [make('p', {class: 'quiet'}, `${found.worst.length} pictures ${when}, ${judged}.`),
    make('div', {class: 'tools'},
      overlays.length ? make('label', {}, 'Color', make('input', {type: 'range', min: 0, max: 1, step: 0.05, value: 0.55, oninput: (event) => overlays.forEach((one) => one.setAttribute('opacity', event.target.value))})) : null,
      names.length ? make('label', {}, make('input', {type: 'checkbox', checked: true, onchange: (event) => names.forEach((one) => { one.style.display = event.target.checked ? '' : 'none'; })}), 'names') : null),
    make('p', {}, seen.map((i) => make('span', {class: 'key'}, make('span', {class: 'swatch', style: `background: ${found.palette[i]}`}), `${found.classes[i]} `))),
    gallery];
}));

// ---- speed ----------------------------------------------------------------------------------

section('speed', 'Speed and memory', () => [
  eachRun((run) => {
    const speed = run.speed;
    if (speed.iteration === undefined) return absent('times', 'nothing was logged of training.');
    const lines = [`An iteration takes ${text(speed.iteration)} s (median), of which ${text(speed.data)} s (${(100 * speed.share).toFixed(1)} %) wait for data`
      + (speed.pictures ? `; ${text(speed.pictures)} pictures a second.` : '.')];
    lines.push(speed.share > 0.1 ? 'The data is a bottleneck: more workers of train_dataloader, smaller files or a faster disk help.' : 'Loading data keeps up with training.');
    lines.push(speed.memory === null ? 'No memory was logged: mmengine logs that of GPUs only.' : `At most ${speed.memory} MB of GPU memory.`);
    return lines.map((one) => make('p', {}, one));
  }),
  make('div', {class: 'charts'},
    chart('Seconds an iteration', curves('train', ['time', 'data_time']), {smooth: true, log: true}),
    chart('GPU memory, MB', curves('train', ['memory'])))]);

// ---- config, environment --------------------------------------------------------------------

function changes(rows) {
  const place = make('div', {});
  const filter = make('input', {type: 'search', placeholder: 'filter keys', 'aria-label': 'Filter keys', oninput: render});
  function render() {
    const word = filter.value.toLowerCase();
    place.replaceChildren(table(['key', ...rows[0]], rows[1].filter((row) => row[0].toLowerCase().includes(word)), {class: 'changes', label: 'Differences of configs'}));
  }
  render();
  return [rows[1].length > 12 ? make('div', {class: 'tools'}, filter) : null, place];
}
section('config', 'Config', () => [
  many && report.between ? [make('h3', {}, `${LETTERS[0]} beside ${LETTERS[1]}`), report.between.length ? changes([['A', 'B'], report.between]) : make('p', {}, 'The configs are the same.')] : null,
  eachRun((run) => {
    const config = run.config;
    if (!config.text) return absent('config', 'there is none in the folder.');
    return [
      config.changes === null ? absent('difference to a base', 'its base is not known; give it by --base CONFIG.')
        : [make('p', {}, `${config.changes.length} differences to ${config.base}:`), config.changes.length ? changes([['base', 'this run'], config.changes]) : null],
      details('The whole config', () => make('pre', {tabindex: 0}, config.text)),
    ];
  })]);
section('environment', 'Environment', () => eachRun((run) => {
  const repeat = run.repeat;
  const rows = [...Object.entries(run.versions || {}), ...Object.entries(run.environment)];
  return [
    make('h3', {}, 'To repeat it'),
    repeat.command ? make('pre', {class: 'command', tabindex: 0}, repeat.command) : null,
    make('p', {class: 'quiet'}, `The command is ${repeat.source}.`),
    table(['', ''], [['seed', run.seed ?? 'not recorded'], ['git', run.git || 'not recorded']], {label: 'Seed and git'}),
    make('h3', {}, 'Versions and machine'),
    rows.length ? table(['', ''], rows, {label: 'Versions and machine'}) : absent('environment', 'there is no log.'),
    run.versions ? null : make('p', {class: 'quiet'}, 'Versions of other packages were not recorded: focal_mm.ReportHook does.'),
  ];
}));
section('log', 'Log', () => eachRun((run) => run.log.length
  ? details('Warnings, and the last lines', () => make('pre', {tabindex: 0}, run.log.join('\n')))
  : absent('log', 'there is none in the folder.')));

// ---- watching -------------------------------------------------------------------------------

if (report.watch) {
  const pause = make('input', {type: 'checkbox', checked: true});
  document.getElementById('made').append(' ', make('label', {}, pause, ` loads itself again every ${report.watch} s`));
  setInterval(() => { if (pause.checked) location.reload(); }, 1000 * report.watch);
}
