// A question that must be answered before something is done.

import { h, problem, put } from "./dom.js";

/**
 * Ask, and return whether it was confirmed.
 * @param {string|Node} question what
 * @param {string} action the word on the button that does it
 * @param {() => Promise<void>} work done before it closes; what it throws is shown, and the box stays open
 */
export function confirmThat(question, action, work = async () => {}) {
  return new Promise((resolve) => {
    const problems = h("div");
    const confirm = h("button", { class: "primary" }, action);
    let isDone = false;
    const submit = async (event) => {
      event.preventDefault();
      confirm.disabled = true;
      try {
        await work();
        isDone = true;
        box.close();
      } catch (error) {
        put(problems, problem(error));
        confirm.disabled = false;
      }
    };
    const cancel = h("button", { type: "button", onclick: () => box.close() }, "Cancel");
    const box = h("dialog", { class: "box", "aria-label": action }, h("form", { class: "stack", onsubmit: submit }, typeof question === "string" ? h("p", {}, question) : question, problems, h("div", { class: "row" }, confirm, cancel)));
    box.addEventListener("close", () => {
      box.remove();
      resolve(isDone);
    });
    document.body.append(box);
    box.showModal();
  });
}
