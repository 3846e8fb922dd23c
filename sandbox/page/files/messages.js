// A message as an element: who wrote it, its text, cards of Components V2, pictures, and what one can do with it.
import { el, hue } from "./dom.js";
import { isWeb, markdown } from "./markdown.js";

const LOADING = 128;
const HAS_THREAD = 32;
const COMPONENTS_V2 = 1 << 15;
const THREAD_CREATED = 18;
const THREAD_STARTER = 21;
const PINNED = 6;
const USED = [19, 20];
const STYLES = { 1: "primary", 2: "secondary", 3: "success", 4: "danger", 5: "secondary" };
const FROM_GUILD = { 5: "people", 6: "roles", 7: "both", 8: "channels" };

/** Whether a message is shown at all: a thread's starter is only a pointer to another message. */
export const isShown = (message) => message.type !== THREAD_STARTER;

/**
 * `page` has what a message needs of the rest: `seen` (names), `press(message, id, values)`, `choose(message, name)`
 * for the menu, `menu` (its entries), `dismiss(message)` and `thread(message)`.
 */
export function show(message, page) {
  const author = message.author;
  const name = author.global_name ?? author.username;
  const loading = Boolean(message.flags & LOADING);
  const article = el("article", {
    id: `m${message.id}`,
    class: message.private ? "message private" : "message",
    "aria-label": `${name}, ${clock(message.timestamp)}`,
  });
  if (message.type === THREAD_CREATED) {
    article.classList.add("note");
    article.append(el("p", {}, el("b", {}, name), " started a thread: ", el("b", {}, message.content)));
    return article;
  }
  if (message.type === PINNED) {
    article.classList.add("note");
    article.append(el("p", {}, el("b", {}, name), " pinned a message to this channel."));
    return article;
  }
  const used = USED.includes(message.type) && !message.private && message.interaction_metadata?.user;
  article.append(
    author.bot ? el("img", { class: "face", src: "/page/icon.svg", alt: "" })
      : el("span", { class: `face hue${hue(author.id)}`, "aria-hidden": "true" }, name[0]),
    el("header", {},
      el("b", {}, name),
      author.bot && el("span", { class: "app" }, "APP"),
      el("time", { dateTime: message.timestamp, title: new Date(message.timestamp).toLocaleString() }, clock(message.timestamp)),
      message.pinned && el("span", { class: "aside" }, "pinned"),
      used && el("span", { class: "aside" }, `for ${used.global_name ?? used.username}`),
    ),
  );
  const body = el("div", { class: "body" });
  if (loading) body.append(el("p", { class: "thinking" }, `${name} is thinking`, el("span", { class: "dots", "aria-hidden": "true" })));
  if (message.content) body.append(markdown(message.content, page.seen));
  body.append(...message.components.map((part) => component(part, message, page)));
  // Discord shows no file of a Components V2 message by itself.
  if (!(message.flags & COMPONENTS_V2)) body.append(...message.attachments.map(attached));
  if (message.edited_timestamp && !author.bot) body.append(el("small", {}, "(edited)"));
  if (message.flags & HAS_THREAD) {
    const thread = page.seen.channel(message.id);
    if (thread) body.append(el("a", { class: "thread", href: `#${thread.id}` }, el("b", {}, thread.name), el("span", {}, `${count(thread.messages - 1)} ›`)));
  }
  if (message.private) {
    body.append(el("footer", {}, "Only you can see this",
      !loading && el("button", { class: "text", type: "button", onclick: () => page.dismiss(message) }, "Dismiss message")));
  }
  article.append(body);
  if (page.menu.length && !message.private) article.append(menu(message, page));
  return article;
}

const count = (number) => (number === 1 ? "1 message" : `${Math.max(number, 0)} messages`);
const clock = (stamp) => new Date(stamp).toLocaleTimeString([], { hour: "2-digit", minute: "2-digit" });

function component(part, message, page) {
  const inside = () => part.components.map((inner) => component(inner, message, page));
  switch (part.type) {
    case 1:
      return el("div", { class: "row" }, inside());
    case 2:
      return button(part, message, page);
    case 3: case 5: case 6: case 7: case 8:
      return choice(part, message, page);
    case 9:
      return el("div", { class: "section" }, el("div", {}, inside()), component(part.accessory, message, page));
    case 10:
      return el("div", { class: "words" }, markdown(part.content, page.seen));
    case 11:
      return el("div", { class: "thumbnail" }, picture(part.media, part.description));
    case 12:
      return el("div", { class: `gallery of${Math.min(part.items.length, 4)}` }, part.items.map((item) => picture(item.media, item.description)));
    case 13:
      return attached({ url: part.file.url, filename: part.name, size: part.size ?? 0 });
    case 14:
      return part.divider ? el("hr", { class: part.spacing === 2 ? "wide" : undefined }) : el("div", { class: part.spacing === 2 ? "gap wide" : "gap" });
    case 17: {
      const card = el("section", { class: "card" }, inside());
      if (part.accent_color !== null && part.accent_color !== undefined) {
        card.style.setProperty("--accent", `#${part.accent_color.toString(16).padStart(6, "0")}`);
      }
      return card;
    }
    default:
      return el("p", { class: "aside" }, `(a component of type ${part.type}, which this page does not show)`);
  }
}

