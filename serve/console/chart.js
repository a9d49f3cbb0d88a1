// Line charts and histograms as drawings: no library, readable in both themes, described in words for those who listen.

import { h, svg } from "./dom.js";

const WIDTH = 480;
const HEIGHT = 190;
const LEFT = 54;
const RIGHT = 10;
const TOP = 10;
const BOTTOM = 28;

/**
 * Draw lines over steps.
 * @param {string} label what is drawn
 * @param {{name: string, points: [number, number][]}[]} series each with its points (x, y)
 * @param {{x?: string, waiting?: string}} words what x counts, and what stands there while there is no point
 */
export function drawLines(label, series, { x = "step", waiting = "Nothing yet." } = {}) {
  const drawn = series.filter((one) => one.points.length);
  const points = drawn.flatMap((one) => one.points);
  if (!points.length) return h("figure", { class: "chart" }, h("figcaption", {}, label), h("p", { class: "quiet" }, waiting));
  const scale = makeScale(points);
  const paths = drawn.map((one, at) => svg("polyline", {
    points: one.points.map(([px, py]) => `${scale.x(px).toFixed(1)},${scale.y(py).toFixed(1)}`).join(" "),
    class: `line series-${at + 1}`, fill: "none",
  }));
  const dots = drawn.map((one, at) => one.points.length > 40 ? null : one.points.map(([px, py]) => svg("circle", { cx: scale.x(px), cy: scale.y(py), r: 2.2, class: `dot series-${at + 1}` })));
  const last = drawn.map((one) => `${one.name} ${format(one.points.at(-1)[1])}`).join(", ");
  const picture = svg("svg", { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, role: "img", "aria-label": `${label} by ${x}; at the end ${last}` }, drawGrid(scale, x), paths, ...dots.filter(Boolean).flat());
  const names = drawn.map((one, at) => h("span", { class: `key series-${at + 1}` }, `${one.name} ${format(one.points.at(-1)[1])}`));
  return h("figure", { class: "chart" }, h("figcaption", {}, label, " ", names), picture);
}

/** Draw how many rows fall into each bar of a width. */
export function drawBars(label, { bars, width }, unit) {
  const most = Math.max(...bars, 1);
  const scale = makeScale([[0, 0], [bars.length * width, most]]);
  const shapes = bars.map((count, at) => {
    const left = scale.x(at * width);
    const top = scale.y(count);
    const bar = svg("rect", { x: left + 0.5, y: top, width: Math.max(1, scale.x((at + 1) * width) - left - 1), height: HEIGHT - BOTTOM - top, class: "bar-shape" });
    bar.append(svg("title", {}, `${at * width} to ${(at + 1) * width - 1} ${unit}: ${count} rows`));
    return bar;
  });
  const words = `${label}: ${bars.length} bars of ${width} ${unit}`;
  return h("figure", { class: "chart" }, h("figcaption", {}, label), svg("svg", { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, role: "img", "aria-label": words }, drawGrid(scale, unit), shapes));
}

function makeScale(points) {
  const ys = points.map(([, value]) => value).filter(Number.isFinite);
  const [left, right] = findEnds(points.map(([value]) => value));
  let [low, high] = ys.length ? findEnds(ys) : [0, 1];
  if (low > 0 && low < high * 0.6) low = 0;
  if (high === low) [low, high] = [Math.min(low, 0), high + (Math.abs(high) || 1)]; // one value: in the middle, over nothing
  const across = (WIDTH - LEFT - RIGHT) / (right - left || 1);
  const up = (HEIGHT - TOP - BOTTOM) / (high - low);
  return { left, right, low, high, x: (value) => LEFT + (value - left) * across, y: (value) => HEIGHT - BOTTOM - (value - low) * up };
}

/** Return the least and the largest of some values, of which there may be more than a call takes as arguments. */
function findEnds(values) {
  return values.reduce(([low, high], value) => [Math.min(low, value), Math.max(high, value)], [Infinity, -Infinity]);
}

function drawGrid(scale, x) {
  const levels = [0, 0.5, 1].map((share) => scale.low + (scale.high - scale.low) * share);
  const lines = levels.map((value) => [
    svg("line", { x1: LEFT, x2: WIDTH - RIGHT, y1: scale.y(value), y2: scale.y(value), class: "grid" }),
    svg("text", { x: LEFT - 6, y: scale.y(value) + 4, "text-anchor": "end" }, format(value)),
  ]);
  const ends = [
    svg("text", { x: LEFT, y: HEIGHT - 8 }, format(scale.left)),
    svg("text", { x: WIDTH - RIGHT, y: HEIGHT - 8, "text-anchor": "end" }, `${x} ${format(scale.right)}`),
  ];
  return [lines, ends];
}

/** Write a number with three figures that count. */
export function format(value) {
  if (value === null || value === undefined || !Number.isFinite(value)) return "–";
  if (value === 0) return "0";
  const size = Math.abs(value);
  if (size < 0.001) return value.toExponential(1);
  if (size >= 1000) return Math.round(value).toLocaleString("en");
  return String(Number(value.toPrecision(3)));
}
