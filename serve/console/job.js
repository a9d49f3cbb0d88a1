// One fine-tuning job: how far it is, its curves as they grow, what happened, its checkpoints, and how to use the result.

import { call, fetchText } from "./api.js";
import { drawLines, format } from "./chart.js";
import { confirmThat } from "./dialog.js";
import { h, problem, put, save, span, when } from "./dom.js";

const POLL_MS = 1000;
const FINAL = ["succeeded", "failed", "cancelled"];

export async function showJob(root, jobId, context) {
  const view = { job: null, events: new Map(), checkpoints: [], timer: null };
  const path = `fine_tuning/jobs/${encodeURIComponent(jobId)}`;
  const parts = { head: h("div", { class: "stack" }), curves: h("div", { class: "columns columns-2" }), below: h("div", { class: "stack" }) };
  const refresh = async () => {
    view.job = await call("GET", path);
    await readEvents(view, path);
    view.checkpoints = (await call("GET", `${path}/checkpoints`, { query: { limit: 50 } })).data;
    if (context.isLeft()) return;
    put(parts.head, drawHead(view, path, refresh));
    put(parts.curves, drawCurves(view));
    put(parts.below, drawCheckpoints(view), drawSamples(view), drawEvents(view));
    clearTimeout(view.timer);
    if (!FINAL.includes(view.job.status)) view.timer = setTimeout(again, POLL_MS);
  };
  const again = () => refresh().catch((error) => put(parts.head, problem(error)));
  await refresh();
  if (context.isLeft()) return null;
  put(root, parts.head, parts.curves, parts.below);
  return () => clearTimeout(view.timer);
}

/** Return what people call a job: the name that they gave its model, once there is one. */
export function nameJob(job) {
  return job.fine_tuned_model?.split(":")[3] || job.id;
}

/** Read the events that are new: they come newest first, and never change. */
async function readEvents(view, path) {
  let after = null;
  for (;;) {
    const page = await call("GET", `${path}/events`, { query: { limit: 100, after } });
    const fresh = page.data.filter((event) => !view.events.has(event.id));
    for (const event of fresh) view.events.set(event.id, event);
    if (!page.has_more || fresh.length < page.data.length) return;
    after = page.data.at(-1).id;
  }
}

function drawHead(view, path, refresh) {
  const { job } = view;
  const act = (verb) => async () => {
    if (verb === "cancel" && !(await confirmThat("Cancel this job? What it has learned since its last checkpoint is lost.", "Cancel the job"))) return;
    await call("POST", `${path}/${verb}`);
    await refresh();
  };
  const isOver = FINAL.includes(job.status);
  const buttons = isOver ? [] : [
    job.status === "running" ? h("button", { onclick: act("pause") }, "Pause") : null,
    job.status === "queued" ? h("button", { onclick: act("resume"), title: "A paused job waits among the queued ones" }, "Go on") : null,
    h("button", { class: "danger", onclick: act("cancel") }, "Cancel the job"),
  ];
  const figures = [
    ["Base model", job.model],
    ["Made", when(job.created_at)],
    job.finished_at ? ["Took", span(job.finished_at - job.created_at)] : job.estimated_finish ? ["Done in about", span(job.estimated_finish - Date.now() / 1000)] : null,
    job.trained_tokens ? ["Tokens read", job.trained_tokens.toLocaleString("en")] : null,
    ...Object.entries(job.hyperparameters ?? {}).map(([name, value]) => [name.replace(/^n_/, "").replaceAll("_", " "), String(value)]),
  ].filter(Boolean);
  return [
    h("div", { class: "row between" },
      h("h1", {}, h("a", { href: "#/finetune" }, "Fine-tune"), " / ", nameJob(job)),
      h("div", { class: "row" }, h("span", { class: `badge ${job.status}`, role: "status" }, job.status.replace("_", " ")), buttons)),
    h("div", { class: "figures" }, figures.map(([name, value]) => h("div", { class: "figure" }, h("b", {}, value), h("span", {}, name)))),
    job.error?.message ? h("p", { class: "problem", role: "alert" }, h("span", { class: "lines" }, job.error.message)) : null,
    job.fine_tuned_model ? drawUse(job) : null,
  ];
}

