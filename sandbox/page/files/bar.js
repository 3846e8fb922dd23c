// The line below the messages: what is written there is said, or completes to a command with its options.
import { el } from "./dom.js";

const [SUBCOMMAND, GROUP, STRING, INTEGER, BOOLEAN, USER, CHANNEL, ROLE, MENTIONABLE, NUMBER, FILE] =
  [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11];
const PAUSE_MS = 120;

/** All commands that can be run, as { words, about, options }. */
export function leaves(commands) {
  const out = [];
  const walk = (item, words) => {
    const below = (item.options ?? []).filter((option) => [SUBCOMMAND, GROUP].includes(option.type));
    if (below.length) below.forEach((option) => walk(option, `${words} ${option.name}`));
    else out.push({ words, about: item.description, options: item.options ?? [] });
  };
  commands.filter((command) => command.type === 1).forEach((command) => walk(command, command.name));
  return out.sort((a, b) => (a.words < b.words ? -1 : 1));
}

/** How well a command fits what was typed: lower is better, null not at all. */
function fit(words, typed) {
  const parts = typed.toLowerCase().split(/\s+/).filter(Boolean);
  if (words.startsWith(parts.join(" "))) return 0;
  return parts.every((part) => words.split(" ").some((word) => word.startsWith(part))) ? 1 : words.includes(parts.join(" ")) ? 2 : null;
}

/**
 * An input with suggestions: arrows move, Enter and Tab take, Escape closes. `suggest(text)` gives
 * [{ label, about, value }], `take(item)` is told which was chosen; with `eager` the first is marked at once.
 */
function combobox(input, list, suggest, take, { eager }) {
  let items = [];
  let marked = -1;
  let asked = 0;
  const close = () => {
    asked++;
    items = [];
    marked = -1;
    if (list.dataset.of === input.id) list.hidden = true;
    input.setAttribute("aria-expanded", "false");
    input.removeAttribute("aria-activedescendant");
  };
  const mark = (index) => {
    marked = index;
    [...list.children].forEach((child, at) => child.setAttribute("aria-selected", String(at === marked)));
    const child = list.children[marked];
    if (child) {
      input.setAttribute("aria-activedescendant", child.id);
      child.scrollIntoView({ block: "nearest" });
    } else input.removeAttribute("aria-activedescendant");
  };
  const choose = (index) => { const item = items[index]; close(); take(item); };
  const open = async () => {
    const mine = ++asked;
    const found = await suggest(input.value);
    if (mine !== asked || document.activeElement !== input) return;
    items = found;
    list.dataset.of = input.id;
    list.replaceChildren(...items.map((item, index) => el("li", {
      id: `choice${index}`, role: "option", onpointerdown: (event) => event.preventDefault(), onclick: () => choose(index),
    }, el("span", {}, item.label), item.about && el("small", {}, item.about))));
    list.hidden = !items.length;
    input.setAttribute("aria-expanded", String(items.length > 0));
    mark(items.length && eager(input.value) ? 0 : -1);
  };
  Object.entries({ role: "combobox", "aria-autocomplete": "list", "aria-controls": list.id, "aria-expanded": "false" })
    .forEach(([name, value]) => input.setAttribute(name, value));
  input.addEventListener("input", open);
  input.addEventListener("focus", open);
  input.addEventListener("blur", close);
  input.addEventListener("keydown", (event) => {
    if (!items.length || event.isComposing) return;
    const step = { ArrowDown: 1, ArrowUp: -1 }[event.key];
    if (step) {
      event.preventDefault();
      mark((marked + step + items.length) % items.length);
    } else if ((event.key === "Enter" || (event.key === "Tab" && !event.shiftKey)) && marked >= 0) {
      if (event.key === "Enter") event.preventDefault();
      event.stopPropagation();
      choose(marked);
    } else if (event.key === "Escape") {
      event.stopPropagation();
      close();
    }
  });
  return { open, close };
}

/**
 * The bar. `page` gives `commands()`, `channel()`, `seen`, `refresh()`, `say(text)`, `run(words, options)`, which gives what opens a form, and
 * `complete(words, option, typed, options)`; what these throw is shown here.
 */
export class Bar {
  constructor(form, page) {
    this.page = page;
    this.list = el("ul", { id: "choices", role: "listbox", "aria-label": "Suggestions", hidden: true });
    this.hint = el("p", { id: "hint", role: "status" });
    this.line = el("input", { id: "line", type: "text", maxLength: 2000, "aria-describedby": "hint", "aria-label": "Message, or / for commands" });
    this.send = el("button", { class: "button primary", type: "submit" }, "Send");
    this.place = el("div", { class: "line" });
    form.append(this.list, this.hint, this.place);
    form.addEventListener("submit", (event) => { event.preventDefault(); this.enter(); });
    this.finder = combobox(this.line, this.list, async (text) => this.find(text), (item) => this.begin(item.value), { eager: () => true });
    this.line.addEventListener("focus", () => this.line.value.startsWith("/") || page.refresh().catch((error) => this.say(error.message)));
    this.away();
  }

