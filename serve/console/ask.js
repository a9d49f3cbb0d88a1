// Ask: a question to one model or up to four side by side, and what each answer rests on.

import { call, listAll } from "./api.js";
import { drawAnswer } from "./answer.js";
import { h, icon, keepFocus, next, problem, put } from "./dom.js";
import { nameStore } from "./names.js";
import { openPassage } from "./passage.js";

export const title = "Ask";

const MOST_MODELS = 4;
const GROUPS = { assistant: "Assistants: answer from documents", alias: "Fine-tuned", adapter: "Fine-tuned, by full name", base: "Base models" };

export async function show(root, { query, noteQuery, isLeft }) {
  const [models, stores] = await Promise.all([listModels(), listAll("vector_stores", { limit: 100 })]);
  if (isLeft()) return null;
  const known = new Set(models.map((model) => model.id));
  const wanted = query.getAll("model").filter((name) => known.has(name)).slice(0, MOST_MODELS);
  const searched = stores.map((store) => store.id).filter((id) => query.getAll("store").includes(id));
  const chosen = wanted.length ? wanted : [choose(models, searched.length > 0)];
  const names = new Map(stores.map((store) => [store.id, nameStore(store)]));
  const chat = { models, chosen, turns: [], running: new Set(), stores, searched, names };

  const field = h("textarea", {
    id: "question", rows: 2, "data-main-field": true, required: true,
    placeholder: "Ask a question …", value: query.get("q") ?? "",
  });
  const pickers = h("div", { class: "pickers" });
  const places = h("div");
  const thread = h("div", { class: "thread", "aria-live": "polite" });
  const hint = h("div");

  const note = () => {
    const next = new URLSearchParams();
    for (const name of chat.chosen) next.append("model", name);
    for (const id of chat.searched) next.append("store", id);
    const question = field.value.trim() || chat.turns.at(-1)?.question;
    if (question) next.set("q", question);
    noteQuery(next);
  };
  const openSource = (chunkId) => {
    const next = new URLSearchParams(location.hash.split("?", 2)[1] ?? "");
    next.set("passage", chunkId);
    noteQuery(next);
    openPassage(chunkId, note);
  };
  const submit = (event) => {
    event?.preventDefault();
    const question = field.value.trim();
    if (!question || chat.running.size) return;
    note();
    put(hint);
    thread.prepend(startTurn(chat, question, openSource));
    anew.hidden = false;
    field.value = "";
  };
  const draw = () => {
    keepFocus(pickers, () => put(pickers, drawPickers(chat, () => { draw(); note(); })));
    keepFocus(places, () => put(places, drawStores(chat, () => { draw(); note(); })));
    if (!chat.turns.length) put(hint, drawHint(chat));
    anew.hidden = !chat.turns.length;
  };
  field.addEventListener("keydown", (event) => event.key === "Enter" && !event.shiftKey && !event.isComposing && submit(event));
  const restart = () => {
    for (const stop of chat.running) stop();
    chat.turns = [];
    put(thread);
    draw();
    field.value = "";
    note();
    field.focus();
  };
  const anew = h("button", { type: "button", onclick: restart }, "New conversation");
  const form = h(
    "form", { class: "card ask", onsubmit: submit },
    h("label", { for: "question", class: "hidden" }, "Question"), field, places,
    h("div", { class: "row between" }, pickers, h("div", { class: "row" }, anew, h("button", { class: "primary" }, "Ask"))),
    h("p", { class: "quiet small wide-only" }, "Enter asks · Shift+Enter: a new line · / comes back here"),
  );
  const gone = [...query.getAll("model").filter((name) => !known.has(name)), ...query.getAll("store").filter((id) => !names.has(id))];
  const missing = gone.length ? problem(new Error(`${gone.map((name) => `«${name}»`).join(", ")}: not here (any more). What is chosen below is asked instead.`)) : null;
  put(root, h("h1", { class: "hidden" }, title), missing, form, hint, thread);
  draw();
  field.focus();
  if (query.get("passage")) openPassage(query.get("passage"), note);
  return () => { for (const stop of chat.running) stop(); };
}

async function listModels() {
  const { data } = await call("GET", "models");
  return data.filter((model) => model.kind in GROUPS);
}

/** Return the model to begin with: an assistant, else a fine-tuned one; over chosen stores not an assistant, which has its own. */
function choose(models, isSearching) {
  const order = isSearching ? ["alias", "adapter", "base", "assistant"] : Object.keys(GROUPS);
  return [...models].sort((a, b) => order.indexOf(a.kind) - order.indexOf(b.kind))[0].id;
}