function drawUse(job) {
  const ask = `#/ask?${new URLSearchParams([["model", job.fine_tuned_model], ["model", job.model]])}`;
  return h(
    "section", { class: "card stack", "aria-label": "Use it" },
    h("h2", {}, "Use it"),
    h("p", {}, "The new model is served now, under the name ", h("code", {}, job.fine_tuned_model), "."),
    h("div", { class: "row" }, h("a", { class: "button", href: ask }, "Ask it beside its base"),
      job.result_files?.[0] ? h("button", { onclick: () => saveResults(job.result_files[0]) }, "Figures as CSV") : null),
    h("details", {}, h("summary", {}, "From documents too"),
      h("p", {}, "Tick a store under Ask, and it answers from documents, cited. A lasting name for both is an assistant, given when the gateway starts:"),
      h("pre", {}, `python serve/run.py +assistants.helper='{model: ${job.id}, stores: [STORE]}'`)),
  );
}

async function saveResults(fileId) {
  save("results.csv", await fetchText(`files/${fileId}/content`), "text/csv");
}

/** Return a figure of the metrics events as points (step, value). */
function readPoints(view, name) {
  const points = new Map();
  for (const event of view.events.values()) {
    const value = event.data?.[name];
    if (event.type === "metrics" && Number.isFinite(value)) points.set(event.data.step, value);
  }
  return [...points].sort(([a], [b]) => a - b);
}

function drawCurves(view) {
  const loss = [{ name: "training", points: readPoints(view, "train_loss") }, { name: "held out", points: readPoints(view, "full_valid_loss") }];
  return [
    drawLines("Loss", loss),
    drawLines("Learning rate", [{ name: "", points: readPoints(view, "learning_rate") }]),
    drawLines("Tokens a second", [{ name: "", points: readPoints(view, "tokens_per_s") }]),
    drawLines("Tokens read", [{ name: "", points: readPoints(view, "tokens") }]),
  ];
}

function drawCheckpoints(view) {
  if (!view.checkpoints.length) return null;
  const rows = view.checkpoints.map((one) => h(
    "tr", {}, h("td", { class: "number" }, one.step_number),
    h("td", {}, h("a", { href: `#/ask?${new URLSearchParams({ model: one.fine_tuned_model_checkpoint })}` }, one.fine_tuned_model_checkpoint)),
    h("td", { class: "number" }, format(one.metrics.train_loss)), h("td", { class: "number" }, format(one.metrics.full_valid_loss)),
    h("td", { class: "wide-only" }, when(one.created_at))));
  const head = ["Step", "Model", "Training loss", "Held-out loss", "Saved"].map((text, at) => h("th", { class: at === 1 ? "" : at === 4 ? "wide-only" : "number" }, text));
  return h("section", { class: "card", "aria-label": "Checkpoints" }, h("h2", {}, "Checkpoints"), h("div", { class: "scroll" }, h("table", {}, h("thead", {}, h("tr", {}, head)), h("tbody", {}, rows))));
}

/** Show what the model answered before and after, prompt by prompt. */
function drawSamples(view) {
  const samples = [...view.events.values()].filter((event) => event.data?.answer !== undefined);
  if (!samples.length) return null;
  const byPrompt = Map.groupBy(samples, (event) => event.data.index ?? event.data.prompt);
  const blocks = [...byPrompt.values()].map((some) => {
    const ordered = some.sort((a, b) => a.data.step - b.data.step);
    const shown = ordered.length > 1 ? [ordered[0], ordered.at(-1)] : ordered;
    return h("div", { class: "stack" }, h("h3", { class: "question" }, readPrompt(ordered[0].data.prompt)),
      h("div", { class: "columns columns-2" }, shown.map((event) => h("div", {}, h("p", { class: "quiet small" }, event.data.step ? `after step ${event.data.step}` : "before"), h("div", { class: "text" }, event.data.answer)))));
  });
  return h("section", { class: "card stack", "aria-label": "Samples" }, h("h2", {}, "Answers before and after"), blocks);
}

function readPrompt(prompt) {
  return Array.isArray(prompt) ? (prompt.filter((one) => one.role === "user").at(-1)?.content ?? "") : String(prompt);
}

function drawEvents(view) {
  const events = [...view.events.values()].filter((event) => event.type !== "metrics" && event.data?.answer === undefined);
  events.sort((a, b) => b.created_at - a.created_at);
  const rows = events.map((event) => h("li", { class: `event ${event.level}` }, h("span", { class: "quiet small" }, when(event.created_at)), " ", h("span", { class: "lines" }, event.message)));
  return h("section", { class: "card", "aria-label": "Events" }, h("h2", {}, "What happened"), rows.length ? h("ul", { class: "events" }, rows) : h("p", { class: "quiet" }, "Nothing yet."));
}
