// The two plots along a sequence: the likelihood of its bases, and the effect of every substitution.

import { Strip, element } from "./strip.js";

export const BASES = "ACGT";
const LN2 = Math.log(2);
const LETTERS_FROM = 9; // pixels of a base from which its letter can be read
const ROW = 24;

/** The likelihood along a sequence: bars from the line of chance, and their running mean. unit is nats or bits. */
export function likelihoodTrack(sequence, nats, unit) {
  const L = sequence.length, per = unit === "bits" ? LN2 : 1, height = 190;
  const values = Float64Array.from(nats, (value) => (value === null ? NaN : value / per));
  const chance = -Math.log(4) / per;
  const lowest = Math.min(2 * chance, values.reduce((least, v) => (v < least ? v : least), 0)) * 1.04;
  const y = (value) => 6 + (value / lowest) * (height - 26);
  const half = L < 60 ? 0 : Math.max(10, Math.round(L / 200));
  const means = half ? runningMeans(values, half) : null;

  function paint(g, view, isGutter) {
    if (isGutter) return valueAxis(g, view, y, lowest, unit);
    line(g, view, y(chance), view.colour("quiet"), [4, 4]);
    // of many bases in a pixel, that is their range: the line of their mean stands out before it
    g.globalAlpha = view.px < 1 ? 0.4 : 1;
    for (const { x, width, low, high } of columns(values, view)) {
      const top = y(Math.max(high, chance)), bottom = y(Math.min(low, chance));
      g.fillStyle = view.colour("likelier");
      if (high > chance) g.fillRect(x, top, width, y(chance) - top);
      g.fillStyle = view.colour("unlikelier");
      if (low < chance) g.fillRect(x, y(chance), width, bottom - y(chance));
    }
    g.globalAlpha = 1;
    if (means) {
      g.strokeStyle = view.colour("ink");
      g.lineWidth = 1.6;
      g.beginPath();
      const step = Math.max(1, Math.floor(1 / view.px));
      for (let p = view.from; p < view.to; p += step) {
        if (!Number.isNaN(means[p])) g.lineTo(view.x(p + 0.5), y(means[p]));
      }
      g.stroke();
      g.lineWidth = 1;
    }
    letters(g, view, sequence, height - 6);
  }

  const strip = new Strip({
    label: "Likelihood along the sequence", length: L, height, paint,
    describe: (p) => {
      const place = `Position ${(p + 1).toLocaleString("en")}, ${sequence[p]}`;
      if (Number.isNaN(values[p])) return `${place}: not scored`;
      return `${place}: ${unit === "bits" ? "log2 p" : "ln p"} = ${signed(values[p])} ${unit}, ` +
        `p = ${Math.exp(nats[p]).toPrecision(2)}`;
    },
  });
  const legend = element("p", { className: "legend" },
    key("swatch likelier", "likelier than by chance"), key("swatch unlikelier", "less likely"),
    ...(means ? [key("swatch mean", `mean of ${2 * half + 1} bases`)] : []));
  return { root: element("div", {}, strip.root, legend), refresh: strip.refresh };
}

/** All substitutions: a row for each base, a column for each position. */
export function heatMap(sequence, ratios) {
  const L = sequence.length, height = 4 * ROW + 18;
  const rows = [...BASES].map((_, base) => Float64Array.from(ratios, (row) => row?.[base] ?? NaN));
  const scale = reach(rows);

  function paint(g, view, isGutter) {
    if (isGutter) {
      g.font = `600 13px ${view.font}`;
      g.fillStyle = view.colour("ink");
      [...BASES].forEach((base, row) => g.fillText(base, view.gutter - 20, row * ROW + 17));
      return;
    }
    const palette = diverging(view);
    rows.forEach((values, base) => {
      for (const { x, width, low, high, first, single } of columns(values, view)) {
        const strongest = -low > high ? low : high;
        g.fillStyle = palette(strongest / scale);
        g.fillRect(x, base * ROW, width, ROW - 1);
        if (single && view.px >= 5 && sequence[first].toUpperCase().replace("U", "T") === BASES[base]) {
          g.fillStyle = view.colour("quiet");
          g.beginPath();
          g.arc(x + width / 2, base * ROW + ROW / 2, Math.min(3, view.px / 4), 0, 7);
          g.fill();
        }
      }
    });
    letters(g, view, sequence, height - 6);
  }

  const strip = new Strip({
    label: "Substitutions along the sequence", length: L, height, paint,
    describe: (p) => {
      const own = sequence[p].toUpperCase().replace("U", "T");
      const changes = [...BASES].filter((base) => base !== own).map((base) => `${base} ${signed(ratios[p]?.[BASES.indexOf(base)])}`);
      return `Position ${(p + 1).toLocaleString("en")}, reference ${sequence[p]}: ` +
        (ratios[p]?.[0] == null ? "not scored" : `${changes.join(", ")} nats`);
    },
  });
  const legend = element("p", { className: "legend" },
    element("span", { className: "key" }, `less likely, ${signed(-scale)} or below`,
      element("span", { className: "scale", attr: { "aria-hidden": "true" } }), `${signed(scale)} nats or above, likelier`),
    key("dot", "the sequence's own base"));
  const note = element("p", { className: "quiet", textContent:
    "Where bases are narrower than a pixel, a column shows the strongest change of those in it; zoom in for single ones." });
  return { root: element("div", {}, strip.root, legend, ...(L > 600 ? [note] : [])), refresh: strip.refresh };
}

