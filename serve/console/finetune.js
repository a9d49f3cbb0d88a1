// Fine-tune: check training data, settle a job and what it will take, start it; the list of jobs. One job is job.js's.

import { ApiError, call, listAll, upload } from "./api.js";
import { drawBars } from "./chart.js";
import { bytes, count, empty, figure, h, next, oneAtATime, problem, put, span, table, when } from "./dom.js";
import { isOver, nameJob, showJob } from "./job.js";
import { drawNames } from "./names.js";
import { watchList } from "./watch.js";

export const title = "Fine-tune";

const MOST_JOBS = 200;
const EXAMPLE = '{"messages": [{"role": "user", "content": "How long is the warranty?"}, {"role": "assistant", "content": "26 months."}]}';

export async function show(root, context) {
  const [jobId] = context.parts;
  try {
    return await (jobId ? showJob(root, jobId, context) : showJobs(root, context));
  } catch (error) {
    if (!(error instanceof ApiError && error.status === 404 && !jobId)) throw error;
    put(root, h("h1", {}, title), empty("This gateway takes no jobs", h("p", {}, "Train at the command line; the adapter is served under its run id after the next start:"), h("pre", {}, "python train/run.py data.train=X.jsonl data.valid=Y.jsonl run_id=mine")));
    return null;
  }
}

async function showJobs(root, { isLeft, query, noteQuery }) {
  const read = () => listAll("fine_tuning/jobs", { limit: 50 }, MOST_JOBS);
  const [jobs, files, models] = await Promise.all([
    read(),
    listAll("files", { purpose: "fine-tune", limit: 1000 }),
    call("GET", "models"),
  ]);
  if (isLeft()) return null;
  const bases = models.data.filter((model) => model.kind === "base").map((model) => model.id);
  const draw = (some) => some.length
    ? drawJobs(some)
    : empty("No jobs yet", h("p", {}, "Choose a file of examples above: each teaches the model one answer. Fifty good ones are a start. One JSON object a line:"), h("pre", {}, EXAMPLE));
  const [list, names] = [h("div"), h("div")];
  const work = new AbortController();
  put(root, h("h1", {}, title), drawNew(bases, files, { left: work.signal, query, noteQuery }), list, names);
  const stop = watchList(jobs, list, { read, draw, isWaiting: (job) => !isOver(job) });
  await drawNames(names);
  return () => {
    stop();
    work.abort();
  };
}

function drawJobs(jobs) {
  const rows = jobs.map((job) => h(
    "tr", { "data-key": job.id },
    h("td", { class: "long" }, h("a", { href: `#/finetune/${job.id}` }, nameJob(job)), h("div", { class: "quiet small" }, job.model)),
    h("td", {}, h("span", { class: `badge ${job.status}` }, job.status.replace("_", " "))),
    h("td", { class: "long" }, job.fine_tuned_model ?? (job.error?.message ? h("span", { class: "reason" }, job.error.message.slice(0, 160)) : "")),
    h("td", { class: "number wide-only" }, job.trained_tokens?.toLocaleString("en") ?? ""),
    h("td", { class: "wide-only" }, when(job.created_at)),
  ));
  const head = ["Job", "Status", "Model", "Tokens", "Made"].map((text, at) => h("th", { class: at === 3 ? "number wide-only" : at === 4 ? "wide-only" : "" }, text));
  const rest = jobs.length < MOST_JOBS ? null : h("p", { class: "quiet" }, `Only the newest ${MOST_JOBS} jobs are listed here.`);
  return h("section", { class: "card", "aria-label": "Jobs" }, h("h2", {}, "Jobs"), table(head, rows), rest);
}

