// Sequences that the model writes: what is asked for, how they appear, and the same as FASTA.

import { count } from "./fasta.js";
import { element } from "./strip.js";

const NUMBERS = ["length", "count", "seed", "temperature", "top_k", "top_p", "typical_p"];
const LINE = 80;
// of a base's probability, where the shades of its letter's ground begin
const SHADES = [[0.5, "likelier"], [0.25, "rather-likelier"], [0.125, "rather-unlikelier"], [0, "unlikelier"]];

const field = (name) => document.getElementById(`generate-${name}`);

/** The fields, as far as the server lets them go. */
export function bound({ context }, limits) {
  field("length").max = context - 1;
  field("count").max = limits.sequences;
}

/** The request of the fields, for the prompt. */
export function requestOf(prompt) {
  const numbers = NUMBERS.map((name) => [name, field(name).valueAsNumber]);
  return { prompt, ...Object.fromEntries(numbers), stream: true };
}

/** What is wrong with the prompt or a field, as a line for a person, and the element; null if nothing is. */
export function problem(prompts) {
  const at = document.getElementById("sequence");
  if (prompts.length > 1) return [`There are ${count(prompts.length, "sequence")}; a generation goes on from one.`, at];
  const [{ sequence }] = prompts, other = sequence.search(/[^ACGTU]/i);
  if (other >= 0) {
    return [`“${sequence[other]}” at position ${(other + 1).toLocaleString("en")}: a generation goes on from A, C, G and T alone.`, at];
  }
  const wrong = NUMBERS.map(field).find((input) => !input.checkValidity());
  if (!wrong) return null;
  const name = wrong.labels[0].firstChild.textContent.trim();
  return [`“${name}” takes a number from ${Number(wrong.min).toLocaleString("en")} to ${Number(wrong.max).toLocaleString("en")}` +
    `${wrong.step === "1" ? ", without a fraction" : ""}.`, wrong];
}

/** The options of a request that are not their defaults, in words. */
export function settings(body) {
  const words = NUMBERS.filter((name) => body[name] !== field(name).defaultValue && name !== "length" && name !== "count")
    .filter((name) => Number(field(name).defaultValue) !== body[name] || name === "seed")
    .map((name) => `${name.replace("_", "-")} ${body[name]}`);
  return `, ${count(body.count, "sequence")} of up to ${count(body.length, "base")}, ${words.join(", ")}`;
}

/** Fields from the address, and back. */
export function fromFragment(fragment) {
  for (const name of NUMBERS) if (fragment.has(name)) field(name).value = fragment.get(name);
}

export function toFragment(body, fragment) {
  for (const name of NUMBERS) fragment.set(name, body[name]);
}

/** Sequences as they are written: `root` shows them, `items` is what there is of them. */
export class Writing {
  constructor(body) {
    this.rows = Array.from({ length: body.count }, (_, row) => ({ row, sequence: "", nats: [] }));
    this.views = this.rows.map(() => written("", []));
    this.root = element("div", {}, legend(), ...this.views.flatMap(({ root }, row) =>
      (body.count > 1 ? [element("h3", { textContent: `Sequence ${row + 1}` }), root] : [root])));
    this.bases = 0;
  }

  /** Take the pieces of an event. */
  add(pieces) {
    for (const { row, bases, nats } of pieces) {
      const one = this.rows[row];
      one.sequence += bases;
      for (const value of nats) one.nats.push(value);
      this.views[row].add(bases, nats);
      this.bases += bases.length;
    }
  }

  /** The answer for what there is, with the server's own words where it has ended; each base has its nats. */
  answer(model, seed, ended) {
    const items = this.rows.map(({ row, sequence, nats }) => {
      const sum = nats.reduce((a, b) => a + b, 0), length = sequence.length;
      const own = { row, sequence, length, nats: sum, bits_per_base: length ? -sum / length / Math.LN2 : null, stopped: "cancelled" };
      return { id: String(row + 1), ...own, ...ended?.items[row], per_base: nats };
    });
    return { model, seed, items };
  }
}

/** Bases on a ground that tells how likely each is. */
export function written(sequence, nats) {
  const root = element("pre", { className: "written", tabIndex: 0, attr: { role: "group", "aria-label": "What is written" } });
  let last = null;
  const add = (bases, values) => {
    const follows = root.scrollTop + root.clientHeight >= root.scrollHeight - 4;
    for (const [place, base] of [...bases].entries()) {
      const [, shade] = SHADES.find(([least]) => Math.exp(values[place]) >= least);
      if (last?.className !== shade) root.append(last = element("span", { className: shade }, ""));
      last.firstChild.data += base;
    }
    if (follows) root.scrollTop = root.scrollHeight;
  };
  add(sequence, nats);
  return { root, add };
}

export function legend() {
  const words = ["p from 0.5", "from 0.25, which is chance", "from 0.125", "below"];
  return element("p", { className: "legend" }, ...SHADES.map(([, shade], at) => element("span", { className: "key" },
    element("span", { className: `shade ${shade}`, textContent: "A", attr: { "aria-hidden": "true" } }), words[at])));
}

const ENDS = { length: "all that was asked for", stop: "it came to a stop", deadline: "the server's time was over", cancelled: "it was stopped" };

/** How a sequence ended, in words. */
export function ended({ stopped }) {
  return ENDS[stopped] ?? stopped;
}

/** All sequences as FASTA. */
export function fasta({ model, seed, items }) {
  return items.filter(({ length }) => length).map(({ id, sequence, nats, stopped }) =>
    `>${id} model=${model} seed=${seed} bases=${sequence.length} nats=${nats.toFixed(4)} stopped=${stopped}\n` +
    `${sequence.match(new RegExp(`.{1,${LINE}}`, "g")).join("\n")}\n`).join("");
}
