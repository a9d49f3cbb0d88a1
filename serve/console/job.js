// One fine-tuning job: how far it is, its curves as they grow, what happened, its checkpoints, and how to use the result.

import { call, fetchText } from "./api.js";
import { drawLines, format } from "./chart.js";
import { confirmThat } from "./dialog.js";
import { figure, h, keepFocus, next, oneAtATime, problem, put, save, span, table, when } from "./dom.js";
import { drawUse, linkAsk } from "./names.js";
import { CHANGED, OVER, SAME, watch } from "./watch.js";

const FEW = 10;
const FIRST = 100;
const PAGE = 1000;
const MOST_EVENTS = 20_000;
const FINAL = ["succeeded", "failed", "cancelled"];
const TRIAL_TOKENS = 200;

export async function showJob(root, jobId, context) {
  const view = { job: null, state: null, events: new Map(), older: null, isCut: false, checkpoints: [], watcher: null };
  const path = `fine_tuning/jobs/${encodeURIComponent(jobId)}`;
  const parts = {
    head: h("div", { class: "stack" }), fault: h("div"), figures: h("div", { class: "figures" }), use: h("div"), reach: h("div"), curves: h("div", { class: "columns columns-2" }),
    answers: h("div"), below: h("div", { class: "stack" }),
  };
  const look = async () => {
    const job = await call("GET", path);
    const isFirst = view.job === null;
    const hasNewer = await (isFirst ? readFirst(view, path) : readNewer(view, path));
    const hasOlder = !isFirst && (await readOlder(view, path));
    const hasNews = hasNewer || hasOlder;
    const state = JSON.stringify([job.status, job.error, job.fine_tuned_model]);
    const isOther = view.state !== state;
    if (isOther) view.checkpoints = (await call("GET", `${path}/checkpoints`, { query: { limit: 50 } })).data; // they come with the end
    if (context.isLeft()) return OVER;
    view.job = job;
    view.state = state;
    put(parts.figures, drawFigures(job));
    put(parts.fault);
    if (isOther) keepFocus(parts.head, () => put(parts.head, drawHead(view, path)));
    if (isOther || hasNews) drawNews(view, parts);
    if (job.fine_tuned_model && !parts.use.hasChildNodes()) put(parts.use, await drawResult(view));
    if (isOver(job) && view.older === null) return OVER;
    return isOther || hasNews ? CHANGED : SAME;
  };
  const tell = (error) => put(parts.fault, problem(error));
  const seen = await look();
  if (context.isLeft()) return null;
  put(root, parts.head, parts.fault, parts.figures, parts.use, parts.reach, parts.curves, parts.answers, parts.below);
  view.watcher = watch(look, { failed: tell });
  if (view.older !== null) view.watcher.now(); // what is to be seen first stands there
  else if (seen !== OVER) view.watcher.wake();
  return view.watcher.stop;
}

function drawNews(view, parts) {
  put(parts.reach, drawReach(view));
  put(parts.curves, drawCurves(view));
  if (readSamples(view).length || (view.older === null && !parts.answers.hasChildNodes())) put(parts.answers, drawAnswers(view));
  keepFocus(parts.below, () => put(parts.below, drawCheckpoints(view), drawEvents(view)));
}

/** Tell whether nothing more will become of a job. */
export function isOver(job) {
  return FINAL.includes(job.status);
}

/** Return what people call a job: the name that they gave its model, once there is one. */
export function nameJob(job) {
  return readSuffix(job) || job.id;
}

function readSuffix(job) {
  return job.fine_tuned_model?.split(":")[3] ?? "";
}

/** Read the newest events, which are the first to be seen; `view.older` then names the one before which older ones are to be read. */
async function readFirst(view, path) {
  const page = await call("GET", `${path}/events`, { query: { limit: FIRST } });
  view.events = new Map(page.data.map((event) => [event.id, event]));
  view.older = page.has_more ? page.data.at(-1).id : null;
  return page.data.length > 0;
}

/**
 * Read the events that are new: they come newest first, and never change, so that a few are asked for, and more only where all
 * of those are new. All are taken or none, so that no gap stays.
 * @returns {Promise<boolean>} whether there are any
 */
async function readNewer(view, path) {
  const fresh = [];
  for (let [after, limit] = [null, FEW]; ; limit = PAGE) {
    const page = await call("GET", `${path}/events`, { query: { limit, after } });
    const unseen = page.data.filter((event) => !view.events.has(event.id));
    fresh.push(...unseen);
    if (!page.has_more || unseen.length < page.data.length) break;
    after = page.data.at(-1).id;
  }
  view.events = new Map([...fresh.map((event) => [event.id, event]), ...view.events]); // the newest first, as they came
  return fresh.length > 0;
}

