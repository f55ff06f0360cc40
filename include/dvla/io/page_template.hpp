// The page of a run as a template: plain HTML with its style and script inside, nothing from a network. page.hpp puts
// the data, and Chart.js where it was found, into its places. Light and dark follow the browser; one column on a phone.
#pragma once

#include <string_view>

namespace dvla::io::detail {

/// By which a page is known as one of these.
inline constexpr std::string_view page_mark = "<meta name=\"generator\" content=\"dvla\">";
inline constexpr std::string_view page_template = R"html(<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="generator" content="dvla">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>dvla</title>
<style>
:root { color-scheme: light dark; --ink: #1c2430; --soft: #5b6675; --line: #d9dee5; --back: #f6f7f9; --card: #ffffff;
  --one: #2563a8; --two: #c2571a; --three: #3c8452; --four: #7a4fa3; --bad: #b3261e; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6eaf0; --soft: #9aa6b5; --line: #333c48; --back: #14181d; --card: #1d232a;
  --one: #6ea8e6; --two: #e8935a; --three: #7cc492; --four: #b592dd; --bad: #f2867e; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--back); color: var(--ink); font: 15px/1.45 system-ui, sans-serif; }
main { max-width: 1180px; margin: 0 auto; padding: 20px 16px 60px; }
h1 { font-size: 1.5rem; margin: 0; } h2 { font-size: 1.05rem; margin: 0 0 10px; }
header { display: flex; flex-wrap: wrap; gap: 6px 14px; align-items: baseline; margin-bottom: 14px; }
.state { border: 1px solid var(--line); border-radius: 999px; padding: 1px 10px; color: var(--soft); }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(135px, 1fr)); gap: 10px; margin-bottom: 12px; }
.tile, section { background: var(--card); border: 1px solid var(--line); border-radius: 8px; }
.tile { padding: 10px 12px; } .tile b { display: block; font-size: 1.3rem; font-variant-numeric: tabular-nums; }
.tile span, .note { color: var(--soft); font-size: .87rem; }
.grid { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 470px), 1fr)); gap: 12px; align-items: start; }
section { padding: 14px 16px; min-width: 0; } .chart { position: relative; height: 270px; }
.scroll { overflow-x: auto; } table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
th, td { text-align: left; padding: 3px 12px 3px 0; border-bottom: 1px solid var(--line); vertical-align: top; }
th { font-weight: 600; color: var(--soft); } td.n, th.n { text-align: right; }
code { font: 13px/1.4 ui-monospace, monospace; overflow-wrap: anywhere; } img { max-width: 100%; border-radius: 6px; }
ul { margin: 0; padding-left: 18px; } .bad { color: var(--bad); } a { color: var(--one); }
</style>
</head>
<body>
<main id="page"></main>
<script type="application/json" id="data">@DATA@</script>
<script>@CHART@</script>
<script>
'use strict';
const data = JSON.parse(document.getElementById('data').textContent);
const page = document.getElementById('page');
const hue = name => getComputedStyle(document.documentElement).getPropertyValue('--' + name).trim();
const make = (tag, text, kind) => {
  const made = document.createElement(tag);
  if (text !== undefined && text !== null) made.textContent = text;
  if (kind) made.className = kind;
  return made;
};
const put = (parent, ...children) => { for (const child of children) if (child) parent.append(child); return parent; };
const number = (value, digits = 3) => value === null || value === undefined ? 'not measured'
  : Math.abs(value) >= 1e4 ? Math.round(value).toLocaleString('en') : String(Number(value.toPrecision(digits)));
