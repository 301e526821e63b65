// The page: what is asked for, sent to the server, and shown.

import { compute, curl, CUT_OFF, models, Problem, setToken, stream } from "./api.js";
import { count, EXAMPLE, parse, problem, sizes } from "./fasta.js";
import * as generate from "./generate.js";
import { overview, shown, tsv } from "./results.js";
import { element } from "./strip.js";

const HELD_FROM = 300_000; // letters of a file that a text field would be slow with
const LINK_TO = 8_000; // letters of a link that programs still open
const TOLD_EVERY = 15; // seconds between words to a screen reader

const $ = (id) => document.getElementById(id);
let served = null; // what /v1/models says
let held = null; // the text of a large file
let running = null; // the AbortController of the request
let last = null; // the answer that is shown: {task, title, body, answer, sequences, prompt}

// --- the model and its tasks

async function meet() {
  try {
    served = await models();
  } catch (error) {
    $("token-box").hidden = error.status !== 401;
    $("model").textContent = "No model yet.";
    complain(error.message);
    if (error.status === 401) $("token").focus();
    return false;
  }
  complain(null);
  $("token-box").hidden = true;
  const [model] = served.models;
  $("model").textContent = `${model.name}: ${model.parameters.toLocaleString("en")} parameters, reads ` +
    `${count(model.context, "base")} at once, ${model.bits}-bit weights, on ${model.device}`;
  offer(model);
  return true;
}

function offer(model) {
  const tasks = [
    ["likelihood", "Likelihood", "of every base, along the sequence"],
    ["substitutions", "Substitutions", `what every single-base change does, up to ${count(served.limits.substitutions_bases, "base")}`],
    ...Object.entries(model.adapters).map(([name, adapter]) =>
      [`predict:${name}`, `Predict: ${name}`, adapter.labels?.length ? adapter.labels.slice(0, 6).join(", ") : adapter.task]),
    ["generate", "Generate", `the model writes on, up to ${count(model.context, "base")} with the prompt`],
    ["embed", "Embedding", `${count(model.width, "number")} for each sequence`],
  ];
  const before = task();
  $("tasks").replaceChildren(...tasks.map(([value, name, about]) => element("label", { className: "choice" },
    element("input", { type: "radio", name: "task", value, checked: value === (before || "likelihood"), onchange: options }),
    element("span", {}, element("b", { textContent: name }), element("span", { className: "quiet", textContent: about })))));
  const deepest = model.layers;
  Object.assign($("layer"), { min: -deepest - 1, max: deepest });
  generate.bound(model, served.limits);
  options();
}

function task() {
  return document.querySelector("input[name=task]:checked")?.value ?? "";
}

function options() {
  for (const label of document.querySelectorAll("[data-for]")) {
    label.hidden = !label.dataset.for.split(" ").includes(task());
  }
  const writes = task() === "generate";
  $("sequence-label").textContent = writes ? "Paste the DNA to go on from, if there is any" : "Paste DNA or FASTA, or drop a file here";
  $("cancel").textContent = writes ? "Stop" : "Cancel";
  summarize();
}

// --- the sequence

function sequences() {
  return parse(held ? held.text : $("sequence").value);
}

function summarize() {
  const found = sequences(), { total, longest, words } = sizes(found), notes = [];
  if (found.length) notes.push(`${held ? `${held.name}: ` : ""}${words}.`);
  else notes.push("No sequence yet.");
  if (served) {
    const { limits, models: [model] } = served;
    notes.push(`This server takes up to ${count(limits.sequence_bases, "base")} a sequence and ` +
      `${count(limits.sequences, "sequence")} at once, and works up to ${limits.deadline_s} s on a request.`);
    if (task() === "likelihood" && longest > model.context) notes.push("Longer than the model reads at once: it will go through overlapping windows.");
    if (task() === "substitutions" && longest > limits.substitutions_bases) {
      notes.push(`All substitutions work up to ${count(limits.substitutions_bases, "base")}: cut out the part that matters.`);
    } else if (task() === "substitutions" && total > 500) notes.push("The work grows with the square of the length; this takes a while.");
  }
  $("summary").textContent = notes.join(" ");
}