/** Read the events that are older than the first ones, MOST_EVENTS at the most; return whether there are any. */
async function readOlder(view, path) {
  const before = view.events.size;
  while (view.older !== null && view.events.size < MOST_EVENTS) {
    const page = await call("GET", `${path}/events`, { query: { limit: PAGE, after: view.older } });
    for (const event of page.data) view.events.set(event.id, event);
    view.older = page.has_more ? page.data.at(-1).id : null;
  }
  view.isCut ||= view.older !== null;
  view.older = null;
  return view.events.size > before;
}

function drawHead(view, path) {
  const { job } = view;
  const problems = h("div");
  const post = (verb) => call("POST", `${path}/${verb}`);
  const act = (verb) => oneAtATime(async () => {
    try {
      await post(verb);
      await view.watcher.now();
    } catch (error) {
      put(problems, problem(error));
    }
  });
  const cancel = async () => {
    const question = "Cancel this job? What it has learned since its last checkpoint is lost.";
    if (await confirmThat(question, "Cancel the job", () => post("cancel"))) await view.watcher.now();
  };
  const buttons = isOver(job) ? [] : [
    job.status === "running" ? h("button", { onclick: act("pause") }, "Pause") : null,
    job.status === "queued" ? h("button", { onclick: act("resume"), title: "A paused job waits among the queued ones" }, "Go on") : null,
    h("button", { class: "danger", onclick: cancel }, "Cancel the job"),
  ];
  return [
    h("div", { class: "row between" },
      h("h1", {}, h("a", { href: "#/finetune" }, "Fine-tune"), " / ", nameJob(job)),
      h("div", { class: "row", "data-key": "job" }, h("span", { class: `badge ${job.status}`, role: "status" }, job.status.replace("_", " ")), buttons)),
    job.error?.message ? h("p", { class: "problem", role: "alert" }, h("span", { class: "lines" }, job.error.message)) : null,
    problems, drawNext(job),
  ];
}

function drawFigures(job) {
  const figures = [
    ["Base model", job.model],
    ["Made", when(job.created_at)],
    job.finished_at ? ["Took", span(job.finished_at - job.created_at)] : job.estimated_finish ? ["Done in about", span(job.estimated_finish - Date.now() / 1000)] : null,
    job.trained_tokens ? ["Tokens read", job.trained_tokens.toLocaleString("en")] : null,
    ...Object.entries(job.hyperparameters ?? {}).map(([name, value]) => [name.replace(/^n_/, "").replaceAll("_", " "), String(value)]),
  ].filter(Boolean);
  return figures.map(([name, value]) => figure(name, value));
}

/** Say what comes next at each status; after a success «Use it» does. */
function drawNext({ status }) {
  const documents = h("a", { href: "#/documents" }, "bring documents in");
  const again = h("a", { href: "#/finetune" }, "start another one");
  switch (status) {
    case "validating_files": return next("its rows are checked; then it waits for its turn. This page goes on by itself.");
    case "queued": return next("it starts by itself when the job before it has ended. Meanwhile: ", documents, ".");
    case "running": return next("when it has ended, you give the new model a name here. Meanwhile: ", documents, ", so that it can answer from them.");
    case "failed": return next("mend what is said above, and ", again, ".");
    case "cancelled": return next(again, ".");
    default: return null;
  }
}

async function drawResult({ job, checkpoints }) {
  const tuned = { model: job.fine_tuned_model, checkpoints: checkpoints.map((one) => one.fine_tuned_model_checkpoint), suffix: readSuffix(job) };
  return h(
    "section", { class: "card stack", "aria-label": "Use it" },
    h("h2", {}, "Use it"),
    h("p", {}, "The new model is served now, under the name ", h("code", {}, job.fine_tuned_model), "."),
    h("div", { class: "row" }, h("a", { class: "button", href: linkAsk(job.fine_tuned_model, job.model) }, "Ask it beside its base"),
      job.result_files?.[0] ? h("button", { onclick: () => saveResults(job.result_files[0]) }, "Figures as CSV") : null),
    await drawUse(tuned).catch(problem),
  );
}

async function saveResults(fileId) {
  save("results.csv", await fetchText(`files/${fileId}/content`), "text/csv");
}