const mib = bytes => number(bytes / 1048576, 4) + ' MiB';
const card = (grid, title, ...parts) => put(grid, put(make('section'), make('h2', title), ...parts));
const table = (heads, rows) => {
  const made = make('table'), line = make('tr');
  const counts = i => rows.length > 0 && rows.every(row => /^[-\d.,]+( \S+)?$/.test(String(row[i])));
  heads.forEach((head, i) => line.append(make('th', head, counts(i) ? 'n' : '')));
  if (heads.some(head => head)) made.append(line);
  for (const row of rows) {
    const next = make('tr');
    row.forEach((cell, i) => next.append(cell instanceof Node ? put(make('td'), cell) : make('td', cell, counts(i) ? 'n' : '')));
    made.append(next);
  }
  return put(make('div', null, 'scroll'), made);
};
const charts = typeof Chart !== 'undefined';
const palette = ['one', 'two', 'three', 'four'];
const drawn = [];
function line(title, grid, x, series, axis, note) {
  if (!x.length) return;
  if (!charts) {
    const every = Math.max(1, Math.floor(x.length / 12));
    const rows = x.map((at, i) => [at, ...series.map(each => each.y[i] === null ? '' : number(each.y[i]))]);
    card(grid, title, table([axis, ...series.map(each => each.name)], rows.filter((_, i) => i % every === 0 || i === x.length - 1)));
    return;
  }
  const canvas = make('canvas');
  canvas.setAttribute('role', 'img');
  canvas.setAttribute('aria-label', title);
  card(grid, title, put(make('div', null, 'chart'), canvas), note ? make('div', note, 'note') : null);
  drawn.push(() => new Chart(canvas, {
    type: 'line',
    data: { labels: x, datasets: series.map((each, i) => ({
      label: each.name, data: each.y, borderColor: hue(palette[i % 4]), backgroundColor: hue(palette[i % 4]),
      borderWidth: each.points ? 0 : each.faint ? 1 : 2, borderDash: i > 3 ? [5, 4] : [], pointRadius: each.points ? 6 : 0,
      pointStyle: 'rectRot', showLine: !each.points, spanGaps: true, tension: 0 })) },
    options: { animation: false, responsive: true, maintainAspectRatio: false, interaction: { mode: 'index', intersect: false },
      scales: { x: { title: { display: true, text: axis, color: hue('soft') }, ticks: { color: hue('soft'), maxTicksLimit: 9 }, grid: { color: hue('line') } },
        y: { min: series[0].min, max: series[0].max, ticks: { color: hue('soft') }, grid: { color: hue('line') } } },
      plugins: { legend: { display: series.length > 1, labels: { color: hue('ink'), boxWidth: 14 } } } } }));
}
function bars(title, grid, names, values, unit, note) {
  if (!charts) return card(grid, title, table(['', unit], names.map((name, i) => [name, number(values[i])])), note ? make('div', note, 'note') : null);
  const canvas = make('canvas');
  canvas.setAttribute('role', 'img');
  canvas.setAttribute('aria-label', title);
  card(grid, title, put(make('div', null, 'chart'), canvas), note ? make('div', note, 'note') : null);
  drawn.push(() => new Chart(canvas, { type: 'bar',
    data: { labels: names, datasets: [{ label: unit, data: values, backgroundColor: names.map((_, i) => hue(palette[i % 4])) }] },
    options: { animation: false, indexAxis: 'y', responsive: true, maintainAspectRatio: false, plugins: { legend: { display: false } },
      scales: { x: { title: { display: true, text: unit, color: hue('soft') }, ticks: { color: hue('soft') }, grid: { color: hue('line') } },
        y: { ticks: { color: hue('ink') }, grid: { display: false } } } } }));
}

