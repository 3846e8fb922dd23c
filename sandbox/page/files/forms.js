// The bot's forms as dialogs. A native <dialog> keeps the focus inside and gives it back.
import { el } from "./dom.js";
import { markdown } from "./markdown.js";
import { offered } from "./messages.js";

const [ROW, TEXT, LABEL] = [1, 10, 18];
const [TEXT_INPUT, RADIOS, BOXES, BOX] = [4, 21, 22, 23];
let numbered = 0;

/** Opens a form; `send(values)` may throw, and the dialog then says why and stays. */
export function open(form, seen, send) {
  const fields = [];
  const body = el("div", { class: "fields" });
  for (const part of form.components) {
    if (part.type === TEXT) body.append(el("div", {}, markdown(part.content, seen)));
    for (const inner of part.type === ROW ? part.components : part.type === LABEL ? [part.component] : []) {
      const field = input(inner, part.label ?? inner.label, part.description, seen);
      fields.push(field);
      body.append(field.element);
    }
  }
  const problem = el("p", { class: "problem", role: "alert" });
  const submit = el("button", { class: "button primary", type: "submit" }, "Submit");
  const title = el("h2", { id: `form${++numbered}` }, form.title);
  const dialog = el("dialog", { "aria-labelledby": title.id });
  const sent = async (event) => {
    event.preventDefault();
    problem.textContent = "";
    const wrong = fields.find((field) => field.fault());
    if (wrong) {
      problem.textContent = wrong.fault();
      wrong.focus();
      return;
    }
    submit.disabled = true;
    try {
      await send(Object.fromEntries(fields.map((field) => [field.id, field.value()])));
      dialog.close();
    } catch (error) {
      problem.textContent = error.message;
      submit.disabled = false;
    }
  };
  dialog.append(el("form", { method: "dialog", noValidate: true, onsubmit: sent }, title, body, problem,
    el("div", { class: "row" },
      el("button", { class: "button secondary", type: "button", onclick: () => dialog.close() }, "Cancel"), submit)));
  dialog.addEventListener("close", () => {
    dialog.remove();
    // Chromium gives the focus back, but to an input without its caret: it then takes no letters.
    const back = document.activeElement;
    back.blur();
    back.focus({ preventScroll: true });
  });
  // Ctrl+Enter sends from within a text of several lines too.
  dialog.addEventListener("keydown", (event) => event.key === "Enter" && (event.ctrlKey || event.metaKey) && submit.click());
  document.body.append(dialog);
  dialog.showModal();
  (fields[0] ?? { focus: () => submit.focus() }).focus();
  return dialog;
}

function input(part, label, about, seen) {
  const id = `field${++numbered}`;
  const needed = part.required !== false;
  const head = [label, needed && el("span", { class: "needed", title: "required" }, " *")];
  const described = about ? el("small", { id: `${id}-about` }, about) : null;
  const base = { id: part.custom_id };
  if (part.type === TEXT_INPUT) {
    const long = part.style === 2;
    const most = part.max_length ?? 4000;
    const left = el("small", { class: "left" });
    const count = () => { left.textContent = box.value.length > most * 0.8 ? `${box.value.length} of ${most}` : ""; };
    const box = el(long ? "textarea" : "input", {
      id, value: part.value ?? "", placeholder: part.placeholder ?? "", maxLength: most, oninput: count,
      required: needed, "aria-describedby": described?.id,
    });
    if (long) box.rows = 3;
    const least = part.min_length ?? 0;
    return { ...base, focus: () => box.focus(), value: () => box.value,
      fault: () => needed && !box.value.trim() ? `“${label}” is required.`
        : box.value && box.value.length < least ? `“${label}” needs at least ${least} characters.` : "",
      element: el("div", { class: "field" }, el("label", { htmlFor: id }, head), described, box, left) };
  }
  if (part.type === BOX) {
    const box = el("input", { id, type: "checkbox", checked: Boolean(part.default) });
    return { ...base, focus: () => box.focus(), value: () => box.checked, fault: () => "",
      element: el("div", { class: "field box" }, el("label", {}, box, " ", label), described) };
  }
  const options = offered(part, seen);
  if (!options) {
    return { ...base, focus: () => {}, value: () => null, fault: () => "",
      element: el("p", { class: "aside" }, `${label}: files cannot be sent in a form here.`) };
  }
  const least = part.min_values ?? (needed ? 1 : 0);
  const most = part.max_values ?? (part.type === BOXES ? options.length : 1);
  const chosen = new Set((part.options ?? []).filter((option) => option.default).map((option) => option.value));
  if (part.type === RADIOS || part.type === BOXES || most > 1) {
    const kind = part.type === RADIOS ? "radio" : "checkbox";
    const set = el("fieldset", { class: "field" }, el("legend", {}, head), described, options.map(([value, name, more]) =>
      el("label", {}, el("input", { type: kind, name: id, value, checked: chosen.has(value) }), el("span", {}, name), more && el("small", {}, more))));
    const values = () => [...set.querySelectorAll("input:checked")].map((box) => box.value);
    return { ...base, focus: () => set.querySelector("input").focus(), value: values, element: set,
      fault: () => (needed || values().length) && (values().length < Math.max(least, needed ? 1 : 0) || values().length > most)
        ? `“${label}” takes between ${Math.max(least, 1)} and ${most} choices.` : "" };
  }
  const box = el("select", { id, required: needed, "aria-describedby": described?.id },
    el("option", { value: "" }, part.placeholder ?? "Choose"),
    options.map(([value, name, more]) => el("option", { value, selected: chosen.has(value) }, more ? `${name} — ${more}` : name)));
  return { ...base, focus: () => box.focus(), value: () => (box.value ? [box.value] : []),
    fault: () => (needed && !box.value ? `“${label}” is required.` : ""),
    element: el("div", { class: "field" }, el("label", { htmlFor: id }, head), described, box) };
}
