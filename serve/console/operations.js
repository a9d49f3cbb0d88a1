// Operations, for administrators: the engine and what it serves, requests and their times, memory, disk, findings, keys.

import { call, fetchText, hasKey, setKey } from "./api.js";
import { drawLines, format } from "./chart.js";
import { confirmThat } from "./dialog.js";
import { bytes, figure, focusOn, h, keepFocus, oneAtATime, problem, put, span, table, when } from "./dom.js";
import { CHANGED, OVER, SAME, watch } from "./watch.js";

export const title = "Operations";
export const isForAdmins = true;

const SHORTEST_MS = 3000;
const LONGEST_MS = 12_000;
const OWN_ROUTES = ["/metrics", "/v1/loam/status"];
const MOST_POINTS = 200;
const WAITING = "The first point comes in a few seconds.";

export async function show(root, context) {
  const view = { before: null, opened: null, written: [], asked: [], seen: null };
  const live = h("div", { class: "stack" });
  const look = async () => {
    const [status, metrics] = await Promise.all([call("GET", "loam/status"), readMetrics()]);
    if (context.isLeft()) return OVER;
    put(live, drawEngine(status, metrics), drawRates(view, status, metrics), drawQueue(status, metrics), drawMachine(status));
    const before = view.seen;
    view.seen = readActivity(status, metrics);
    return view.seen === before ? SAME : CHANGED;
  };
  await look();
  if (context.isLeft()) return null;
  const keys = h("div");
  put(root, h("h1", {}, title), live, drawDoctor(), keys);
  const watcher = watch(look, { shortest: SHORTEST_MS, longest: LONGEST_MS, failed: (error) => put(live, problem(error)) });
  watcher.wake();
  await readKeys(keys, context.rereadAccount);
  return watcher.stop;
}

/** Return what differs as soon as anything is asked, answered, ingested or trained; this page's own questions apart. */
function readActivity({ engine, files }, metrics) {
  const others = sum(metrics, "loam_requests_total", ({ route }) => !OWN_ROUTES.includes(route));
  const gauges = metrics.filter(([name]) => ["loam_engine_requests", "loam_fine_tuning_jobs"].includes(name));
  return JSON.stringify([engine.state, files, others, sum(metrics, "loam_tokens_total"), gauges]);
}

/** Return the gateway's own figures as [name, labels, value]; none where it has no such page. */
async function readMetrics() {
  let text;
  try {
    text = await fetchText("../metrics");
  } catch {
    return [];
  }
  const lines = text.split("\n").filter((line) => line && !line.startsWith("#"));
  return lines.map((line) => {
    const [, name, labels, value] = line.match(/^([a-zA-Z_:][\w:]*)(?:\{(.*)\})? (\S+)/) ?? [];
    const pairs = [...(labels ?? "").matchAll(/(\w+)="((?:[^"\\]|\\.)*)"/g)].map(([, key, text]) => [key, text]);
    return [name, Object.fromEntries(pairs), Number(value)];
  });
}

/** Return the time below which a share of a histogram's observations lie, read between its edges; null without any. */
function readQuantile(metrics, name, share) {
  const counts = new Map();
  for (const [one, labels, value] of metrics) {
    if (one !== `${name}_bucket`) continue;
    const edge = labels.le === "+Inf" ? Infinity : Number(labels.le);
    counts.set(edge, (counts.get(edge) ?? 0) + value);
  }
  const edges = [...counts.keys()].sort((a, b) => a - b);
  const wanted = share * (counts.get(Infinity) ?? 0);
  if (!wanted) return null;
  const at = edges.findIndex((edge) => counts.get(edge) >= wanted);
  if (edges[at] === Infinity) return edges[at - 1] ?? null;
  const [low, below] = at ? [edges[at - 1], counts.get(edges[at - 1])] : [0, 0];
  return low + ((edges[at] - low) * (wanted - below)) / (counts.get(edges[at]) - below || 1);
}

/** Add up a figure over its labels; null where there is none. */
function sum(metrics, name, fits = () => true) {
  const found = metrics.filter(([one, labels]) => one === name && fits(labels));
  return found.length ? found.reduce((total, [, , value]) => total + value, 0) : null;
}

function drawFigure(name, value) {
  return value === null ? null : figure(name, value);
}

function drawEngine(status, metrics) {
  const { served, engine } = status;
  const cache = sum(metrics, "vllm:kv_cache_usage_perc");
  const names = [["Base", served.base], ["Adapters", served.adapter], ["Assistants", served.assistant], ["Embedder", served.embedder]];
  return h(
    "section", { class: "card stack", "aria-label": "Engine" },
    h("header", {}, h("h2", {}, "Engine"), h("span", { class: `badge ${engine.state}` }, engine.state), h("span", { class: "quiet" }, `up since ${when(status.started_at)}`)),
    h("div", { class: "figures" },
      drawFigure("given to vLLM", sum(metrics, "loam_engine_requests")),
      drawFigure("running in vLLM", sum(metrics, "vllm:num_requests_running")), drawFigure("waiting in vLLM", sum(metrics, "vllm:num_requests_waiting")),
      drawFigure("of its cache in use", cache === null ? null : `${format(cache * 100)}%`),
      drawFigure("adapters loaded", served.adapter.length), drawFigure("tokens of context", engine.max_model_len.toLocaleString("en"))),
    h("dl", { class: "names" }, names.map(([label, list]) => [h("dt", {}, label), h("dd", {}, list.length ? list.map((name) => h("code", {}, name)) : h("span", { class: "quiet" }, "none"))])),
  );
}