async function takeFile(file) {
  if (!file) return;
  if (served && file.size > served.limits.body_bytes) {
    return complain(`${file.name} has ${count(file.size, "byte")}; this server takes ${served.limits.body_bytes.toLocaleString("en")} at once. Cut it into parts.`);
  }
  let text;
  try {
    text = await file.text();
  } catch {
    return complain(`${file.name} could not be read.`);
  }
  if (text.startsWith("\x1f")) return complain(`${file.name} is compressed; unpack it first.`);
  hold(text.length > HELD_FROM ? { name: file.name, text } : null);
  if (!held) $("sequence").value = text;
  complain(null);
  summarize();
  $("status").textContent = `${file.name} is loaded.`;
}

function hold(file) {
  held = file;
  $("sequence").disabled = held !== null;
  $("sequence").value = held ? `${held.name} is too long to be shown here. “Clear” lets it go.` : "";
}

// --- a run

async function run() {
  if (running) return;
  const found = sequences(), [kind, adapter] = split(task());
  const [wrong, at] = kind === "generate" ? generate.problem(found) : [problem(found), $("sequence")];
  complain(wrong);
  if (wrong) return at.focus();
  if (!served && !(await meet())) return;
  const title = document.querySelector(".choice:has(:checked) b").textContent;
  running = new AbortController();
  const { words } = sizes(found);
  let stop;
  try {
    if (kind === "generate") {
      const body = generate.requestOf(found[0]?.sequence ?? ""), writing = new generate.Writing(body);
      stop = told(() => writing.told());
      await write(body, title, writing);
    } else {
      const body = requestOf(kind, adapter, found);
      stop = told(() => `Computing ${words}`);
      last = { task: kind, title, body, answer: await compute(kind, body, running.signal), sequences: found };
      show();
    }
    $("status").textContent = `Done in ${stop()} s. The results are below.`;
    $("results-title").focus();
  } catch (error) {
    const seconds = stop();
    if (error.name === "AbortError") $("status").textContent = `${kind === "generate" ? "Stopped" : "Cancelled"} after ${seconds} s.`;
    else {
      $("status").textContent = "";
      if (error.status === 401) {
        $("token-box").hidden = false;
        $("token").focus();
      }
      complain(error instanceof Problem ? error.message : `The page failed: ${error.message}`);
      if (!(error instanceof Problem)) console.error(error);
    }
  } finally {
    running = null;
  }
}

/** Show sequences while they are written; what there is stays if it is stopped, or fails. */
async function write(body, title, writing) {
  let whole = null;
  const model = served.models[0].name;
  try {
    await stream("generate", body, running.signal, (name, data) => {
      if (name === "done") whole = data;
      else if (name === "bases") {
        if (!writing.bases) begin(title, model, body, writing);
        writing.add(data.pieces);
      }
    });
    if (!whole) throw new Problem(CUT_OFF);
  } finally {
    if (writing.bases) {
      const answer = writing.answer(model, whole);
      last = { task: "generate", title, body, answer, sequences: answer.items.map(({ sequence }) => ({ id: null, sequence })), prompt: body.prompt };
      show();
    }
  }
}

function begin(title, model, body, writing) {
  $("results").hidden = false;
  $("asked").textContent = `${title}, by ${model}${settings(body)}`;
  $("overview").replaceChildren();
  for (const id of ["chooser", "take", "terminal"]) $(id).hidden = true;
  $("item-result").replaceChildren(writing.root);
}

function split(value) {
  const colon = value.indexOf(":");
  return colon < 0 ? [value, null] : [value.slice(0, colon), value.slice(colon + 1)];
}

function requestOf(kind, adapter, found) {
  const body = { sequences: found.map(({ id, sequence }) => (id ? { id, sequence } : { sequence })) };
  if (kind === "likelihood") return { ...body, per_base: true, strand: $("strand").value };
  if (kind === "substitutions") return { ...body, strand: $("strand").value };
  if (kind === "embed") return { ...body, layer: Number($("layer").value), pool: $("pool").value };
  return { ...body, adapter };
}

