// The server's API: calls, their errors as lines for a person, and the same call as a curl command.

export class Problem extends Error {
  constructor(message, status = 0) {
    super(message);
    this.status = status;
  }
}

// in memory alone
let token = "";
let locked = false;

export function setToken(value) {
  token = value.trim();
}

/** The model and the limits of the server. A first try without credentials tells whether curl needs a token. */
export async function models() {
  locked = (await answered("v1/models", { credentials: "omit" })).status === 401;
  return call("v1/models", {});
}

/** POST a request body; signal aborts it. */
export function compute(task, body, signal) {
  const headers = { "Content-Type": "application/json" };
  return call(`v1/${task}`, { method: "POST", headers, body: JSON.stringify(body), signal });
}

/**
 * POST a request whose answer comes as server-sent events; take(name, data) gets each, and signal aborts it.
 * EventSource can send neither a body nor a token.
 */
export async function stream(task, body, signal, take) {
  const headers = { "Content-Type": "application/json" };
  const response = await sent(`v1/${task}`, { method: "POST", headers, body: JSON.stringify(body), signal });
  if (!response.ok) await read(response);
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { value, done } = await reader.read().catch((error) => {
      if (error.name === "AbortError") throw error;
      throw new Problem(CUT_OFF);
    });
    if (done) return;
    const blocks = (rest + value).split("\n\n");
    rest = blocks.pop();
    for (const block of blocks) event(block, take);
  }
}

function event(block, take) {
  const fields = Object.fromEntries(block.split("\n").filter((line) => !line.startsWith(":")).map((line) => line.split(/: (.*)/, 2)));
  if (!fields.event) return;
  const data = JSON.parse(fields.data);
  if (fields.event === "error") throw new Problem(sentence(data.error.message));
  take(fields.event, data);
}

function sent(path, options) {
  const headers = { ...options.headers };
  if (token) headers.Authorization = `Bearer ${token}`;
  return answered(path, { ...options, headers });
}

async function call(path, options) {
  return read(await sent(path, options));
}

async function read(response) {
  let answer = null;
  try {
    answer = await response.json();
  } catch (error) {
    if (error.name === "AbortError") throw error;
    if (response.ok) throw new Problem(CUT_OFF, response.status);
  }
  if (response.ok) return answer;
  throw new Problem(told(response, answer), response.status);
}

async function answered(path, options) {
  try {
    return await fetch(address(path), { cache: "no-store", ...options });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Problem("The server does not answer. Is it still running, and is the network up?");
  }
}

// from the origin, as a page whose own address holds a name and a password may fetch nothing beside itself
function address(path) {
  return new URL(path, location.origin + location.pathname).href;
}

export const CUT_OFF = "The server's answer was cut off; try again.";
const MEANING = {
  401: "The server asks for a token",
  413: "That is too much for one request",
  429: "The server is busy",
  503: "The server is not ready",
  504: "The server ran out of time",
};

function told(response, answer) {
  const message = answer?.error?.message ?? `HTTP ${response.status} ${response.statusText}`.trim();
  const wait = response.headers.get("Retry-After");
  return (MEANING[response.status] ? `${MEANING[response.status]}: ` : "") + sentence(message) +
    (wait ? ` Try again in ${wait} s.` : "");
}

function sentence(text) {
  return /[.!?]$/.test(text) ? text : `${text}.`;
}

/** The curl command that sends this body, for a POSIX shell. */
export function curl(task, body) {
  const json = JSON.stringify(body);
  const lines = [body.stream ? "curl -sSN" : "curl -sS", "-H 'Content-Type: application/json'"];
  if (locked || token) lines.push('-H "Authorization: Bearer $HYENA_TOKEN"');
  lines.push(quoted(address(`v1/${task}`)));
  // one argument may have 128 KiB on Linux
  if (json.length < 100_000) return [...lines, `-d ${quoted(json)}`].join(" \\\n  ");
  return [...lines, "--data-binary @- <<'END'"].join(" \\\n  ") + `\n${json}\nEND`;
}

/** A word for a POSIX shell, whatever is in it. */
export function quoted(text) {
  return `'${text.replaceAll("'", "'\\''")}'`;
}
