// Verdict and evaluation: reports in the page, two of them compared, and what people said of answers.

import { ApiError, call, fetchBlob, fetchText, listAll } from "./api.js";
import { format } from "./chart.js";
import { empty, h, icon, keepFocus, problem, put, save, table, when } from "./dom.js";
import { nameStore } from "./names.js";
import { drawPage } from "./page.js";

export const title = "Verdict and evaluation";
export const label = "Verdict";

export async function show(root, context) {
  const { data: reports } = await call("GET", "loam/reports");
  if (context.isLeft()) return null;
  const [name] = context.parts;
  const isThere = (one) => reports.some((report) => report.name === one);
  const missing = [name, context.query.get("with")].find((one) => one && !isThere(one));
  if (missing) throw new ApiError(`There is no report «${missing}» here (any more).`, 404, "not_found", null);
  const chosen = reports.find((report) => report.name === name);
  const other = reports.find((report) => report.name === context.query.get("with"));
  if (chosen && other) return showComparison(root, chosen, other);
  if (chosen) return showReport(root, chosen, reports);
  const first = empty("No reports yet",
    h("p", {}, "A report tells what answers are worth, on your own questions. Two commands write one:"),
    h("pre", {}, "python scripts/evaluate.py questions=Q.jsonl model=NAME\npython scripts/verdict.py questions=Q.jsonl store=STORE run=RUN"));
  const said = h("div");
  put(root, h("h1", {}, title), reports.length ? drawReports(reports) : first, said);
  await drawFeedback(said);
  return null;
}

function drawReports(reports) {
  const rows = reports.map((report) => h(
    "tr", {}, h("td", {}, h("a", { href: `#/reports/${encodeURIComponent(report.name)}` }, report.name)), h("td", {}, when(report.created_at)),
    h("td", { class: "wide-only" }, Object.keys(report.files).join(", "))));
  const head = ["Report", "Written", "Files"].map((text, at) => h("th", { class: at === 2 ? "wide-only" : "" }, text));
  return h("section", { class: "card", "aria-label": "Reports" }, table(head, rows));
}

function locate(report, file) {
  return `loam/reports/${encodeURIComponent(report.name)}/${encodeURIComponent(file)}`;
}

async function showReport(root, report, reports) {
  const others = reports.filter((one) => one.name !== report.name);
  const other = h("select", { "aria-label": "Compare with" }, others.map((one) => h("option", {}, one.name)));
  const go = (event) => {
    event.preventDefault();
    location.hash = `#/reports/${encodeURIComponent(report.name)}?with=${encodeURIComponent(other.value)}`;
  };
  const compare = h("form", { class: "row", onsubmit: go }, other, h("button", {}, "Compare")); // by keyboard a list changes with each step through it
  const files = Object.keys(report.files).map((file) => h("button", { class: "plain", onclick: async () => save(file, await fetchBlob(locate(report, file))) }, file));
  const body = h("div", { class: "report card" });
  put(root,
    h("div", { class: "row between" }, h("h1", {}, h("a", { href: "#/reports" }, title), " / ", report.name), others.length ? compare : null),
    h("p", { class: "quiet" }, `Written ${when(report.created_at)}. Files: `, files), body);
  if ("report.html" in report.files) put(body, drawPage(await fetchText(locate(report, "report.html"))));
  else put(body, h("pre", {}, JSON.stringify(JSON.parse(await fetchText(locate(report, "report.json"))), null, 2)));
}

/** Return every number of a report by its path, lists by the names of their rows. */
function readNumbers(value, path = "", found = new Map()) {
  if (typeof value === "number") found.set(path, value);
  else if (Array.isArray(value)) value.forEach((one, at) => readNumbers(one, `${path} / ${nameRow(one) ?? at}`, found));
  else if (value !== null && typeof value === "object") {
    for (const [name, one] of Object.entries(value)) readNumbers(one, path ? `${path} / ${name}` : name, found);
  }
  return found;
}