  /** Back to the plain line. */
  away({ focus = false, text = "" } = {}) {
    this.command = null;
    this.fields = [];
    this.line.value = text;
    this.place.className = "line";
    this.place.onkeydown = null;
    if (!this.line.isConnected) this.place.replaceChildren(this.line, this.send);
    this.show();
    if (focus) this.line.focus();
  }

  /** Back to the plain line, where nothing is said of an option any more. */
  putAway(text = "") {
    this.say("");
    this.away({ focus: true, text });
  }

  /** What the line says of the channel one is in. */
  show() {
    const channel = this.page.channel();
    if (!channel) return;
    this.line.placeholder = channel.writes ? "Message, or / for commands" : "Type / for commands";
  }

  say(text) {
    this.hint.textContent = text;
  }

  find(text) {
    if (!text.startsWith("/")) return [];
    return leaves(this.page.commands())
      .map((command) => ({ command, rank: fit(command.words, text.slice(1)) }))
      .filter(({ rank }) => rank !== null)
      .sort((a, b) => a.rank - b.rank)
      .map(({ command }) => ({ label: `/${command.words}`, about: command.about, value: command }));
  }

  /** A command was chosen: one field for each option, the required ones first and open. */
  begin(command) {
    this.command = command;
    this.say("");
    if (!command.options.length) {
      this.enter();
      return;
    }
    this.fields = command.options.map((option) => this.field(option));
    const closed = this.fields.filter((field) => !field.option.required);
    const more = closed.map((field) => {
      field.element.hidden = true;
      return el("button", { type: "button", class: "more", title: field.option.description, onclick: (event) => {
        field.element.hidden = false;
        event.currentTarget.hidden = true;
        field.input.focus();
      } }, `+ ${field.option.name}`);
    });
    this.run = el("button", { class: "button primary", type: "submit" }, "Run");
    this.place.className = "line command";
    this.place.replaceChildren(el("b", {}, `/${command.words}`), ...this.fields.map((field) => field.element), ...more,
      el("span", { class: "ends" }, this.run,
        el("button", { class: "quiet", type: "button", "aria-label": "Put the command away", onclick: () => this.putAway() }, "✕")));
    this.place.onkeydown = (event) => {
      if (event.key === "Escape") this.putAway(`/${command.words}`);
      else if (event.key === "Backspace" && event.target.tagName === "INPUT" && !event.target.value && event.target === this.fields[0].input) {
        event.preventDefault();
        this.putAway(`/${command.words}`);
      }
    };
    const first = this.fields.find((field) => field.option.required);
    (first?.input ?? this.run).focus();
  }

  field(option) {
    const id = `option-${option.name}`;
    const file = option.type === FILE;
    const input = el("input", { id, type: file ? "file" : "text", "aria-required": option.required ? "true" : undefined, "aria-describedby": "hint",
      maxLength: file ? undefined : option.max_length ?? 6000, inputMode: [INTEGER, NUMBER].includes(option.type) && !option.autocomplete ? "numeric" : "text" });
    const element = el("label", { class: "option", title: option.description }, el("span", {}, option.name, option.required && el("span", { class: "needed" }, " *")), input);
    const field = { option, input, element, picked: null };
    const describe = () => this.say(option.description + (option.required ? " (required)" : ""));
    input.addEventListener("focus", describe);
    input.addEventListener("input", () => { field.picked = null; input.removeAttribute("aria-invalid"); });
    if (file) return field;
    combobox(input, this.list, (text) => this.suggest(field, text), (item) => {
      field.picked = item;
      input.value = item.label;
      const next = this.fields.find((other) => other.option.required && !other.input.value);
      if (next) next.input.focus();
    }, { eager: (text) => !option.autocomplete || text !== "" });
    return field;
  }

