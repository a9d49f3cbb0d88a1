// The search box of a store: the passages that a query finds, with the rank that each stage gave them.

import { call } from "./api.js";
import { drawPlace, drawStage } from "./answer.js";
import { h, icon, problem, put, table } from "./dom.js";
import { openPassage } from "./passage.js";

const STAGES = ["lexical", "dense", "fused", "reranked"];
const OPERATORS = { eq: "is", ne: "is not", gt: ">", gte: "≥", lt: "<", lte: "≤" };
const EXCERPT = 280;
const STATED = ["path", "folder", "extension", "size", "modified"];

export function drawSearch(store, { query, noteQuery }) {
  const field = h("input", { type: "search", id: "search", value: query.get("q") ?? "", placeholder: "Search these documents …", "data-main-field": true });
  const filters = query.getAll("where").map((text) => {
    const [name, operator = "eq", ...value] = text.split("|");
    return [name, operator, value.join("|")];
  });
  const places = h("div", { class: "stack" });
  const results = h("div");
  const drawFilters = () => put(places, filters.map((filter, at) => drawFilter(filter, () => { filters.splice(at, 1); drawFilters(); (places.querySelectorAll("button")[at] ?? field).focus(); })));
  const search = async (event) => {
    event?.preventDefault();
    const text = field.value.trim();
    const next = new URLSearchParams(text ? { q: text } : {});
    for (const filter of filters) next.append("where", filter.join("|"));
    noteQuery(next);
    if (!text) {
      put(results);
      return;
    }
    put(results, h("p", { class: "quiet", role: "status" }, "Searching …"));
    try {
      const body = { vector_store_ids: [store.id], query: text, max_num_results: 10, filters: readFilters(filters) };
      put(results, drawResults(await call("POST", "loam/search", { body })));
    } catch (error) {
      put(results, problem(error));
    }
  };
  const addFilter = () => { filters.push(["extension", "eq", ""]); drawFilters(); };
  drawFilters();
  if (query.get("q")) search();
  return h(
    "section", { class: "card stack", "aria-label": "Search" },
    h("form", { class: "stack", onsubmit: search },
      h("div", { class: "search-row" }, h("label", { for: "search", class: "hidden" }, "Search these documents"), field, h("button", { class: "primary" }, "Search"),
        h("button", { type: "button", class: "plain", onclick: addFilter }, icon("plus"), " Filter")),
      places),
    results,
  );
}

function drawFilter(filter, remove) {
  const names = h("datalist", { id: "attribute-names" }, STATED.map((name) => h("option", { value: name })));
  const name = h("input", { value: filter[0], list: "attribute-names", "aria-label": "Attribute", onchange: () => { filter[0] = name.value.trim(); } });
  const operator = h("select", { "aria-label": "Comparison", onchange: () => { filter[1] = operator.value; } }, Object.entries(OPERATORS).map(([value, text]) => h("option", { value }, text)));
  operator.value = filter[1];
  const value = h("input", { value: filter[2], "aria-label": "Value", placeholder: "value", onchange: () => { filter[2] = value.value; } });
  const button = h("button", { type: "button", class: "plain", onclick: remove }, icon("close"), h("span", { class: "hidden" }, "Remove this filter"));
  return h("div", { class: "filter" }, names, name, operator, value, button);
}

function readFilters(filters) {
  const read = filters.filter(([name, , value]) => name && value !== "").map(([key, type, value]) => ({ type, key, value: readValue(value) }));
  if (!read.length) return null;
  return read.length === 1 ? read[0] : { type: "and", filters: read };
}

function drawResults(found) {
  const { chunks, candidates } = found.searched[0];
  const summary = `${candidates} of ${chunks} passages were candidates · ${found.timings_ms.total.toFixed(0)} ms`;
  if (!found.data.length) return h("p", { class: "quiet" }, `Nothing found. ${summary}.`);
  const stages = STAGES.filter((stage) => found.data.some((hit) => hit.stages[stage]));
  const rows = found.data.map((hit) => h(
    "tr", {},
    h("td", {}, hit.n),
    h("td", {}, h("button", { class: "link", onclick: () => openPassage(hit.chunk_id) }, hit.filename), drawPlace(hit), h("p", { class: "excerpt" }, shorten(hit.text))),
    stages.map((stage) => h("td", { class: "number", "data-label": stage }, drawStage(hit.stages[stage]))),
  ));
  const head = [h("th", {}, "n"), h("th", {}, "Passage"), stages.map((stage) => h("th", { class: "number", title: "Rank, and below it the score" }, stage))];
  return [h("p", { class: "quiet small", role: "status" }, summary), table(head, rows, "hits")];
}

/** Return the beginning of a text, cut between two words. */
function shorten(text) {
  return text.length > EXCERPT ? `${text.slice(0, EXCERPT).replace(/\s+\S*$/, "")} …` : text;
}

/** Read a value as JSON has it, else as plain text. */
export function readValue(text) {
  try {
    const value = JSON.parse(text);
    return ["string", "number", "boolean"].includes(typeof value) ? value : text;
  } catch {
    return text;
  }
}