function nameRow(row) {
  if (row === null || typeof row !== "object") return null;
  const names = ["arm", "kind", "metric", "name"].map((key) => row[key]).filter((value) => typeof value === "string");
  return names.length ? names.join(" ") : null;
}

async function showComparison(root, one, other) {
  const [left, right] = await Promise.all([one, other].map(async (report) => readNumbers(JSON.parse(await fetchText(locate(report, "report.json"))))));
  const paths = [...left.keys()].filter((path) => right.has(path));
  const rows = paths.map((path) => {
    const difference = right.get(path) - left.get(path);
    return h("tr", {}, h("td", {}, path), h("td", { class: "number" }, format(left.get(path))), h("td", { class: "number" }, format(right.get(path))),
      h("td", { class: "number" }, difference ? `${difference > 0 ? "+" : "−"}${format(Math.abs(difference))}` : "="));
  });
  const head = ["Figure", one.name, other.name, "Difference"].map((text, at) => h("th", { class: at ? "number" : "" }, text));
  put(root,
    h("h1", {}, h("a", { href: "#/reports" }, title), " / ", one.name, " and ", other.name),
    paths.length ? h("div", { class: "card" }, table(head, rows)) : empty("Nothing to compare", h("p", {}, "The two have no figure in common.")));
}

async function drawFeedback(place) {
  const [feedback, stores] = await Promise.all([listAll("loam/feedback"), listAll("vector_stores")]);
  if (!feedback.length) {
    keepFocus(place, () => put(place, empty("Nothing said of answers yet", h("p", {}, "Under each answer of Ask stand «Good» and «Bad». What is said there becomes labelled questions for evaluation and for tuning the search."))));
    return;
  }
  const store = h("select", { "aria-label": "Store" }, h("option", { value: "" }, "of all stores"), stores.map((one) => h("option", { value: one.id }, nameStore(one))));
  const use = h("select", { "aria-label": "Use" }, h("option", { value: "evaluation" }, "for evaluation"), h("option", { value: "tuning" }, "for tuning the search"));
  const problems = h("div");
  const get = async () => {
    try {
      save("questions.jsonl", await fetchText("loam/feedback/questions", { vector_store_id: store.value, use: use.value }), "application/x-ndjson");
    } catch (error) {
      put(problems, problem(error));
    }
  };
  const remove = async (one) => {
    await call("DELETE", `loam/feedback/${one.id}`);
    await drawFeedback(place);
  };
  const rows = feedback.map((one) => h(
    "tr", { "data-key": one.id }, h("td", {}, icon(one.rating), h("span", { class: "hidden" }, one.rating)),
    h("td", { class: "long" }, h("a", { href: `#/ask?${new URLSearchParams({ model: one.model, q: one.question })}` }, one.question), one.comment ? h("p", { class: "quiet small" }, one.comment) : null),
    h("td", { class: "wide-only" }, one.model), h("td", { class: "wide-only" }, [...new Set(one.passages.map((passage) => passage.file))].join(", ")), h("td", { class: "wide-only" }, when(one.created_at)),
    h("td", {}, h("button", { class: "plain danger", onclick: () => remove(one), "aria-label": `Delete what was said of ${one.question}` }, "Delete"))));
  const head = ["Rating", "Question", "Model", "Answered by", "Said", "Actions"].map((text, at) => h("th", { class: at > 1 && at < 5 ? "wide-only" : "" }, text));
  const section = h("section", { class: "card stack", "aria-label": "Feedback" },
    h("div", { class: "row between" }, h("h2", {}, "What people said of answers"), h("div", { class: "row" }, use, store, h("button", { onclick: get }, "Export as labelled questions"))),
    problems, h("p", { class: "quiet small" }, "Then: ", h("code", {}, "python scripts/evaluate.py questions=questions.jsonl model=NAME"), " or ", h("code", {}, "python retrieval/run.py action=tune store=STORE questions=questions.jsonl")),
    table(head, rows));
  keepFocus(place, () => put(place, section));
}