/** Say that it works, and for how long; what is returned ends that and gives the seconds. */
function told(doing) {
  const start = performance.now(), seconds = () => Math.round((performance.now() - start) / 1000);
  for (const [id, hidden] of [["busy", false], ["cancel", false], ["run", true]]) $(id).hidden = hidden;
  $("cancel").focus();
  $("form").setAttribute("aria-busy", "true");
  $("status").textContent = `${doing()} …`;
  const timer = setInterval(() => {
    $("elapsed").textContent = `${seconds()} s`;
    if (seconds() % TOLD_EVERY === 0) {
      $("status").textContent = `${doing()}: ${seconds()} s so far, of ${served.limits.deadline_s} s that the server allows.`;
    }
  }, 1000);
  return () => {
    clearInterval(timer);
    const focused = document.activeElement === $("cancel");
    for (const [id, hidden] of [["busy", true], ["cancel", true], ["run", false]]) $(id).hidden = hidden;
    if (focused) $("run").focus();
    $("elapsed").textContent = "";
    $("form").removeAttribute("aria-busy");
    return Math.max(0.1, (performance.now() - start) / 1000).toFixed(1);
  };
}

function complain(message) {
  $("problem").hidden = !message;
  $("problem").textContent = message ?? "";
}

// --- the results

function show() {
  const { task: kind, title, body, answer, sequences: found } = last;
  $("results").hidden = false;
  $("asked").textContent = `${title}, by ${answer.model}${settings(body)}`;
  $("overview").replaceChildren(overview(kind, answer.items, found, found.map(called)) ?? "");
  $("chooser").hidden = answer.items.length < 2;
  $("item").replaceChildren(...answer.items.map(({ id, length, error }, row) => element("option", {
    value: row, textContent: error ? `${id}: no result` : `${id} (${count(length, "base")})`,
  })));
  for (const id of ["copy-fasta", "save-fasta"]) $(id).hidden = kind !== "generate";
  for (const id of ["take", "terminal"]) $(id).hidden = false;
  $("curl").textContent = shortened(curl(kind, body));
  $("copy-link").hidden = link().length > LINK_TO;
  showItem();
}

function showItem() {
  const row = Number($("item").value || 0), one = last.sequences[row];
  $("item-result").replaceChildren(shown(last.task, last.answer.items[row], one.sequence, called(one, row)));
}

function called({ id }, row) {
  return id ?? `Sequence ${row + 1}`;
}

/** The options of a request, in words. */
function settings(body) {
  if (body.length) return generate.settings(body);
  const { strand, layer, pool } = body;
  const words = (name, value) => $(name).querySelector(`[value="${value}"]`).textContent;
  if (strand && strand !== "forward") return `, ${words("strand", strand)}; positions and bases are those of the sequence as given`;
  return pool ? `, layer ${layer}, ${words("pool", pool)}` : "";
}

function shortened(text) {
  return text.length < 4000 ? text : `${text.slice(0, 2000)}\n… (${count(text.length, "character")}; “Copy as curl” takes all)`;
}

/** This page with the sequences and options behind #, which browsers keep to themselves. */
function link() {
  const { task: kind, body } = last;
  const fasta = last.sequences.map(({ id, sequence }) => (id || last.sequences.length > 1 ? `>${id ?? ""}\n${sequence}` : sequence)).join("\n");
  const fragment = new URLSearchParams({ task: kind === "predict" ? `predict:${body.adapter}` : kind });
  for (const name of ["strand", "layer", "pool"]) if (body[name] !== undefined) fragment.set(name, body[name]);
  if (kind === "generate") generate.toFragment(body, fragment);
  fragment.set("sequence", last.prompt ?? fasta);
  fragment.set("run", "1");
  return `${location.origin}${location.pathname}#${fragment}`;
}