/** A form in two steps: choose and check the data, then settle the job. */
function drawNew(bases, files, { left, query, noteQuery }) {
  const input = h("input", { type: "file", id: "training-file", accept: ".jsonl,.json,.ndjson", "data-main-field": true });
  const [problems, report, settings] = [h("div"), h("div", { class: "stack" }), h("div")];
  const known = h("select", { id: "known-file" }, h("option", { value: "" }, "–"), files.map((file) => h("option", { value: file.id }, `${file.filename} (${bytes(file.bytes)}, ${when(file.created_at)})`)));
  const check = async (getId) => {
    put(problems);
    put(settings);
    put(report, h("p", { class: "quiet", role: "status" }, "Checking …"));
    try {
      const checked = await call("POST", "loam/training_checks", { body: { file_id: await getId() } });
      if (left.aborted) return; // the address is another page's by now
      noteQuery(new URLSearchParams({ file: checked.file_id }));
      put(report, drawCheck(checked));
      if (!checked.fault_count) put(settings, drawSettings(checked, bases, files, left));
    } catch (error) {
      put(report);
      put(problems, problem(error));
    }
  };
  const bar = h("progress", { value: 0, max: 1, hidden: true, "aria-label": "Upload" });
  input.addEventListener("change", () => input.files[0] && check(async () => {
    bar.hidden = false;
    try {
      return (await upload(input.files[0], "fine-tune", (share) => { bar.value = share; })).id;
    } finally {
      bar.hidden = true;
    }
  }));
  known.addEventListener("change", () => known.value && check(async () => known.value));
  if (files.some((file) => file.id === query.get("file"))) {
    known.value = query.get("file");
    check(async () => known.value);
  }
  return h(
    "section", { class: "card stack", "aria-label": "New job" },
    h("h2", {}, "New job"),
    h("div", { class: "row" },
      h("label", { for: "training-file" }, "Training data"), input, bar,
      files.length ? [h("label", { for: "known-file" }, "or one uploaded before"), known] : null),
    problems, report, settings,
  );
}

function drawCheck(checked) {
  const figures = h("div", { class: "row" },
    h("span", { class: `badge ${checked.fault_count ? "failed" : "completed"}` }, checked.fault_count ? count(checked.fault_count, "fault") : "no faults"),
    h("span", {}, `${count(checked.rows, "good row")}, format ${checked.format.replace("_", " ")}`));
  if (checked.fault_count) {
    const faults = checked.faults.map((fault) => h(
      "tr", {}, h("td", { class: "number" }, fault.line || "file"), h("td", {}, h("code", {}, fault.field)), h("td", {}, fault.problem), h("td", {}, fault.fix)));
    const head = ["Line", "Field", "Fault", "What to do"].map((text, at) => h("th", { class: at ? "" : "number" }, text));
    const more = checked.fault_count - checked.faults.length;
    return [
      figures, next("mend these lines, and choose the file again."),
      table(head, faults, "faults"),
      more ? h("p", { class: "quiet" }, `and ${more} more`) : null,
    ];
  }
  const { lengths, sample } = checked;
  const measured = `${lengths.total.toLocaleString("en")} ${lengths.unit} in ${lengths.measured.toLocaleString("en")} rows; mean ${lengths.mean}, longest ${lengths.max}`;
  const shown = h("details", { open: true }, h("summary", {}, `Line ${sample.line} as the model reads it`), h("pre", { class: "sample", tabindex: 0, "aria-label": "A row as the model reads it", role: "region" }, sample.rendered));
  return [figures, h("p", { class: "quiet" }, measured), h("div", { class: "columns columns-2" }, drawBars(`Rows by length in ${lengths.unit}`, lengths, lengths.unit), shown)];
}

function drawNumber(id, label, { min, max, step = 1 }) {
  return h("div", {}, h("label", { for: id }, label), h("input", { id, type: "number", min, max, step, placeholder: "auto" }));
}

/** What of a job can be settled; each field that is left empty has the profile's value, which the estimate tells. */
function drawSettings(checked, bases, files, left) {
  const base = h("select", { id: "base" }, bases.map((name) => h("option", {}, name)));
  const suffix = h("input", { id: "suffix", placeholder: "helpdesk", maxlength: 64, pattern: "[A-Za-z0-9][A-Za-z0-9._\\-]*", title: "Letters, digits, dots, dashes and underscores" });
  const valid = h("select", { id: "validation" }, h("option", { value: "" }, "none"), files.filter((file) => file.id !== checked.file_id).map((file) => h("option", { value: file.id }, file.filename)));
  const numbers = {
    n_epochs: drawNumber("epochs", "Epochs", { min: 1, max: 50 }),
    batch_size: drawNumber("batch", "Rows a step", { min: 1, max: 256 }),
    learning_rate_multiplier: drawNumber("rate", "Learning rate ×", { min: 0.05, step: 0.05 }),
    lora_rank: drawNumber("rank", "LoRA rank", { min: 1, max: 512 }),
    max_length: drawNumber("length", "Longest row, tokens", { min: 8 }),
  };
  const form = { base, suffix, valid, inputs: Object.fromEntries(Object.entries(numbers).map(([name, field]) => [name, field.querySelector("input")])) };
  const estimate = h("div", { class: "estimate", role: "status" });
  const problems = h("div");
  const estimating = { current: null };
  const tell = () => estimateJob(readBody(form, checked), estimate, form, estimating, left);
  for (const field of [base, valid, ...Object.values(form.inputs)]) field.addEventListener("change", tell);
  const start = oneAtATime(async () => {
    try {
      const job = await call("POST", "fine_tuning/jobs", { body: readBody(form, checked) });
      if (!left.aborted) location.hash = `#/finetune/${job.id}`;
    } catch (error) {
      put(problems, problem(error));
    }
  });
  tell();
  return h(
    "form", { class: "stack", onsubmit: start, "aria-label": "Settings" },
    next("name the result and start the job; what is left empty has the value that stands there."),
    h("div", { class: "fields" },
      h("div", {}, h("label", { for: "suffix" }, "Name of the result"), suffix),
      h("div", {}, h("label", { for: "base" }, "Base model"), base),
      h("div", {}, h("label", { for: "validation" }, "Held-out data"), valid),
      Object.values(numbers)),
    estimate, problems,
    h("div", { class: "row" }, h("button", { class: "primary" }, "Start the job")),
  );
}