/** What waits for its turn beside the questions: files to ingest, and jobs. */
function drawQueue(status, metrics) {
  const jobs = metrics.filter(([name, , value]) => name === "loam_fine_tuning_jobs" && value > 0);
  return h(
    "section", { class: "card stack", "aria-label": "Queue" },
    h("h2", {}, "Queue"),
    h("div", { class: "figures" },
      drawFigure("files to ingest", status.files.waiting), drawFigure("files that failed", status.files.failed),
      jobs.map(([, labels, value]) => drawFigure(`jobs ${labels.status.replace("_", " ")}`, value)),
      jobs.length ? null : drawFigure("fine-tuning jobs", 0)),
  );
}

/** Requests and tokens since the last look, and the times of all requests so far. */
function drawRates(view, status, metrics) {
  if (!metrics.length) return null;
  const now = { time: status.time, requests: sum(metrics, "loam_requests_total"), tokens: sum(metrics, "loam_tokens_total", (labels) => labels.kind === "completion") ?? 0 };
  const before = view.before;
  if (!before || now.time > before.time) view.before = now;
  const seconds = before ? now.time - before.time : 0;
  const rate = (name) => (seconds > 0 ? (now[name] - before[name]) / seconds : null);
  const [asked, written] = [rate("requests"), rate("tokens")];
  view.opened ??= now.time;
  if (asked !== null) {
    view.asked = [...view.asked.slice(-MOST_POINTS), [now.time - view.opened, asked]];
    view.written = [...view.written.slice(-MOST_POINTS), [now.time - view.opened, written]];
  }
  const count = (fits) => sum(metrics, "loam_requests_total", (labels) => fits(labels.status)) ?? 0;
  const shed = ["429", "503"];
  return h(
    "section", { class: "card stack", "aria-label": "Requests" },
    h("h2", {}, "Requests"),
    h("div", { class: "figures" },
      drawFigure("requests a second", format(asked)), drawFigure("tokens written a second", format(written)),
      drawFigure("being answered now", sum(metrics, "loam_requests_running")),
      drawFigure("first token, half are quicker", writeTime(readQuantile(metrics, "loam_first_token_seconds", 0.5))),
      drawFigure("first token, 95 of 100 are quicker", writeTime(readQuantile(metrics, "loam_first_token_seconds", 0.95))),
      drawFigure("search, mean of all", readMean(metrics, "loam_retrieval_seconds", (labels) => labels.stage === "total")),
      drawFigure("requests so far", now.requests?.toLocaleString("en") ?? null),
      drawFigure("tokens written so far", now.tokens.toLocaleString("en")),
      drawFigure("requests that failed (5xx)", count((code) => code.startsWith("5") && !shed.includes(code))),
      drawFigure("told to come later (429, 503)", count((code) => shed.includes(code)))),
    h("div", { class: "columns columns-2" },
      drawLines("Requests a second, while this page is open", [{ name: "", points: view.asked }], { x: "seconds", waiting: WAITING }),
      drawLines("Tokens written a second, while this page is open", [{ name: "", points: view.written }], { x: "seconds", waiting: WAITING })),
  );
}

function readMean(metrics, name, fits) {
  const count = sum(metrics, `${name}_count`, fits);
  if (!count) return "–";
  return writeTime(sum(metrics, `${name}_sum`, fits) / count);
}

function writeTime(seconds) {
  if (seconds === null) return "–";
  return seconds < 1 ? `${format(seconds * 1000)} ms` : `${format(seconds)} s`;
}

function drawMachine({ memory, disk }) {
  const used = memory.total_bytes - memory.available_bytes;
  const parts = Object.entries(disk.used_by).map(([name, size]) => h("tr", {}, h("td", {}, name), h("td", { class: "number" }, bytes(size))));
  return h(
    "section", { class: "card stack", "aria-label": "Machine" },
    h("h2", {}, "Machine"),
    h("div", { class: "columns columns-2" },
      h("div", { class: "stack" },
        h("label", {}, `Memory: ${bytes(used)} of ${bytes(memory.total_bytes)} in use`, h("meter", { value: used, max: memory.total_bytes, high: memory.total_bytes * 0.9 })),
        h("p", { class: "quiet small" }, `gateway ${bytes(memory.gateway_bytes)}, its vLLM and trainers ${bytes(memory.children_bytes)}`),
        h("label", {}, `Disk: ${bytes(disk.free_bytes)} of ${bytes(disk.total_bytes)} free`, h("meter", { value: disk.total_bytes - disk.free_bytes, max: disk.total_bytes, high: disk.total_bytes * 0.9 }))),
      h("table", {}, h("thead", {}, h("tr", {}, h("th", {}, "Data directory"), h("th", { class: "number" }, "Size"))), h("tbody", {}, parts))),
  );
}

