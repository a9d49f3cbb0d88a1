// One answer as it is written: its text with marks, what was searched for it, and what people say of it.

import { ApiError, call, stream } from "./api.js";
import { count, h, icon, keepFocus, next, oneAtATime, problem, put, table } from "./dom.js";

const PASSAGES = 5;

/**
 * Ask one model, and show its answer as it comes.
 * @param {{model: string, kind: string, question: string, messages: object[], stores: string[], names: Map<string, string>, openSource: (chunkId: string) => void}} wanted
 * @returns {{element: Element, stop: () => void, finished: Promise<string|null>}} the text, null where it failed
 */
export function drawAnswer(wanted) {
  const controller = new AbortController();
  const text = h("div", { class: "text", "aria-busy": "true" });
  const state = h("span", { class: "quiet", role: "status" }, isSearching(wanted) ? "searching …" : "waiting …");
  const stop = h("button", { class: "plain", onclick: () => controller.abort() }, "Stop");
  const below = h("div");
  const element = h(
    "article", { class: "card answer", "data-model": wanted.model },
    h("header", {}, h("h3", {}, wanted.model), state, stop), text, below,
  );
  const finished = run(wanted, controller.signal, text, state, below).finally(() => {
    keepFocus(element, () => stop.remove());
    text.removeAttribute("aria-busy");
  });
  return { element, stop: () => controller.abort(), finished };
}

/** Tell whether an answer is written from documents: an assistant's own, or those that were chosen. */
function isSearching({ kind, stores }) {
  return kind === "assistant" || stores.length > 0;
}

async function run(wanted, signal, text, state, below) {
  const found = { text: "", marks: [], retrieval: null, tokens: null };
  const started = performance.now();
  let first = null;
  const add = (words) => {
    first ??= performance.now() - started;
    found.text += words;
    text.append(words);
    state.textContent = "writing …";
  };
  try {
    await (wanted.kind !== "assistant" && wanted.stores.length ? askResponses : askChat)(wanted, signal, found, add);
  } catch (error) {
    state.textContent = signal.aborted ? "stopped" : "failed";
    if (!signal.aborted) put(below, problem(error instanceof ApiError ? error : new ApiError(String(error))), next("ask once more; where it comes again, Operations and its doctor say what is wrong."));
    return null;
  }
  state.textContent = describeTimes(first, performance.now() - started, found.tokens);
  put(text, drawMarked(found, wanted.openSource));
  put(below, drawNext(found), drawGrounds(found, wanted), drawFeedback(wanted, found));
  return found.text;
}

/** Ask as a chat; an assistant tells its marks and what it searched in fields of our own. */
async function askChat({ model, messages }, signal, found, add) {
  const body = { model, messages, stream_options: { include_usage: true } };
  for await (const chunk of stream("chat/completions", body, signal)) {
    const delta = chunk.choices[0]?.delta ?? {};
    for (const { url_citation: cited } of delta.annotations ?? []) {
      found.marks.push({ start: cited.start_index, end: cited.end_index, title: cited.title, chunkId: readChunkId(cited.url) });
    }
    found.retrieval = chunk.retrieval ?? found.retrieval;
    found.tokens = chunk.usage?.completion_tokens ?? found.tokens;
    if (delta.content) add(delta.content);
  }
}

/** Ask any model over chosen stores: OpenAI's file_search, and beside it our search, which tells place and ranks. */
async function askResponses({ model, messages, question, stores }, signal, found, add) {
  const tool = { type: "file_search", vector_store_ids: stores, max_num_results: PASSAGES };
  const search = call("POST", "loam/search", { body: { vector_store_ids: stores, query: question, max_num_results: PASSAGES }, signal });
  search.catch(() => null); // told below, where it is waited for
  const citations = [];
  for await (const event of stream("responses", { model, input: messages, tools: [tool], store: false }, signal)) {
    if (event.type === "response.output_text.delta") add(event.delta);
    if (event.type === "response.output_text.annotation.added") citations.push(event.annotation);
    if (event.type === "response.failed") throw new ApiError(event.response.error.message, 0, event.response.error.code, null);
    found.tokens = event.response?.usage?.output_tokens ?? found.tokens;
  }
  const { data } = await search;
  found.retrieval = { query: question, stores, hits: data.map((hit) => ({ ...hit, file: hit.filename })) };
  found.marks = citations.map((cited) => readMark(found, cited)).filter(Boolean);
}

/** Find the passage behind a citation, which names a file and where its mark begins. */
function readMark(found, cited) {
  const letters = Array.from(found.text);
  const end = letters.indexOf("]", cited.index) + 1;
  const number = Number(letters.slice(cited.index, end).join("").match(/\d+/)?.[0]);
  const ofFile = found.retrieval.hits.filter((hit) => hit.file_id === cited.file_id);
  const hit = ofFile.find((one) => one.n === number) ?? ofFile[0];
  return hit && end ? { start: cited.index, end, title: cited.filename, chunkId: hit.chunk_id } : null;
}

function describeTimes(first, total, tokens) {
  const parts = [];
  if (first !== null) parts.push(`first word after ${(first / 1000).toFixed(1)} s`);
  parts.push(`${(total / 1000).toFixed(1)} s in all`);
  if (tokens) parts.push(count(tokens, "token"));
  return parts.join(" · ");
}