/** Return a figure of the metrics events as points (step, value); of a step that a resumed run did twice, the newer one. */
function readPoints(view, name) {
  const points = new Map();
  for (const event of view.events.values()) {
    const value = event.data?.[name];
    if (event.type === "metrics" && Number.isFinite(value) && !points.has(event.data.step)) points.set(event.data.step, value);
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

/** Say what the curves do not show, or not yet. */
function drawReach({ older, isCut, job }) {
  if (older !== null) return h("p", { class: "quiet", role: "status" }, "What came before is being read …");
  const all = job.result_files?.[0] ? " Figures as CSV has every step." : "";
  return isCut ? h("p", { class: "quiet" }, `Only the newest ${MOST_EVENTS.toLocaleString("en")} events are shown here.${all}`) : null;
}

function drawCheckpoints(view) {
  if (!view.checkpoints.length) return null;
  const rows = view.checkpoints.map((one) => h(
    "tr", {}, h("td", { class: "number" }, one.step_number),
    h("td", { class: "long" }, h("a", { href: linkAsk(one.fine_tuned_model_checkpoint) }, one.fine_tuned_model_checkpoint)),
    h("td", { class: "number" }, format(one.metrics.train_loss)), h("td", { class: "number" }, format(one.metrics.full_valid_loss)),
    h("td", { class: "wide-only" }, when(one.created_at))));
  const head = ["Step", "Model", "Training loss", "Held-out loss", "Saved"].map((text, at) => h("th", { class: at === 1 ? "" : at === 4 ? "wide-only" : "number" }, text));
  return h("section", { class: "card", "aria-label": "Checkpoints" }, h("h2", {}, "Checkpoints"), table(head, rows));
}

function readSamples(view) {
  return [...view.events.values()].filter((event) => event.data?.answer !== undefined);
}

/** Show what the model answered before and after: as the trainer has written it down, else by asking both now. */
function drawAnswers(view) {
  const samples = readSamples(view);
  if (!samples.length) return view.job.fine_tuned_model ? drawTrial(view.job) : null;
  const byPrompt = Map.groupBy(samples, (event) => event.data.index);
  const blocks = [...byPrompt.values()].map((some) => {
    const ordered = some.sort((a, b) => a.data.step - b.data.step);
    const shown = ordered.length > 1 ? [ordered[0], ordered.at(-1)] : ordered;
    return drawPair(ordered[0].data.prompt, shown.map(({ data }) => [data.step ? `after step ${data.step}` : "before", data.answer]));
  });
  return drawAnswerSection(h("p", { class: "quiet" }, "The first held-out rows, answered by the trainer."), blocks);
}

function drawAnswerSection(...parts) {
  return h("section", { class: "card stack", "aria-label": "Samples" }, h("h2", {}, "Answers before and after"), parts);
}

function drawPair(question, answers) {
  return h("div", { class: "stack" }, h("h3", { class: "question" }, question),
    h("div", { class: "columns columns-2" }, answers.map(([label, answer]) => h("div", {}, h("p", { class: "quiet small" }, label), h("div", { class: "text" }, answer)))));
}

/** Ask base and new model the first question of the training data, through the served endpoint. */
function drawTrial(job) {
  const place = h("div");
  const ask = oneAtATime(async () => {
    put(place, h("p", { class: "quiet", role: "status" }, "Asking both …"));
    try {
      const { sample } = await call("POST", "loam/training_checks", { body: { file_id: job.training_file, model: job.model } });
      const messages = readPrompt(sample.row);
      const answers = await Promise.all([["before", job.model], ["after", job.fine_tuned_model]].map(async ([label, model]) => {
        const answer = await call("POST", "chat/completions", { body: { model, messages, temperature: 0, max_tokens: TRIAL_TOKENS } });
        return [`${label}: ${model}`, answer.choices[0].message.content];
      }));
      put(place, drawPair(messages.at(-1).content, answers));
    } catch (error) {
      put(place, problem(error));
    }
  });
  return drawAnswerSection(h("p", { class: "quiet" }, "This job had no held-out rows to answer while it ran."), h("div", { class: "row" }, h("button", { onclick: ask }, "Ask both the first training question")), place);
}

/** Return a row's chat up to where its last answer begins. */
function readPrompt(row) {
  const messages = row.messages ?? row.prompt;
  const last = row.messages ? messages.findLastIndex((message) => message.role === "assistant") : messages.length;
  return messages.slice(0, last).map(({ role, content }) => ({ role, content }));
}

function drawEvents(view) {
  const events = [...view.events.values()].filter((event) => event.type !== "metrics" && event.data?.answer === undefined);
  const rows = events.map((event) => h("li", { class: `event ${event.level}` }, h("span", { class: "quiet small" }, when(event.created_at)), " ", h("span", { class: "lines" }, event.message)));
  return h("section", { class: "card", "aria-label": "Events" }, h("h2", {}, "What happened"), rows.length ? h("ul", { class: "events" }, rows) : h("p", { class: "quiet" }, "Nothing yet."));
}