function run() {
  document.title = data.name + ' - dvla';
  const report = data.report || {}, curve = data.curve;
  put(page, put(make('header'), make('h1', data.name), make('span', data.state, 'state'), make('span', data.written, 'note')));
  const last = curve.batch.length - 1;
  const tiles = put(make('div', null, 'tiles'));
  const tile = (value, name) => put(tiles, put(make('div', null, 'tile'), make('b', value), make('span', name)));
  if (report.success_rate_before != null) tile(number(report.success_rate_before), 'success before, ' + (data.evaluation_episodes || '') + ' fresh episodes');
  if (report.success_rate != null) tile(number(report.success_rate), 'success after');
  if (last >= 0) tile(number(curve.mean[last]), 'success while sampling, last 10 batches');
  tile(last >= 0 ? String(curve.batch[last]) : '0', 'batches of ' + data.iterations);
  if (last >= 0) tile(number(curve.env_steps[last]), 'environment steps');
  if (report.env_steps_per_s) tile(number(report.env_steps_per_s), 'environment steps a second');
  if (report.train_wall_s) tile(number(report.train_wall_s) + ' s', 'of training');
  if (report.overlap !== undefined && report.iterations) tile(number(report.overlap) + ' %', 'of the time two or more lanes at work');
  page.append(tiles);
  const grid = make('div', null, 'grid');
  const success = [{ name: 'batch, sampled', y: curve.success, faint: true, min: 0, max: 1 }, { name: 'mean of 10 batches or more', y: curve.mean }];
  const evaluated = curve.batch.map(() => null);
  for (const point of data.evaluations) {
    const at = curve.batch.findIndex(batch => batch >= point.batch);
    if (curve.batch.length) evaluated[at < 0 ? last : at] = point.success;
  }
  if (evaluated.some(value => value !== null)) success.push({ name: 'evaluation, fresh episodes', y: evaluated, points: true });
  line('Success', grid, curve.batch, success, 'batches');
  if (curve.tasks.length > 1)
    line('Success by task, while sampling', grid, curve.batch, curve.tasks.map(task => ({ name: task.name, y: task.success, min: 0, max: 1 })), 'batches',
      'Mean of 10 batches; a batch may have no episode of a task.');
  line('Return of an episode', grid, curve.batch, [{ name: 'mean over the batch', y: curve.gain }], 'batches');
  const before = report.evaluation_before && report.evaluation_before.tasks, after = report.evaluation && report.evaluation.tasks;
  if (before || after) {
    const names = [...new Set([...(before || []), ...(after || [])].map(task => task.task))];
    const of = (list, name) => { const found = (list || []).find(task => task.task === name); return found ? number(found.success) + ' of ' + found.episodes : 'not measured'; };
    card(grid, 'Evaluation by task', table(['task', 'before', 'after'], names.map(name => [name, of(before, name), of(after, name)])));
  }
  const pictures = data.pictures.map(file => { const image = make('img'); image.src = file; image.alt = file; return put(make('div'), make('div', file.replace('.gif', ' training'), 'note'), image); });
  if (pictures.length) card(grid, 'Before and after', ...pictures);
  if (report.iterations)
    bars('Time of a batch', grid, ['sampling', 'training', 'weights', 'a whole step'], [report.rollout_time_s, report.actor_time_s, report.sync_time_s, report.step_time_s], 'seconds',
      'Lanes overlap: gain over taking turns ' + number(report.achieved_gain) + ' of an ideal ' + number(report.ideal_gain) + '; ' + number(report.bubble) + ' % bubbles. Largest staleness ' + report.max_staleness + '.');
  line('Gradient norm', grid, curve.batch, [{ name: 'last optimiser step', y: curve.gradient_norm }], 'batches');
  line('Policy change', grid, curve.batch, [{ name: 'approximate KL', y: curve.kl }, { name: 'clipped share', y: curve.clipped }], 'batches');
  if (report.memory_plan) {
    const plan = Object.entries(report.memory_plan).sort((a, b) => b[1] - a[1]);
    card(grid, 'Memory', table(['planned', ''], plan.map(([kind, bytes]) => [kind, mib(bytes)])),
      make('div', 'Planned ' + mib(plan.reduce((sum, item) => sum + item[1], 0)) + ' beside the process itself; most that was resident ' + mib(report.peak_resident_bytes) + '.', 'note'),
      table(['pool', 'most in use', 'fragmentation', 'allocations'], (report.pools || []).map(pool => [pool.name, mib(pool.high_water), number(pool.fragmentation), String(pool.allocations)])));
  }
  if ((report.ranks || []).length)
    card(grid, 'Ranks', table(['rank', 'rollout s', 'actor s', 'sync s', 'env steps'], report.ranks.map(rank =>
      [rank.name, number(rank.rollout_time_s), number(rank.actor_time_s), number(rank.sync_time_s), String(rank.env_steps)])));
  card(grid, 'Faults met', data.faults.length ? put(make('ul'), ...data.faults.map(fault => make('li', fault, 'bad'))) : make('div', 'None.', 'note'));
  card(grid, 'Policies', table(['slot', 'policy'], data.policies.map(each => [each.slot, each.policy])));
  if ((data.conventions || []).length) card(grid, 'How the environment plays', table(['', ''], data.conventions));
  card(grid, 'Knobs that are not the library\'s defaults', table(['knob', 'value', 'default'], data.knobs.map(each => [each.knob, each.value, each.usual])));
  card(grid, 'How it was started', make('code', data.command), table(['', ''], Object.entries(data.versions)));
  page.append(grid);
  if (!charts) page.append(make('p', 'Chart.js was not there when this program was built (Debian: libjs-chart.js): tables instead of charts.', 'note'));
}

function list() {
  document.title = 'runs - dvla';
  put(page, put(make('header'), make('h1', 'Runs'), make('span', data.written, 'note')));
  const link = each => { const made = make('a', each.name); made.href = encodeURIComponent(each.name) + '/index.html'; return made; };
  put(page, put(make('section'), table(['run', 'state', 'environment', 'model', 'algorithm', 'before', 'after', 'batches', 'env steps', 'env steps/s', 'training s'],
    data.runs.map(each => [link(each), each.state, each.environment, each.model, each.algorithm, number(each.before), number(each.after), each.batches === null ? '' : String(each.batches), number(each.env_steps), number(each.rate), number(each.seconds)]))));
}

(data.kind === 'list' ? list : run)();
const draw = () => { for (const each of drawn) each(); };
draw();
if (charts) matchMedia('(prefers-color-scheme: dark)').addEventListener('change', () => {
  for (const each of Object.values(Chart.instances)) each.destroy();
  draw();
});
document.documentElement.dataset.ready = charts ? 'charts' : 'tables';
</script>
</body>
</html>
)html";

}  // namespace dvla::io::detail
