// Fine-tune: check training data, start a job, and the list of jobs. One job is job.js's.

import { ApiError, call, listAll, upload } from "./api.js";
import { drawBars } from "./chart.js";
import { bytes, empty, h, problem, put, span, when } from "./dom.js";
import { nameJob, showJob } from "./job.js";

export const title = "Fine-tune";

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

async function showJobs(root, { isLeft }) {
  const [jobs, files, models] = await Promise.all([
    listAll("fine_tuning/jobs", { limit: 50 }, 200),
    listAll("files", { purpose: "fine-tune", limit: 1000 }),
    call("GET", "models"),
  ]);
  if (isLeft()) return;
  const bases = models.data.filter((model) => model.kind === "base").map((model) => model.id);
  const list = jobs.length
    ? drawJobs(jobs)
    : empty("No jobs yet", h("p", {}, "Choose a file of examples above: each teaches the model one answer. Fifty good ones are a start. One JSON object a line:"), h("pre", {}, EXAMPLE));
  put(root, h("h1", {}, title), drawNew(bases, files, jobs), list);
}

function drawJobs(jobs) {
  const rows = jobs.map((job) => h(
    "tr", {},
    h("td", {}, h("a", { href: `#/finetune/${job.id}` }, nameJob(job)), h("div", { class: "quiet small" }, job.model)),
    h("td", {}, h("span", { class: `badge ${job.status}` }, job.status.replace("_", " "))),
    h("td", {}, job.fine_tuned_model ?? (job.error?.message ? h("span", { class: "reason" }, job.error.message.slice(0, 160)) : "")),
    h("td", { class: "number" }, job.trained_tokens?.toLocaleString("en") ?? ""),
    h("td", { class: "wide-only" }, when(job.created_at)),
  ));
  const head = ["Job", "Status", "Model", "Tokens", "Made"].map((text, at) => h("th", { class: at === 3 ? "number" : at === 4 ? "wide-only" : "" }, text));
  return h("section", { class: "card scroll", "aria-label": "Jobs" }, h("table", {}, h("thead", {}, h("tr", {}, head)), h("tbody", {}, rows)));
}

/** A form in two steps: choose and check the data, then settle the job. */
function drawNew(bases, files, jobs) {
  const state = { checked: null, base: bases[0] };
  const problems = h("div");
  const report = h("div", { class: "stack" });
  const settings = h("div");
  const input = h("input", { type: "file", id: "training-file", accept: ".jsonl,.json", "data-main-field": true });
  const known = h("select", { id: "known-file" }, h("option", { value: "" }, "…"), files.map((file) => h("option", { value: file.id }, `${file.filename} (${bytes(file.bytes)}, ${when(file.created_at)})`)));
  const check = async (getId) => {
    put(problems);
    put(settings);
    put(report, h("p", { class: "quiet", role: "status" }, "Checking …"));
    try {
      state.checked = await call("POST", "loam/training_checks", { body: { file_id: await getId(), model: state.base ?? null } });
      put(report, drawCheck(state.checked));
      if (!state.checked.fault_count) put(settings, drawSettings(state, bases, files, jobs));
    } catch (error) {
      put(report);
      put(problems, problem(error));
    }
  };
  const bar = h("progress", { value: 0, max: 1, hidden: true, "aria-label": "Upload" });
  input.addEventListener("change", () => input.files[0] && check(async () => {
    bar.hidden = false;
    const file = await upload(input.files[0], "fine-tune", (share) => { bar.value = share; });
    bar.hidden = true;
    return file.id;
  }));
  known.addEventListener("change", () => known.value && check(async () => known.value));
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
    h("span", { class: `badge ${checked.fault_count ? "failed" : "completed"}` }, checked.fault_count ? `${checked.fault_count} faults` : "no faults"),
    h("span", {}, `${checked.rows.toLocaleString("en")} good rows, format ${checked.format.replace("_", " ")}`));
  if (checked.fault_count) {
    const faults = checked.faults.map((fault) => h(
      "tr", {}, h("td", { class: "number" }, fault.line || "file"), h("td", {}, h("code", {}, fault.field)), h("td", {}, fault.problem), h("td", {}, fault.fix)));
    const head = ["Line", "Field", "Fault", "What to do"].map((text, at) => h("th", { class: at ? "" : "number" }, text));
    const more = checked.fault_count - checked.faults.length;
    return [figures, h("div", { class: "scroll" }, h("table", { class: "faults" }, h("thead", {}, h("tr", {}, head)), h("tbody", {}, faults))), more ? h("p", { class: "quiet" }, `and ${more} more`) : null];
  }
  const { lengths, sample } = checked;
  const measured = `${lengths.total.toLocaleString("en")} ${lengths.unit} in ${lengths.measured.toLocaleString("en")} rows; mean ${lengths.mean}, longest ${lengths.max}`;
  const shown = h("details", { open: true }, h("summary", {}, `Line ${sample.line} as the model reads it`), h("pre", { class: "sample" }, sample.rendered));
  return [figures, h("p", { class: "quiet" }, measured), h("div", { class: "columns columns-2" }, drawBars(`Rows by length in ${lengths.unit}`, lengths, lengths.unit), shown)];
}