function drawPickers(chat, changed) {
  const pickers = chat.chosen.map((name, place) => {
    const id = `model-${place}`;
    const select = h("select", { id, onchange: () => { chat.chosen[place] = select.value; changed(); } }, drawOptions(chat.models));
    select.value = name;
    const remove = () => { chat.chosen.splice(place, 1); changed(); };
    const label = chat.chosen.length > 1 ? `Model ${place + 1}` : "Model";
    const button = chat.chosen.length > 1
      ? h("button", { type: "button", class: "plain", onclick: remove, title: `Leave out ${name}` }, icon("close"), h("span", { class: "hidden" }, `Leave out ${name}`))
      : null;
    return h("div", { class: "picker", "data-key": place }, h("label", { for: id }, label), select, button);
  });
  const others = chat.models.filter((model) => !chat.chosen.includes(model.id));
  const add = () => { chat.chosen.push(others[0].id); changed(); };
  const canAdd = others.length && chat.chosen.length < MOST_MODELS;
  return [pickers, canAdd ? h("button", { type: "button", class: "plain", onclick: add }, icon("plus"), " Compare with another") : null];
}

function drawOptions(models) {
  return Object.entries(GROUPS).map(([kind, label]) => {
    const some = models.filter((model) => model.kind === kind);
    return some.length ? h("optgroup", { label }, some.map((model) => h("option", { value: model.id }, model.id))) : null;
  });
}

/** Let the person choose the stores that a model answers from; an assistant has its own. */
function drawStores(chat, changed) {
  const isForOthers = chat.chosen.some((name) => find(chat, name).kind !== "assistant");
  if (!chat.stores.length || !isForOthers) return null;
  const boxes = chat.stores.map((store) => {
    const toggle = () => {
      chat.searched = box.checked ? [...chat.searched, store.id] : chat.searched.filter((id) => id !== store.id);
      changed();
    };
    const box = h("input", { type: "checkbox", checked: chat.searched.includes(store.id), onchange: toggle });
    return h("label", { class: "check" }, box, nameStore(store));
  });
  return h("fieldset", { class: "stores" }, h("legend", {}, "Answer from documents"), boxes);
}

function find(chat, name) {
  return chat.models.find((model) => model.id === name);
}

/** Say what the chosen models can do, and what would make them do more. */
function drawHint(chat) {
  const kinds = chat.chosen.map((name) => find(chat, name).kind);
  if (kinds.includes("assistant") || chat.searched.length) {
    return h("p", { class: "quiet" }, "The answer comes from documents, and each sentence that they prove gets a mark; a mark opens the passage.");
  }
  if (chat.stores.length) {
    return h("p", { class: "quiet" }, "A model by itself answers from what it has learned. Tick a store, and it answers from your documents, cited.");
  }
  const isTuned = chat.models.some((model) => model.kind === "adapter");
  return h(
    "div", { class: "empty" }, h("h2", {}, "From nothing to cited answers"),
    h("p", {}, "Here you ask. These models know nothing of your documents yet, and answer from what they have learned elsewhere."),
    h("ol", { class: "steps" },
      h("li", {}, h("a", { href: "#/finetune" }, isTuned ? "Teach another model" : "Teach a model"), " how to answer, from examples. It takes minutes or hours; leave it out if you like."),
      h("li", {}, h("a", { href: "#/documents" }, "Bring documents in"), ". A minute later they can be searched."),
      h("li", {}, "Come back and tick their store here, or make an assistant of both: each sentence that the documents prove gets a mark, and a mark opens the passage.")),
    next(h("a", { href: isTuned ? "#/documents" : "#/finetune" }, isTuned ? "bring documents in" : "teach a model"), isTuned ? "." : [", or go straight on and ", h("a", { href: "#/documents" }, "bring documents in"), "."]));
}

function startTurn(chat, question, openSource) {
  const turn = { question, answers: {} };
  const columns = chat.chosen.map((model) => {
    const messages = chat.turns.flatMap((earlier) => earlier.answers[model]
      ? [{ role: "user", content: earlier.question }, { role: "assistant", content: earlier.answers[model] }]
      : []);
    messages.push({ role: "user", content: question });
    const answer = drawAnswer({ model, kind: find(chat, model).kind, question, messages, stores: chat.searched, names: chat.names, openSource });
    chat.running.add(answer.stop);
    answer.finished.then((text) => {
      chat.running.delete(answer.stop);
      if (text !== null) turn.answers[model] = text;
    });
    return answer.element;
  });
  chat.turns.push(turn);
  return h("section", { class: "turn" }, h("h2", { class: "question" }, question), h("div", { class: `columns columns-${columns.length}` }, columns));
}