function drawDoctor() {
  const result = h("div");
  const buttons = [];
  const make = (label, checks, doing) => {
    const examine = oneAtATime(async () => {
      for (const one of buttons) one.disabled = one !== button;
      const started = performance.now();
      put(result, h("p", { class: "quiet", role: "status" }, doing));
      try {
        const found = await call("POST", "loam/doctor", { query: { checks } });
        put(result, drawFindings(found, (performance.now() - started) / 1000));
      } catch (error) {
        put(result, problem(error));
      }
      for (const one of buttons) one.disabled = false;
    });
    const button = h("button", { onclick: examine }, label);
    buttons.push(button);
  };
  make("Examine the data directory", "data", "Reading every byte …");
  make("Examine the machine", "machine", "Trying driver, packages and kernels …");
  const what = "Holds everything on disk against what was written down when it was stored, and tries what the machine is needed for.";
  return h("section", { class: "card stack", "aria-label": "Doctor" }, h("h2", {}, "Doctor"), h("p", { class: "quiet" }, what), h("div", { class: "row" }, buttons), result);
}

function drawFindings(found, seconds) {
  const summary = h("p", { role: "status" }, h("span", { class: `badge ${found.ok ? "completed" : "failed"}` }, found.ok ? "all is well" : "something is wrong"), ` after ${span(seconds)}`);
  const facts = Object.entries(found.facts).flatMap(([name, lines]) => [h("dt", {}, name), h("dd", {}, lines.map((line) => h("span", {}, line)))]);
  const known = facts.length ? h("dl", { class: "names" }, facts) : null;
  if (!found.findings.length) return [summary, known];
  const rows = found.findings.map((one) => h("tr", {}, h("td", {}, one.check), h("td", {}, one.subject), h("td", {}, one.fault), h("td", {}, one.is_mended ? "mended" : one.remedy)));
  const head = ["Check", "What", "Found", "What to do"].map((text) => h("th", {}, text));
  return [summary, table(head, rows), known];
}

async function readKeys(place, rereadAccount) {
  drawKeys(place, (await call("GET", "loam/keys")).data, rereadAccount);
}

/** List the keys, and offer to make one; `made` is the one that has just been made, with its token. */
function drawKeys(place, data, rereadAccount, made = null) {
  const owner = h("input", { id: "owner", required: true, maxlength: 64, placeholder: "sales", pattern: "[A-Za-z0-9][A-Za-z0-9._\\-]*" });
  const admin = h("input", { type: "checkbox", checked: !hasKey() });
  const problems = h("div");
  const make = oneAtATime(async () => {
    try {
      const fresh = await call("POST", "loam/keys", { body: { owner: owner.value.trim(), is_admin: admin.checked } });
      const isFirst = !hasKey();
      if (isFirst) setKey(fresh.token); // without it, the next request would be refused, and the key lost before it was seen
      drawKeys(place, [...data, fresh], rereadAccount, { ...fresh, isFirst });
      if (isFirst) await rereadAccount();
    } catch (error) {
      put(problems, problem(error));
    }
  });
  const rows = data.map((key) => h(
    "tr", { "data-key": key.id }, h("td", {}, key.owner, key.is_admin && " ", key.is_admin ? h("span", { class: "badge" }, "administrator") : null), h("td", {}, h("code", {}, key.id)), h("td", {}, when(key.created_at)),
    h("td", {}, key.revoked_at ? `revoked ${when(key.revoked_at)}` : h("button", { class: "plain danger", onclick: () => revoke(key, place, rereadAccount), "aria-label": `Revoke ${key.id}` }, "Revoke"))));
  const head = ["Owner", "Key", "Made", "Actions"].map((text) => h("th", {}, text));
  const token = made && h("pre", { class: "token", tabindex: 0, role: "group", "aria-label": "The new key", onfocus: () => getSelection().selectAllChildren(token) }, made.token);
  const section = h("section", { class: "card stack", "aria-label": "Keys" },
    h("h2", {}, "Keys"),
    made ? h("div", { class: "empty", role: "status" }, h("p", {}, `The new key of ${made.owner}. It is shown this once and kept nowhere:`), token,
      made.isFirst ? h("p", {}, "From now on every request needs a key. This tab goes on with this one.") : null) : null,
    rows.length ? table(head, rows) : h("p", { class: "quiet" }, hasKey() ? "There is none yet." : "There is none yet. From the first one on, every request needs a key: make an administrator's first."),
    h("form", { class: "row", onsubmit: make }, h("label", { for: "owner" }, "New key for"), h("div", {}, owner), h("label", { class: "check" }, admin, " administrator"), h("button", { class: "primary" }, "Create the key")),
    problems);
  keepFocus(place, () => put(place, section));
  if (token) focusOn(token);
}

async function revoke(key, place, rereadAccount) {
  const question = `Revoke the key ${key.id} of ${key.owner}? Whoever uses it is refused from the next request on.`;
  if (await confirmThat(question, "Revoke", () => call("DELETE", `loam/keys/${key.id}`))) await readKeys(place, rereadAccount);
}
