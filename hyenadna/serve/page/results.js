// What is shown of one sequence's answer: words, a plot, a table; and all of it as a file.

import { count } from "./fasta.js";
import { ended, legend, written } from "./generate.js";
import { BASES, heatMap, likelihoodTrack, signed } from "./plots.js";
import { element } from "./strip.js";

const LISTED = 10;
const OVERVIEW_TO = 1000; // rows; the files hold all
const OVERVIEW = {
  likelihood: ["Bits per base", "ln p (nats)"],
  substitutions: ["Strongest change", "Ratio (nats)"],
  predict: ["Prediction", "Probability"],
  generate: ["Bits per base", "ln p (nats)"],
};

/** The answer for one sequence, as an element; name is what the person called it. */
export function shown(task, item, sequence, name) {
  if (item.error) return element("p", { className: "problem", textContent: `${name}: ${item.error.message}` });
  return { likelihood, substitutions, predict, embed, generate }[task](item, sequence, name);
}

/** A row for each sequence, by the names that the person gave; null where there is one alone, or nothing to compare. */
export function overview(task, items, sequences, names) {
  if (items.length < 2 || !OVERVIEW[task]) return null;
  const rows = items.slice(0, OVERVIEW_TO).map((item, row) => [names[row], sequences[row].sequence.length.toLocaleString("en"),
    ...(item.error ? ["no result", ""] : briefly(task, item, sequences[row].sequence))]);
  const all = items.length > OVERVIEW_TO ? `The first ${OVERVIEW_TO.toLocaleString("en")} sequences` : "All sequences";
  return table(all, ["Sequence", "Bases", ...OVERVIEW[task]], rows);
}

function briefly(task, item, sequence) {
  if (task === "likelihood" || task === "generate") return [item.bits_per_base?.toFixed(4) ?? "not scored", item.nats.toFixed(2).replace("-", "−")];
  if (task === "substitutions") {
    const [strongest] = changesOf(item, sequence);
    return strongest ? [`${strongest.own}${(strongest.p + 1).toLocaleString("en")}${strongest.base}`, signed(strongest.ratio)] : ["none", ""];
  }
  const { prediction, probabilities } = item;
  if (ofBases(item)) return ["a label for each base", ""];
  return [told(prediction), probabilities?.[prediction]?.toFixed(4) ?? ""];
}

function generate(item, sequence, name) {
  if (!sequence) return element("p", { textContent: `${name}: nothing was written.` });
  return element("div", {},
    element("p", { textContent: `${name}: ${count(item.length, "base")}, ${ended(item)}.` }),
    legend(), written(sequence, item.per_base).root, likelihood(item, sequence, name));
}

function likelihood(item, sequence, name) {
  const nats = item.per_base;
  const holder = element("div", { className: "plot" });
  const unit = element("select", {}, element("option", { value: "nats", textContent: "nats" }),
    element("option", { value: "bits", textContent: "bits" }));
  unit.onchange = () => holder.replaceChildren(likelihoodTrack(sequence, nats, unit.value).root);
  unit.onchange();
  // numbers alone, as there may be a million
  const places = Uint32Array.from(nats.keys()).filter((p) => nats[p] !== null).sort((a, b) => nats[a] - nats[b]);
  const words = item.bits_per_base === null
    ? `${name}: no base was scored; scored are A, C, G and T behind a first base.`
    : `${name}: ${item.bits_per_base.toFixed(4)} bits per base; ln p of ${count(item.scored, "base")} is ` +
      `${item.nats.toFixed(2).replace("-", "−")} nats. By chance it would be 2 bits per base; fewer means that the ` +
      "model finds the sequence likelier.";
  return element("div", {}, element("p", { textContent: words }),
    element("label", { className: "row" }, "Unit ", unit), holder,
    places.length === 0 ? "" : table("The least likely bases", ["Position", "Base", "ln p (nats)"],
      Array.from(places.slice(0, LISTED), (p) => [(p + 1).toLocaleString("en"), sequence[p], signed(nats[p])])));
}

/** All changes of a sequence, the strongest first. */
function changesOf(item, sequence) {
  const changes = [];
  item.log_likelihood_ratio.forEach((row, p) => [...BASES].forEach((base, b) => {
    const own = sequence[p].toUpperCase().replace("U", "T");
    if (row?.[b] != null && base !== own) changes.push({ p, own, base, ratio: row[b] });
  }));
  return changes.sort((a, b) => Math.abs(b.ratio) - Math.abs(a.ratio));
}

function substitutions(item, sequence, name) {
  const changes = changesOf(item, sequence);
  const likelier = changes.filter(({ ratio }) => ratio > 0).length;
  const words = `${name}: ${count(changes.length, "change")} of ${count(item.length, "base")}; ` +
    `${likelier.toLocaleString("en")} of them make the sequence likelier.`;
  return element("div", {}, element("p", { textContent: words }),
    element("div", { className: "plot" }, heatMap(sequence, item.log_likelihood_ratio).root),
    table("The strongest changes", ["Position", "Change", "Log-likelihood ratio (nats)"],
      changes.slice(0, LISTED).map(({ p, own, base, ratio }) =>
        [(p + 1).toLocaleString("en"), `${own} → ${base}`, signed(ratio)])));
}

