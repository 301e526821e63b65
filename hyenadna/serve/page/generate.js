// Sequences that the model writes: what is asked for, how they appear, and the same as FASTA.

import { count } from "./fasta.js";
import { element } from "./strip.js";

const NUMBERS = ["length", "count", "seed", "temperature", "top_k", "top_p", "typical_p"];
const LINE = 80;
// of a base's probability, where the shades of its letter's ground begin
const SHADES = [[0.5, "shade-likelier"], [0.25, "shade-rather-likelier"], [0.125, "shade-rather-unlikelier"], [0, "shade-unlikelier"]];

const field = (name) => document.getElementById(`generate-${name}`);

/** The fields, as far as the server lets them go. */
export function bound({ context }, limits) {
  field("length").max = context;
  field("count").max = limits.sequences;
}

/** The request of the fields, for the prompt. */
export function requestOf(prompt) {
  const numbers = NUMBERS.map((name) => [name, field(name).valueAsNumber]);
  return { prompt, ...Object.fromEntries(numbers), stream: true };
}

/** What is wrong with the prompt or a field, as a line for a person, and the element; [null] if nothing is. */
export function problem(prompts) {
  const at = document.getElementById("sequence"), sequence = prompts[0]?.sequence ?? "";
  if (prompts.length > 1) return [`There are ${count(prompts.length, "sequence")}; a generation goes on from one.`, at];
  const other = sequence.search(/[^ACGTU]/i);
  if (other >= 0) {
    return [`“${sequence[other]}” at position ${(other + 1).toLocaleString("en")}: a generation goes on from A, C, G and T alone.`, at];
  }
  const wrong = NUMBERS.map(field).find((input) => !input.checkValidity());
  if (!wrong) return [null];
  const name = wrong.labels[0].firstChild.textContent.trim();
  const [least, most] = [wrong.min, wrong.max].map((bound) => Number(bound).toLocaleString("en", { maximumFractionDigits: 6 }));
  return [`“${name}” takes a number from ${least} to ${most}${wrong.step === "1" ? ", without a fraction" : ""}.`, wrong];
}

/** The options of a request that are not as the page has them at first, in words. */
export function settings(body) {
  return `, ${count(body.count, "sequence")} of ${count(body.length, "base")}, seed ${body.seed}` +
    changed(body).map((name) => `, ${name.replace("_", "-")} ${body[name]}`).join("");
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
    Object.assign(this, { bases: 0, seed: body.seed, length: body.length });
  }

  /** What is done, in words. */
  told() {
    const all = `Writing ${count(this.rows.length, "sequence")} of ${count(this.length, "base")}`;
    return this.bases ? `${all}, ${count(this.bases, "base")} written` : all;
  }

  /** Take the pieces of an event. All views are asked where they stand before one is changed: the answer behind a change lays out the page. */
  add(pieces) {
    const following = pieces.map(({ row }) => this.views[row]).filter((view) => view.isAtEnd());
    for (const { row, bases, nats } of pieces) {
      const one = this.rows[row];
      one.sequence += bases;
      for (const value of nats) one.nats.push(value);
      this.views[row].add(bases, nats);
      this.bases += bases.length;
    }
    for (const view of following) view.toEnd();
  }

  /** The answer for what there is; `whole` is the server's own, if it came to that. */
  answer(model, whole) {
    const items = this.rows.map(({ row, sequence, nats }) => {
      const scored = nats.filter((value) => value !== null), sum = scored.reduce((a, b) => a + b, 0);
      const bits = scored.length ? -sum / scored.length / Math.LN2 : null;
      const own = { row, sequence, length: nats.length, scored: scored.length, nats: sum, bits_per_base: bits, stopped: "cancelled" };
      return { id: String(row + 1), ...own, ...whole?.items[row], per_base: nats };
    });
    return { model, seed: this.seed, items };
  }
}

/** Bases on a ground that tells how likely each is. */
export function written(sequence, nats) {
  const root = element("pre", { className: "written", tabIndex: 0, attr: { role: "group", "aria-label": "What is written" } });
  let last = null;
  const add = (bases, values) => {
    for (const [place, base] of [...bases].entries()) {
      // a first base that nothing stands before is not scored
      const shade = values[place] === null ? "" : SHADES.find(([least]) => Math.exp(values[place]) >= least)[1];
      if (!last || last.className !== shade) root.append(last = element("span", { className: shade }, ""));
      last.firstChild.data += base;
    }
  };
  const isAtEnd = () => root.scrollTop + root.clientHeight >= root.scrollHeight - 4;
  const toEnd = () => { root.scrollTop = root.scrollHeight; };
  add(sequence, nats);
  return { root, add, isAtEnd, toEnd };
}

export function legend() {
  const words = ["p from 0.5", "from 0.25, which is chance", "from 0.125", "less likely"];
  return element("p", { className: "legend" }, ...SHADES.map(([, shade], at) => element("span", { className: "key" },
    element("span", { className: `sample ${shade}`, textContent: "A", attr: { "aria-hidden": "true" } }), words[at])));
}

const ENDS = { length: "all that were asked for", deadline: "then the server's time was over", cancelled: "then it was stopped" };

/** How a sequence ended, in words. */
export function ended({ stopped }) {
  return ENDS[stopped];
}

/** All sequences as FASTA, as `hyena generate` writes them. */
export function fasta({ items, seed }, body) {
  return items.filter(({ length }) => length).map(({ id, row, sequence, scored, nats, bits_per_base: bits, stopped }) => {
    const facts = { seed, row, nats: rounded(nats), scored, bits_per_base: scored ? rounded(bits) : "none", method: method(body), stopped };
    const header = Object.entries(facts).map(([name, value]) => ` ${name}=${value}`).join("");
    return `>generated_${id}${header}\n${sequence.match(new RegExp(`.{1,${LINE}}`, "g")).join("\n")}\n`;
  }).join("");
}

function rounded(value) {
  return Number(value.toFixed(6));
}

function method(body) {
  if (body.temperature === 0) return "greedy";
  return changed(body).map((name) => `${name}:${body[name]}`).join(",") || "ancestral";
}

/** Options of the decoding that are not as the page has them at first, which is the model's own distribution. */
function changed(body) {
  return NUMBERS.slice(3).filter((name) => body[name] !== Number(field(name).defaultValue));
}