  /** What may stand in an option: fixed choices, the guild's own things, or what the bot answers. */
  async suggest(field, text) {
    const { option } = field;
    const seen = this.page.seen;
    const fitting = (items) => items.filter((item) => field.picked || item.label.toLowerCase().includes(text.toLowerCase())).slice(0, 25);
    if (option.choices) return fitting(option.choices.map((choice) => ({ label: choice.name, value: choice.value })));
    const people = () => seen.people.map((person) => ({ label: person.name, about: person.about, value: person.id }));
    const roles = () => seen.roles.map((role) => ({ label: role.name, about: "role", value: role.id }));
    if (option.type === BOOLEAN) return fitting([{ label: "true", value: true }, { label: "false", value: false }]);
    if (option.type === USER) return fitting(people());
    if (option.type === ROLE) return fitting(roles());
    if (option.type === MENTIONABLE) return fitting([...people(), ...roles()]);
    if (option.type === CHANNEL) {
      const fits = (channel) => !option.channel_types || option.channel_types.includes(channel.type);
      return fitting(seen.channels.filter(fits).map((channel) => ({ label: channel.name, value: channel.id })));
    }
    if (!option.autocomplete) return [];
    field.asked = (field.asked ?? 0) + 1;
    const [mine, command] = [field.asked, this.command];
    await new Promise((wake) => setTimeout(wake, PAUSE_MS));
    if (mine !== field.asked || command !== this.command) return [];
    const others = {};
    for (const other of this.fields) {
      if (other !== field && other.input.value && other.option.type !== FILE) {
        try { others[other.option.name] = this.value(other); } catch { /* half-typed: the bot is not told of it */ }
      }
    }
    try {
      const choices = await this.page.complete(command.words, option.name, field.picked ? "" : text, others);
      return choices.map((choice) => ({ label: choice.name, value: choice.value }));
    } catch (error) {
      if (command === this.command) this.say(error.message);
      return [];
    }
  }

  /** An option's value as Discord sends it; throws where the text cannot be one. */
  value(field) {
    const { option, input, picked } = field;
    const text = input.value.trim();
    if (picked) return picked.value;
    if (option.choices) {
      const choice = option.choices.find((item) => item.name.toLowerCase() === text.toLowerCase());
      if (!choice) throw new Error(`${option.name} must be one of: ${option.choices.map((item) => item.name).join(", ")}.`);
      return choice.value;
    }
    if (option.type === BOOLEAN) {
      if (!/^(true|false)$/i.test(text)) throw new Error(`${option.name} must be true or false.`);
      return text.toLowerCase() === "true";
    }
    if (option.type === INTEGER || option.type === NUMBER) {
      const number = Number(text.replaceAll(",", ""));
      if (!(option.type === INTEGER ? Number.isSafeInteger(number) : Number.isFinite(number))) {
        throw new Error(`${option.name} must be ${option.type === INTEGER ? "a whole number" : "a number"}.`);
      }
      if (number < (option.min_value ?? -Infinity)) throw new Error(`${option.name} must be at least ${option.min_value}.`);
      if (number > (option.max_value ?? Infinity)) throw new Error(`${option.name} must be at most ${option.max_value}.`);
      return number;
    }
    if (option.type !== STRING) return text.replace(/^[@#]/, ""); // a name of the guild's
    const [low, high] = [option.min_length ?? 0, option.max_length ?? 6000];
    if (text.length < low || text.length > high) throw new Error(`${option.name} must have between ${low} and ${high} characters.`);
    return text;
  }

  async values() {
    const out = {};
    for (const field of this.fields) {
      try {
        if (field.option.type === FILE) {
          const file = field.input.files[0];
          if (file) out[field.option.name] = { filename: file.name, content: await file.text() };
          else if (field.option.required) throw new Error(`${field.option.name} is required.`);
        } else if (field.input.value.trim()) out[field.option.name] = this.value(field);
        else if (field.option.required) throw new Error(`${field.option.name} is required: ${field.option.description}.`);
      } catch (error) {
        field.input.setAttribute("aria-invalid", "true");
        field.input.focus();
        throw error;
      }
    }
    return out;
  }

  /** Enter: says the line, or runs the command. */
  async enter() {
    if (this.busy) return;
    const words = this.line.value.trim();
    this.busy = true;
    this.place.setAttribute("aria-busy", "true");
    try {
      if (this.command) {
        const options = await this.values();
        const form = await this.page.run(this.command.words, options);
        this.away({ focus: true });
        this.say("");
        form?.(); // it gives the focus back to the line
      } else if (words.startsWith("/")) {
        const exact = leaves(this.page.commands()).find((command) => `/${command.words}` === words);
        if (exact) this.begin(exact);
        else this.say(`There is no command ${words} that you could use.`);
      } else if (words) {
        await this.page.say(words);
        this.away({ focus: true });
        this.say("");
      }
    } catch (error) {
      this.say(error.message);
    } finally {
      this.busy = false;
      this.place.removeAttribute("aria-busy");
    }
  }
}