function predict(item, _sequence, name) {
  const { prediction, probabilities } = item;
  if (ofBases(item)) {
    const counts = Object.keys(probabilities).map((label) => [label, prediction.split(label).length - 1]);
    return element("div", {},
      element("p", { textContent: `${name}: a label for each of ${count(item.length, "base")}; the files hold their probabilities.` }),
      table("Bases of each label", ["Label", "Bases"],
        counts.sort(([, a], [, b]) => b - a).map(([label, n]) => [label, n.toLocaleString("en")])),
      element("pre", { tabIndex: 0, textContent: prediction }));
  }
  const words = element("p", {}, `${name}: `, element("strong", { textContent: told(prediction) }));
  if (!probabilities) return element("div", {}, words);
  const rows = Object.entries(probabilities).sort(([, a], [, b]) => b - a);
  return element("div", {}, words, bars(rows, [prediction].flat()));
}

/** Whether it is a prediction of each base: a letter and a number of each label for every one. */
function ofBases({ probabilities }) {
  return Array.isArray(Object.values(probabilities ?? {})[0]);
}

function told(value) {
  if (Array.isArray(value)) return value.length ? value.map(told).join(", ") : "none of the labels";
  return typeof value === "number" ? value.toPrecision(5) : String(value);
}

function embed(item, _sequence, name) {
  const { embedding } = item;
  const norm = Math.sqrt(embedding.reduce((sum, value) => sum + value * value, 0));
  return element("div", {},
    element("p", { textContent: `${name}: ${count(embedding.length, "number")}, of length ${norm.toPrecision(4)}. ` +
      "Download them below; the first are:" }),
    element("pre", { textContent: embedding.slice(0, 16).map((value) => value.toFixed(4)).join("  ") }));
}

function bars(rows, chosen) {
  const body = element("tbody");
  for (const [label, p] of rows) {
    const bar = element("span", { className: "fill" });
    bar.style.width = `${100 * Math.min(1, Math.max(0, p))}%`;
    body.append(element("tr", { className: chosen.includes(label) ? "chosen" : "" },
      element("th", { scope: "row", textContent: label }),
      element("td", { className: "bar", attr: { "aria-hidden": "true" } }, bar),
      element("td", { className: "number", textContent: p.toFixed(4) })));
  }
  const head = element("tr", {}, element("th", { scope: "col", textContent: "Label" }),
    element("td", { attr: { "aria-hidden": "true" } }), element("th", { scope: "col", className: "number", textContent: "Probability" }));
  return element("table", { className: "bars" },
    element("caption", { textContent: "Probability of each label" }), element("thead", {}, head), body);
}

function table(caption, heads, rows) {
  const line = (cells, tag) => element("tr", {}, ...cells.map((text) => element(tag, { textContent: text })));
  const head = line(heads, "th");
  for (const cell of head.children) cell.scope = "col";
  return element("details", { open: rows.length > 0 && rows.length <= LISTED },
    element("summary", { textContent: caption }),
    element("table", {}, element("caption", { className: "unseen", textContent: caption }),
      element("thead", {}, head), element("tbody", {}, ...rows.map((row) => line(row, "td")))));
}

/** All items as a table of text; the first position is 1, NA stands where nothing is scored. */
export function tsv(task, items, sequences) {
  const lines = items.filter(({ error }) => error).map(({ id, error }) => `# ${id}: ${error.message}`);
  const good = items.map((item, row) => [item, sequences[row].sequence]).filter(([item]) => !item.error);
  const cell = (value) => (value == null ? "NA" : String(value).replace(/[\t\r\n]/g, " "));
  const add = (...cells) => lines.push(cells.map(cell).join("\t"));
  if (task === "likelihood" || task === "generate") {
    add("id", "position", "base", "nats");
    for (const [item, sequence] of good) item.per_base.forEach((nats, p) => add(item.id, p + 1, sequence[p], nats));
  } else if (task === "substitutions") {
    add("id", "position", "reference", ...BASES);
    for (const [item, sequence] of good) {
      item.log_likelihood_ratio.forEach((row, p) => add(item.id, p + 1, sequence[p], ...(row ?? [null, null, null, null])));
    }
  } else if (task === "embed") {
    add("id", ...(good[0]?.[0].embedding ?? []).map((_, number) => `d${number}`));
    for (const [item] of good) add(item.id, ...item.embedding);
  } else {
    const labels = Object.keys(good[0]?.[0].probabilities ?? {}), named = labels.map((label) => `probability_${label}`);
    if (good.length && ofBases(good[0][0])) {
      add("id", "position", "base", "prediction", ...named);
      for (const [{ id, prediction, probabilities }, sequence] of good) {
        for (let p = 0; p < sequence.length; p += 1) {
          add(id, p + 1, sequence[p], prediction[p], ...labels.map((label) => probabilities[label][p]));
        }
      }
    } else {
      add("id", "prediction", ...named);
      for (const [{ id, prediction, probabilities }] of good) {
        add(id, [prediction].flat().join(";"), ...labels.map((label) => probabilities[label]));
      }
    }
  }
  return `${lines.join("\n")}\n`;
}