function button(part, message, page) {
  const label = [part.emoji?.name, part.label].filter(Boolean).join(" ");
  if (part.url) {
    return el("a", { class: "button secondary", href: isWeb(part.url) ? part.url : "#", target: "_blank", rel: "noopener noreferrer" }, `${label} ↗`);
  }
  return el("button", {
    type: "button", class: `button ${STYLES[part.style]}`, disabled: Boolean(part.disabled), "data-id": part.custom_id,
    onclick: (event) => page.press(message, part.custom_id, null, event.currentTarget),
  }, label);
}

/** What a select offers, as [value, label, description]. */
export function offered(part, seen) {
  if (part.options) return part.options.map((option) => [option.value, [option.emoji?.name, option.label].filter(Boolean).join(" "), option.description]);
  const people = seen.people.map((person) => [person.id, person.name, person.about]);
  const roles = seen.roles.map((role) => [role.id, `@${role.name}`, ""]);
  const channels = seen.channels.filter((item) => item.type !== 4).map((item) => [item.id, `#${item.name}`, ""]);
  return { people, roles, both: [...people, ...roles], channels }[FROM_GUILD[part.type]];
}

/** A select of a message: a list that opens, of buttons where one is chosen and of boxes where several may be. */
function choice(part, message, page) {
  const least = part.min_values ?? 1;
  const many = (part.max_values ?? 1) > 1 || least === 0;
  const already = new Set((part.options ?? []).filter((option) => option.default).map((option) => option.value));
  const named = (part.options ?? []).filter((option) => option.default).map((option) => option.label).join(", ");
  const details = el("details", { class: "choice", onkeydown: (event) => {
    if (event.key === "Escape" && details.open) { details.open = false; details.firstChild.focus(); }
  } }, el("summary", { "data-id": part.custom_id, "aria-disabled": part.disabled ? "true" : undefined }, named || part.placeholder || "Choose"));
  const done = (values) => { details.open = false; page.press(message, part.custom_id, values, details.firstChild); };
  const words = (label, about) => [el("span", {}, label), about && el("small", {}, about)];
  if (part.disabled) {
    details.addEventListener("click", (event) => event.preventDefault());
    return details;
  }
  const list = el("div", { class: "list" });
  for (const [value, label, about] of offered(part, page.seen)) {
    list.append(many
      ? el("label", {}, el("input", { type: "checkbox", value, checked: already.has(value) }), words(label, about))
      : el("button", { type: "button", "aria-pressed": already.has(value) ? "true" : undefined, onclick: () => done([value]) }, words(label, about)));
  }
  if (many) {
    const note = el("small", { role: "status" });
    list.append(el("div", { class: "row" }, el("button", { type: "button", class: "button primary", onclick: () => {
      const values = [...list.querySelectorAll("input:checked")].map((box) => box.value);
      if (values.length < least || values.length > part.max_values) note.textContent = `Between ${least} and ${part.max_values} can be chosen.`;
      else done(values);
    } }, "Choose"), note));
  }
  details.append(list);
  return details;
}

function picture(media, alt) {
  // Only files of this server: a picture from elsewhere would be a request beyond this machine.
  const url = new URL(media.url, location.href);
  if (!url.pathname.startsWith("/attachments/")) return el("a", { href: url.href, target: "_blank", rel: "noopener noreferrer" }, alt || "A picture elsewhere");
  const shown = el("img", { src: url.pathname, alt: alt ?? "", decoding: "sync" });
  if (media.width && media.height) Object.assign(shown, { width: media.width, height: media.height });
  return el("a", { class: "picture", href: url.pathname, target: "_blank", "aria-label": `${alt || "Picture"} (opens in full)` }, shown);
}

function attached(file) {
  if (/\.(png|jpe?g|gif|webp)$/i.test(file.filename ?? "")) return el("div", { class: "gallery of1" }, picture(file, file.description ?? file.filename));
  const path = new URL(file.url, location.href).pathname;
  return el("a", { class: "file", href: path, download: file.filename }, `📄 ${file.filename}`, el("small", {}, ` ${Math.ceil(file.size / 1024)} KiB`));
}

function menu(message, page) {
  const details = el("details", { class: "menu", onkeydown: (event) => {
    if (event.key === "Escape" && details.open) { details.open = false; details.firstChild.focus(); }
  } }, el("summary", { "aria-label": "What to do with this message" }, "⋯"));
  details.append(el("div", { class: "list" }, page.menu.map((name) =>
    el("button", { type: "button", onclick: () => { details.open = false; page.choose(message, name); } }, name))));
  return details;
}
