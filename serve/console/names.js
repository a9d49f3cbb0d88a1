// Names for models: an alias, or an assistant over stores. Given, moved and taken away here; what a finished job calls «Use it».

import { call, listAll } from "./api.js";
import { confirmThat } from "./dialog.js";
import { h, keepFocus, next, oneAtATime, problem, put, table } from "./dom.js";

const PATTERN = "[A-Za-z0-9][A-Za-z0-9._\\-]*";
const WHAT = "Letters, digits, dots, dashes and underscores";
const INSTRUCTIONS = "Answer from the documents. If they do not hold the answer, say so.";

/** Return what a store is called: its name, or its id where that cannot be seen. */
export function nameStore(store) {
  return store.name?.trim() ? store.name : store.id;
}

/** Return where a model is asked, as a link's address. */
export function linkAsk(...models) {
  return `#/ask?${new URLSearchParams(models.map((model) => ["model", model]))}`;
}

/**
 * Offer two ways to go on with a fine-tuned model: a lasting name, and an assistant that answers from documents.
 * @param {{model: string, checkpoints: string[], suffix: string}} tuned its own name, those of its checkpoints, and what to propose as a name
 */
export async function drawUse(tuned) {
  const [models, stores] = await Promise.all([listChatting(), listAll("vector_stores")]);
  const assistant = stores.length
    ? drawAssistantForm({ models, stores, model: tuned.model, searched: stores.length === 1 ? [stores[0].id] : [] })
    : [h("p", {}, "An assistant is a model with documents: what it says is cited. There are no documents yet."), next(h("a", { href: "#/documents" }, "bring documents in"), "; then come back here, or make the assistant there.")];
  return h("div", { class: "columns columns-2" },
    h("div", { class: "stack" }, h("h3", {}, "Give it a name"), drawAliasForm(tuned)),
    h("div", { class: "stack" }, h("h3", {}, "Let it answer from documents"), assistant));
}

function drawAliasForm({ model, checkpoints, suffix }) {
  const weights = h("select", { id: "alias-model" }, [model, ...checkpoints].map((one) => h("option", {}, one)));
  const name = h("input", { id: "alias-name", value: suffix, required: true, maxlength: 64, pattern: PATTERN, title: WHAT, placeholder: "helpdesk" });
  const result = h("div", { role: "status" });
  const give = oneAtATime(async () => {
    try {
      const given = await call("POST", "loam/aliases", { body: { name: name.value.trim(), model: weights.value } });
      put(result, next(h("a", { href: linkAsk(given.name) }, `ask ${given.name}`), ", or set ", h("code", {}, `model="${given.name}"`), " in a program."));
    } catch (error) {
      put(result, problem(error));
    }
  });
  return h(
    "form", { class: "stack", onsubmit: give, "aria-label": "Give it a name" },
    h("p", { class: "quiet" }, "Programs and people ask under it. Given to a newer model later, it moves in one step."),
    h("div", { class: "field" }, h("label", { for: "alias-name" }, "Name"), name),
    checkpoints.length ? h("div", { class: "field" }, h("label", { for: "alias-model" }, "Which weights"), weights) : null,
    h("div", { class: "row" }, h("button", { class: "primary" }, "Give the name")), result,
  );
}

/**
 * A form that makes an assistant.
 * @param {{models: object[], stores: object[], model?: string, searched: string[]}} given what there is, and what is chosen to begin with
 */
export function drawAssistantForm({ models, stores, model, searched }) {
  const name = h("input", { id: "assistant-name", required: true, maxlength: 64, pattern: PATTERN, title: WHAT, placeholder: "support" });
  const select = h("select", { id: "assistant-model" }, models.map((one) => h("option", {}, one.id)));
  if (model) select.value = model;
  const boxes = stores.map((store) => h("label", { class: "check" }, h("input", { type: "checkbox", value: store.id, checked: searched.includes(store.id) }), nameStore(store)));
  const chosen = h("fieldset", { class: "stores" }, h("legend", {}, "Answers from"), boxes);
  const instructions = h("textarea", { id: "assistant-instructions", rows: 2, maxlength: 32768, placeholder: INSTRUCTIONS });
  const result = h("div", { role: "status" });
  const make = oneAtATime(async () => {
    const ids = [...chosen.querySelectorAll("input:checked")].map((box) => box.value);
    if (!ids.length) {
      put(result, problem(new Error("Tick at least one store that it answers from.")));
      return;
    }
    const body = { name: name.value.trim(), model: select.value, vector_store_ids: ids };
    if (instructions.value.trim()) body.instructions = instructions.value.trim();
    try {
      const made = await call("POST", "loam/assistants", { body });
      put(result, next(h("a", { href: linkAsk(made.name) }, `ask ${made.name}`), ": what it says is cited."));
    } catch (error) {
      put(result, problem(error));
    }
  });
  return h(
    "form", { class: "stack", onsubmit: make, "aria-label": "Make an assistant" },
    h("div", { class: "field" }, h("label", { for: "assistant-name" }, "Name of the assistant"), name),
    h("div", { class: "field" }, h("label", { for: "assistant-model" }, "Model that answers"), select),
    chosen,
    h("details", {}, h("summary", {}, "Instructions"), h("label", { for: "assistant-instructions" }, "What it is told before each question"), instructions),
    h("div", { class: "row" }, h("button", { class: "primary" }, "Make the assistant")), result,
  );
}

/** Return the models that an assistant can answer with: the newest fine-tuned ones first. */
export async function listChatting() {
  const { data } = await call("GET", "models");
  const tuned = data.filter((model) => model.kind === "adapter").reverse();
  return [...tuned, ...data.filter((model) => model.kind === "alias"), ...data.filter((model) => model.kind === "base")];
}

/** List the names that this owner has given; nothing where there are none. */
export async function drawNames(place) {
  const [aliases, assistants, stores] = await Promise.all([call("GET", "loam/aliases"), call("GET", "loam/assistants"), listAll("vector_stores")]);
  const known = new Map(stores.map((store) => [store.id, nameStore(store)]));
  const rows = [...assistants.data, ...aliases.data].map((one) => {
    const path = one.object === "loam.alias" ? "aliases" : "assistants";
    const over = (one.vector_store_ids ?? []).map((id) => known.get(id) ?? `${id}, which is gone`).join(", ");
    const remove = async () => {
      const question = `Take the name «${one.name}» away? Whoever asks for it is told that there is none. The model${over ? " and its documents stay" : " stays"}.`;
      if (await confirmThat(question, "Take it away", () => call("DELETE", `loam/${path}/${encodeURIComponent(one.name)}`))) await drawNames(place);
    };
    return h(
      "tr", { "data-key": `${path}/${one.name}` },
      h("td", { class: "long" }, one.is_served ? h("a", { href: linkAsk(one.name) }, one.name) : one.name),
      h("td", {}, one.object === "loam.alias" ? "alias" : "assistant", one.is_served ? null : h("span", { class: "badge failed", title: "Its model is not served now" }, "not served")),
      h("td", { class: "long wide-only" }, one.model), h("td", {}, over),
      h("td", {}, h("button", { class: "plain danger", onclick: remove, "aria-label": `Take the name ${one.name} away` }, "Delete")));
  });
  const head = ["Name", "What", "Model", "Answers from", "Actions"].map((text, at) => h("th", { class: at === 2 ? "wide-only" : "" }, text));
  const list = rows.length ? h("section", { class: "card", "aria-label": "Names" }, h("h2", {}, "Names you have given"), table(head, rows)) : null;
  keepFocus(place, () => put(place, list));
}