function drawSettings(state, bases, files, jobs) {
  const base = h("select", { id: "base" }, bases.map((name) => h("option", {}, name)));
  const suffix = h("input", { id: "suffix", placeholder: "helpdesk", maxlength: 64, pattern: "[A-Za-z0-9][A-Za-z0-9_\\-]*" });
  const isPairs = state.checked.format === "preference";
  const valid = h("select", { id: "validation" }, h("option", { value: "" }, "none"), files.filter((file) => file.id !== state.checked.file_id).map((file) => h("option", { value: file.id }, file.filename)));
  const number = (id, label, step) => h("div", {}, h("label", { for: id }, label), h("input", { id, type: "number", min: step, step, placeholder: "auto" }));
  const fields = [number("epochs", "Epochs", 1), number("batch", "Rows a step", 1), number("rate", "Learning rate ×", 0.05)];
  const [epochs, batch, rate] = fields.map((field) => field.querySelector("input"));
  const estimate = h("p", { class: "quiet" });
  const problems = h("div");
  const tell = () => put(estimate, describeEstimate(state.checked, base.value, Number(epochs.value) || null, Number(batch.value) || null, jobs));
  for (const field of [epochs, batch, base]) field.addEventListener("input", tell);
  const start = async (event) => {
    event.preventDefault();
    const values = { n_epochs: epochs.value, batch_size: batch.value, learning_rate_multiplier: rate.value };
    const hyperparameters = Object.fromEntries(Object.entries(values).filter(([, value]) => value !== "").map(([name, value]) => [name, Number(value)]));
    const type = isPairs ? "dpo" : "supervised";
    const body = { model: base.value, training_file: state.checked.file_id, method: { type, [type]: { hyperparameters } } };
    if (suffix.value) body.suffix = suffix.value;
    if (valid.value) body.validation_file = valid.value;
    try {
      const job = await call("POST", "fine_tuning/jobs", { body });
      location.hash = `#/finetune/${job.id}`;
    } catch (error) {
      put(problems, problem(error));
    }
  };
  tell();
  return h(
    "form", { class: "stack", onsubmit: start },
    h("div", { class: "fields" },
      h("div", {}, h("label", { for: "base" }, "Base model"), base),
      h("div", {}, h("label", { for: "suffix" }, "Name of the result"), suffix),
      h("div", {}, h("label", { for: "validation" }, "Held-out data"), valid),
      fields),
    estimate, problems,
    h("div", { class: "row" }, h("button", { class: "primary" }, "Start the job"), h("span", { class: "quiet" }, "What is left empty is the profile's value.")),
  );
}

/** Say how much will be read, and how long that took before. */
function describeEstimate(checked, base, epochs, batch, jobs) {
  const parts = [];
  if (epochs && batch) parts.push(`${Math.ceil(checked.rows / batch) * epochs} steps`);
  const tokens = checked.lengths.unit === "tokens" ? Math.round((checked.lengths.total / checked.lengths.measured) * checked.rows) : null;
  if (tokens) parts.push(`about ${(tokens * (epochs ?? 1)).toLocaleString("en")} tokens${epochs ? "" : " an epoch"}`);
  const before = jobs.find((job) => job.status === "succeeded" && job.model === base && job.trained_tokens && job.finished_at > job.created_at);
  if (before && tokens) {
    const speed = before.trained_tokens / (before.finished_at - before.created_at);
    parts.push(`${span((tokens * (epochs ?? 1)) / speed)}${epochs ? "" : " an epoch"} at the speed of ${nameJob(before)}`);
  } else {
    parts.push("how long it takes stands on the job's page after its third step");
  }
  return parts.join(" · ");
}