function save(text, kind, ending) {
  const url = URL.createObjectURL(new Blob([text], { type: kind }));
  const anchor = element("a", { href: url, download: `hyena-${last.task}.${ending}` });
  anchor.click();
  setTimeout(() => URL.revokeObjectURL(url), 10_000);
  $("status").textContent = `${anchor.download} is saved.`;
}

async function copy(text, what) {
  try {
    await navigator.clipboard.writeText(text);
    $("status").textContent = `${what} is copied.`;
  } catch {
    // without https a browser keeps its clipboard, but for a selection
    const field = element("textarea", { value: text, className: "unseen" });
    document.body.append(field);
    field.select();
    const done = document.execCommand("copy");
    field.remove();
    $("status").textContent = done ? `${what} is copied.` : "The browser does not allow copying; the text is below.";
  }
}

/** What stands behind # in the address: sequence, task, its options, and run=1. */
function fromAddress() {
  const fragment = new URLSearchParams(location.hash.slice(1));
  if (!fragment.has("sequence") && !fragment.has("task")) return;
  hold(null);
  $("sequence").value = fragment.get("sequence") ?? "";
  for (const name of ["strand", "layer", "pool"]) if (fragment.has(name)) $(name).value = fragment.get(name);
  generate.fromFragment(fragment);
  const radios = [...document.querySelectorAll("input[name=task]")];
  const wanted = fragment.get("task") ?? "likelihood", found = radios.find(({ value }) => value === wanted);
  if (radios.length) (found ?? radios[0]).checked = true;
  options();
  if (served && !found) complain(`This server has no “${wanted}”; choose another task.`);
  else if (served && fragment.get("run") === "1") run();
}

// --- wiring

$("form").addEventListener("submit", (event) => {
  event.preventDefault();
  run();
});
$("cancel").addEventListener("click", () => running?.abort());
document.addEventListener("keydown", (event) => {
  if (event.key === "Escape") running?.abort();
});
let typing = 0;
$("sequence").addEventListener("input", () => {
  clearTimeout(typing);
  typing = setTimeout(summarize, 150);
});
$("sequence").addEventListener("keydown", (event) => {
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) run();
});
$("file").addEventListener("change", () => takeFile($("file").files[0]));
$("example").addEventListener("click", () => {
  hold(null);
  $("sequence").value = EXAMPLE;
  summarize();
});
$("clear").addEventListener("click", () => {
  hold(null);
  $("file").value = "";
  summarize();
  $("sequence").focus();
});
$("use-token").addEventListener("click", useToken);
$("token").addEventListener("keydown", (event) => {
  if (event.key !== "Enter") return;
  event.preventDefault();
  useToken();
});
$("item").addEventListener("change", showItem);
$("copy-fasta").addEventListener("click", () => copy(generate.fasta(last.answer, last.body), "The FASTA"));
$("save-fasta").addEventListener("click", () => save(generate.fasta(last.answer, last.body), "text/plain", "fa"));
$("save-tsv").addEventListener("click", () => save(tsv(last.task, last.answer.items, last.sequences), "text/tab-separated-values", "tsv"));
$("save-json").addEventListener("click", () => save(JSON.stringify(last.answer), "application/json", "json"));
$("copy-curl").addEventListener("click", () => copy(curl(last.task, last.body), "The command"));
$("copy-link").addEventListener("click", () => copy(link(), "The link"));
for (const kind of ["dragover", "dragleave", "drop"]) {
  addEventListener(kind, (event) => {
    if (!event.dataTransfer?.types.includes("Files")) return;
    event.preventDefault();
    document.body.classList.toggle("dropping", kind === "dragover");
    if (kind === "drop") takeFile(event.dataTransfer.files[0]);
  });
}
addEventListener("hashchange", fromAddress);

async function useToken() {
  setToken($("token").value);
  if (await meet()) {
    $("status").textContent = "The server takes this token.";
    $("sequence").focus();
    fromAddress();
  }
}

if (await meet()) fromAddress();
document.documentElement.dataset.ready = "yes";