/** A number with its sign, a true minus and three digits. */
export function signed(value) {
  if (value == null || Number.isNaN(value)) return "not scored";
  const text = Math.abs(value) >= 100 ? Math.abs(value).toFixed(0) : Math.abs(value).toPrecision(3);
  return `${value < 0 ? "−" : value > 0 ? "+" : ""}${Number(text) === 0 ? 0 : text}`;
}

/** What is drawn of values: one rectangle a position, or one a pixel with the least and the greatest in it. */
function* columns(values, view) {
  const single = view.px >= 1;
  const gap = view.px >= 4 ? 1 : 0;
  let p = view.from;
  while (p < view.to) {
    const first = p, x = single ? view.x(p) : Math.floor(view.x(p));
    let low = Infinity, high = -Infinity;
    do {
      if (values[p] < low) low = values[p];
      if (values[p] > high) high = values[p];
      p += 1;
    } while (!single && p < view.to && Math.floor(view.x(p)) === x);
    if (low <= high) yield { x, width: single ? Math.max(1, view.px - gap) : 1, low, high, first, single };
  }
}

function valueAxis(g, view, y, lowest, unit) {
  g.font = `11px ${view.font}`;
  g.textAlign = "right";
  g.fillStyle = view.colour("quiet");
  const step = lowest < -12 ? 4 : lowest < -6 ? 2 : 1;
  for (let value = 0; value >= lowest; value -= step) {
    g.fillText(value ? `−${-value}` : "0", view.gutter - 8, y(value) + 4);
    g.fillRect(view.gutter - 5, y(value) - 0.5, 4, 1);
  }
  g.textAlign = "left";
  g.save();
  g.translate(11, view.height / 2);
  g.rotate(-Math.PI / 2);
  g.textAlign = "center";
  g.fillText(unit === "bits" ? "log2 p (bits)" : "ln p (nats)", 0, 0);
  g.restore();
}

function letters(g, view, sequence, baseline) {
  if (view.px < LETTERS_FROM) return;
  g.font = `12px ${view.colour("mono")}`;
  g.textAlign = "center";
  g.fillStyle = view.colour("ink");
  for (let p = view.from; p < view.to; p += 1) g.fillText(sequence[p], view.x(p + 0.5), baseline);
  g.textAlign = "left";
}

function line(g, view, at, colour, dash) {
  g.save();
  g.strokeStyle = colour;
  g.setLineDash(dash);
  g.beginPath();
  g.moveTo(view.gutter, at);
  g.lineTo(view.end, at);
  g.stroke();
  g.restore();
}

function runningMeans(values, half) {
  const means = new Float64Array(values.length);
  let sum = 0, known = 0;
  const add = (p, sign) => {
    if (!Number.isNaN(values[p] ?? NaN)) { sum += sign * values[p]; known += sign; }
  };
  for (let p = 0; p < half; p += 1) add(p, 1);
  for (let p = 0; p < values.length; p += 1) {
    add(p + half, 1);
    add(p - half - 1, -1);
    means[p] = known ? sum / known : NaN;
  }
  return means;
}

/** The size of change at which colours are full: the 99th percentile, so that one outlier does not pale the rest. */
function reach(rows) {
  const sizes = Float64Array.from(rows.flatMap((row) => [...row].filter((v) => v).map(Math.abs))).sort();
  return sizes.length ? sizes[Math.floor(0.99 * (sizes.length - 1))] || 1 : 1;
}

function diverging(view) {
  const [low, middle, high] = ["unlikelier", "neutral", "likelier"].map((name) => {
    const hex = view.colour(name).slice(1);
    return [0, 2, 4].map((at) => parseInt(hex.slice(at, at + 2), 16));
  });
  return (value) => {
    const share = Math.min(1, Math.abs(value)), end = value < 0 ? low : high;
    return `rgb(${middle.map((from, i) => Math.round(from + share * (end[i] - from))).join(" ")})`;
  };
}

function key(mark, text) {
  return element("span", { className: "key" }, element("span", { className: mark, attr: { "aria-hidden": "true" } }), text);
}