/** Return the job that the form describes, as the API takes it. */
function readBody({ base, suffix, valid, inputs }, checked) {
  const given = Object.fromEntries(Object.entries(inputs).filter(([, input]) => input.value !== "").map(([name, input]) => [name, Number(input.value)]));
  const { lora_rank: rank, max_length: length, ...hyperparameters } = given;
  const type = checked.format === "preference" ? "dpo" : "supervised";
  const notes = Object.entries({ lora_rank: rank, max_length: length }).filter(([, value]) => value !== undefined).map(([name, value]) => [name, String(value)]);
  const body = { model: base.value, training_file: checked.file_id, method: { type, [type]: { hyperparameters } } };
  if (suffix.value.trim()) body.suffix = suffix.value.trim();
  if (valid.value) body.validation_file = valid.value;
  if (notes.length) body.metadata = Object.fromEntries(notes);
  return body;
}

/**
 * Ask what a job will take, and show it; what was asked before is dropped. The old figures stay until the new ones are
 * there: leaving a field by pressing the button below must not move that button away from under the pointer.
 */
async function estimateJob(body, place, form, estimating, left) {
  estimating.current?.abort();
  const asked = new AbortController();
  estimating.current = asked;
  if (!place.hasChildNodes()) put(place, h("p", { class: "quiet" }, "Estimating memory and time … The job can be started meanwhile."));
  place.setAttribute("aria-busy", "true");
  try {
    const found = await call("POST", "loam/training_estimates", { body, signal: AbortSignal.any([asked.signal, left]) });
    for (const [name, value] of Object.entries(found.hyperparameters)) if (form.inputs[name]) form.inputs[name].placeholder = String(value);
    put(place, drawEstimate(found));
  } catch (error) {
    if (error.name !== "AbortError") put(place, problem(error));
  }
  if (estimating.current === asked) place.setAttribute("aria-busy", "false");
}

function drawEstimate({ steps, tokens, seconds, memory, hardware, fits, remedies, stops_engine: stopsEngine }) {
  const figures = [
    ["steps", steps.toLocaleString("en")],
    ["tokens read", tokens.toLocaleString("en")],
    ["estimated time, evaluations apart", `${span(seconds.low)} to ${span(seconds.high)}`],
    [`memory needed, of ${bytes(memory.free_bytes)} free`, bytes(memory.needed_bytes)],
  ];
  const shown = h("div", { class: "figures" }, figures.map(([name, value]) => figure(name, value)));
  const where = h("p", { class: "quiet" }, `On ${hardware}.`, stopsEngine ? " Nobody is answered while it trains: vLLM gives its memory up and comes back after." : "");
  if (fits) return [shown, where];
  const helps = remedies.map(({ change, needed_bytes: size }) => h("li", {}, h("code", {}, change), ` (then about ${bytes(size)})`));
  const what = helps.length
    ? [h("p", {}, "Each of these would make it fit; «max_length» and «rank» are fields above, the others are the operator's (jobs.overrides):"), h("ul", {}, helps)]
    : h("p", {}, "No setting helps: it takes a smaller base model.");
  return [shown, where, h("div", { class: "problem", role: "alert" }, stopsEngine ? "It does not fit into what is free while vLLM runs." : "This does not fit into memory.", what)];
}