/** Return the text with each mark as a button; its place counts characters as Unicode has them. */
function drawMarked(found, openSource) {
  const letters = Array.from(found.text);
  const parts = [];
  let at = 0;
  for (const { start, end, title, chunkId } of found.marks) {
    parts.push(letters.slice(at, start).join(""));
    const mark = letters.slice(start, end).join("");
    parts.push(h("button", { class: "mark", title, "aria-label": `Source ${mark} ${title}`, onclick: () => openSource(chunkId) }, mark));
    at = end;
  }
  parts.push(letters.slice(at).join(""));
  return parts;
}

function readChunkId(url) {
  return decodeURIComponent(url.split("/").pop());
}

/** Say what can be done with an answer from documents. */
function drawNext({ retrieval, marks }) {
  if (!retrieval?.hits.length) return null;
  if (!marks.length) return next("open a passage below and see what it says: no sentence of this answer is proven by one of them.");
  return next("press a mark, and read the passage that proves the sentence before it.");
}

/** Show what was searched and what each stage said of the passages that the model was given. */
function drawGrounds({ retrieval, marks }, { names, openSource }) {
  if (!retrieval) return null;
  const cited = new Set(marks.map((mark) => mark.chunkId));
  const stages = ["lexical", "dense", "fused", "reranked"].filter((stage) => retrieval.hits.some((hit) => hit.stages?.[stage]));
  const searched = `Searched ${retrieval.stores.map((store) => names.get(store) ?? store).join(", ")} for «${retrieval.query}»`;
  if (!retrieval.hits.length) return h("p", { class: "quiet" }, `${searched}: nothing was near enough to be used.`);
  const rows = retrieval.hits.map((hit) => h(
    "tr", { class: cited.has(hit.chunk_id) ? "cited" : "" },
    h("td", {}, `[${hit.n}]`),
    h("td", {}, h("button", { class: "link", onclick: () => openSource(hit.chunk_id) }, hit.file), drawPlace(hit)),
    stages.map((stage) => h("td", { class: "number", "data-label": stage }, drawStage(hit.stages?.[stage]))),
  ));
  const head = [h("th", {}, "n"), h("th", {}, "Passage"), stages.map((stage) => h("th", { class: "number", title: "Rank, and below it the score" }, stage))];
  return h(
    "details", { class: "grounds", open: true },
    h("summary", {}, `${cited.size} of ${retrieval.hits.length} passages cited`),
    h("p", { class: "quiet" }, searched),
    table(head, rows, "hits"),
  );
}

/** Name heading and page of a passage. */
export function drawPlace(hit) {
  const place = [hit.heading, hit.page === null ? null : `page ${hit.page}`].filter(Boolean).join(" · ");
  return place ? h("div", { class: "quiet small" }, place) : null;
}

/** Show a stage's rank, and its score below. */
export function drawStage(stage) {
  if (!stage || stage.rank === null) return h("span", { class: "quiet", title: "Not found by this stage" }, "–");
  return [`${stage.rank}.`, h("div", { class: "quiet small" }, stage.score.toFixed(3))];
}

function drawFeedback(wanted, found) {
  const place = h("div", { class: "feedback" });
  const show = (...what) => keepFocus(place, () => put(place, what));
  const ask = () => show(
    h("button", { class: "plain", onclick: () => open("up") }, icon("up"), " Good"),
    h("button", { class: "plain", onclick: () => open("down") }, icon("down"), " Bad"),
  );
  const open = (rating) => show(drawForm(rating, wanted, found, ask, (kept) => show(drawThanks(kept, ask))));
  ask();
  return place;
}

function drawThanks(kept, again) {
  const takeBack = async () => {
    await call("DELETE", `loam/feedback/${kept.id}`);
    again();
  };
  return h("p", { class: "quiet", role: "status" },
    "Kept as a labelled question; Verdict and evaluation exports them. ",
    h("button", { class: "link", onclick: takeBack }, "Take it back"));
}

function drawForm(rating, wanted, found, cancel, done) {
  const cited = new Set(found.marks.map((mark) => mark.chunkId));
  const comment = h("textarea", { rows: 2, placeholder: rating === "up" ? "What was good? (optional)" : "What is wrong? (optional)", "aria-label": "Comment" });
  const expected = h("input", { placeholder: "What it should have said: a few words (optional)", "aria-label": "What it should have said" });
  const boxes = (found.retrieval?.hits ?? []).map((hit) => {
    const box = h("input", { type: "checkbox", value: hit.chunk_id, checked: rating === "up" && cited.has(hit.chunk_id) });
    return h("label", { class: "check" }, box, ` [${hit.n}] ${hit.file}${hit.heading ? ` · ${hit.heading}` : ""}`);
  });
  const place = h("fieldset", { class: "passages" }, h("legend", {}, "Which passages answer the question?"), boxes);
  const problems = h("div");
  const keep = oneAtATime(async () => {
    const chunkIds = [...place.querySelectorAll("input:checked")].map((box) => box.value);
    const body = {
      rating, model: wanted.model, question: wanted.question, answer: found.text,
      comment: comment.value.trim() || null, expected: expected.value.trim() || null, chunk_ids: chunkIds,
    };
    try {
      done(await call("POST", "loam/feedback", { body }));
    } catch (error) {
      put(problems, problem(error));
    }
  });
  return h(
    "form", { onsubmit: keep },
    h("p", {}, rating === "up" ? "A good answer." : "A bad answer."),
    comment, rating === "down" ? expected : null, boxes.length ? place : null, problems,
    h("div", { class: "row" }, h("button", { class: "primary" }, "Keep"), h("button", { type: "button", onclick: cancel }, "Cancel")),
  );
}
