// Discord's markdown as elements. Nothing a member wrote is ever read as HTML.
import { el } from "./dom.js";

const WEB = /^https?:\/\//;

// Tried in this order at each place; the first that fits there wins.
const INLINE = [
  [/^\\([^A-Za-z0-9\s])/, (m) => m[1]],
  [/^``([^]+?)``(?!`)/, (m) => el("code", {}, m[1].trim())],
  [/^`([^`]+)`/, (m) => el("code", {}, m[1])],
  [/^\[((?:\\.|[^\]\\])+)\]\(<?(https?:\/\/[^\s)>]+)>?(?:\s+"[^"]*")?\)/, (m, seen) => link(m[2], inline(m[1], seen), seen)],
  [/^<(https?:\/\/[^\s>]+)>/, (m, seen) => link(m[1], [m[1]], seen)],
  [/^https?:\/\/[^\s<]*[^\s<.,:;"'\])*_~|]/, (m, seen) => link(m[0], [m[0]], seen)],
  [/^<#(\d+)>/, (m, seen) => channel(m[1], seen)],
  [/^<@!?(\d+)>/, (m, seen) => el("span", { class: "mention" }, `@${seen.person(m[1])}`)],
  [/^<@&(\d+)>/, (m, seen) => el("span", { class: "mention" }, `@${seen.role(m[1])}`)],
  [/^<\/([^:>]+):\d+>/, (m) => el("span", { class: "mention" }, `/${m[1]}`)],
  [/^<t:(-?\d+)(?::([tTdDfFR]))?>/, (m) => time(Number(m[1]), m[2] ?? "f") ?? m[0]],
  [/^<a?:(\w+):\d+>/, (m) => `:${m[1]}:`],
  [/^\*\*\*(?=\S)([^]+?)\*\*\*/, (m, seen) => el("b", {}, el("i", {}, inline(m[1], seen)))],
  [/^\*\*(?=\S)((?:\\.|[^\\])+?)\*\*(?!\*)/, (m, seen) => el("b", {}, inline(m[1], seen))],
  [/^__((?:\\.|[^\\])+?)__(?!_)/, (m, seen) => el("u", {}, inline(m[1], seen))],
  [/^\*(?=\S)((?:\\.|[^\\*])+?)\*(?!\*)/, (m, seen) => el("i", {}, inline(m[1], seen))],
  [/^_(?=\S)((?:\\.|[^\\_])+?)_(?![A-Za-z0-9_])/, (m, seen) => el("i", {}, inline(m[1], seen))],
  [/^~~((?:\\.|[^\\])+?)~~/, (m, seen) => el("s", {}, inline(m[1], seen))],
  [/^\|\|([^]+?)\|\|/, (m, seen) => spoiler(inline(m[1], seen))],
];

function link(url, children, seen) {
  const place = url.match(/^https:\/\/discord\.com\/channels\/\d+\/(\d+)(?:\/(\d+))?$/);
  if (place && seen.channel(place[1])) {
    return el("a", { href: `#${place[1]}${place[2] ? `/${place[2]}` : ""}` }, children);
  }
  return el("a", { href: url, target: "_blank", rel: "noopener noreferrer" }, children);
}

function channel(id, seen) {
  const found = seen.channel(id);
  if (!found) return el("span", { class: "mention" }, "#unknown");
  return el("a", { class: "mention", href: `#${id}` }, `#${found.name}`);
}

function spoiler(children) {
  const shown = el("span", { class: "spoiler", role: "button", tabIndex: 0, "aria-label": "Spoiler: show" }, children);
  const show = () => { shown.className = ""; shown.removeAttribute("role"); shown.removeAttribute("aria-label"); };
  shown.addEventListener("click", show);
  shown.addEventListener("keydown", (event) => event.key === "Enter" && show());
  return shown;
}

/** A moment in the reader's own time; null where it is beyond what a Date can say. */
function time(seconds, style) {
  const at = new Date(seconds * 1000);
  if (Number.isNaN(at.getTime())) return null;
  const short = { dateStyle: "medium" };
  const said = {
    t: () => at.toLocaleTimeString([], { timeStyle: "short" }),
    T: () => at.toLocaleTimeString(),
    d: () => at.toLocaleDateString(),
    D: () => at.toLocaleDateString([], { dateStyle: "long" }),
    f: () => at.toLocaleString([], { ...short, timeStyle: "short" }),
    F: () => at.toLocaleString([], { dateStyle: "full", timeStyle: "short" }),
    R: () => relative(seconds - Date.now() / 1000),
  }[style]();
  return el("time", { dateTime: at.toISOString(), title: at.toLocaleString() }, said);
}

function relative(seconds) {
  const units = [["day", 86400], ["hour", 3600], ["minute", 60], ["second", 1]];
  const [unit, size] = units.find(([, size]) => Math.abs(seconds) >= size) ?? units[3];
  return new Intl.RelativeTimeFormat("en", { numeric: "auto" }).format(Math.round(seconds / size), unit);
}

function inline(text, seen) {
  const out = [];
  let plain = "";
  let rest = text;
  let before = "";
  while (rest) {
    let taken = null;
    for (const [pattern, make] of INLINE) {
      const match = rest.match(pattern);
      // An underscore within a word, as in snake_case, is only an underscore.
      if (match && !(match[0].startsWith("_") && /[A-Za-z0-9]/.test(before))) {
        taken = [match[0], make(match, seen)];
        break;
      }
    }
    if (taken) {
      if (plain) out.push(plain);
      plain = "";
      out.push(taken[1]);
      before = taken[0].at(-1);
      rest = rest.slice(taken[0].length);
    } else {
      // All plain letters at once: only these signs can begin something.
      const run = rest.match(/^(?:[^\\`[<*_~|h]+|[^])/)[0];
      plain += run;
      before = run.at(-1);
      rest = rest.slice(run.length);
    }
  }
  if (plain) out.push(plain);
  return out;
}

/** The elements of a text; `seen` knows channels, people and roles by id. */
export function markdown(text, seen) {
  const out = document.createDocumentFragment();
  const lines = text.split("\n");
  let paragraph = [];
  const flush = () => {
    if (paragraph.length) out.append(el("p", {}, inline(paragraph.join("\n"), seen)));
    paragraph = [];
  };
  for (let at = 0; at < lines.length; at++) {
    const line = lines[at];
    const fence = line.match(/^```(\w*)$/);
    const end = fence ? lines.findIndex((other, index) => index > at && other.trimEnd().endsWith("```")) : -1;
    const whole = line.match(/^```(.+)```$/);
    const heading = line.match(/^(#{1,3}) +(.+)/);
    const small = line.match(/^-# +(.+)/);
    if (fence && end > 0) {
      flush();
      const code = [...lines.slice(at + 1, end), lines[end].replace(/```\s*$/, "")].join("\n").replace(/\n$/, "");
      out.append(el("pre", { tabIndex: 0 }, el("code", {}, code)));
      at = end;
    } else if (whole) {
      flush();
      out.append(el("pre", { tabIndex: 0 }, el("code", {}, whole[1])));
    } else if (heading) {
      flush();
      out.append(el(`h${heading[1].length + 2}`, {}, inline(heading[2], seen)));
    } else if (small) {
      flush();
      out.append(el("small", {}, inline(small[1], seen)));
    } else if (line.startsWith(">>> ")) {
      flush();
      out.append(el("blockquote", {}, markdown([line.slice(4), ...lines.slice(at + 1)].join("\n"), seen)));
      at = lines.length;
    } else if (line.startsWith("> ")) {
      flush();
      const quoted = [];
      while (at < lines.length && lines[at].startsWith("> ")) quoted.push(lines[at++].slice(2));
      at--;
      out.append(el("blockquote", {}, markdown(quoted.join("\n"), seen)));
    } else if (/^ *(?:[-*]|\d+\.) +\S/.test(line)) {
      flush();
      at = list(lines, at, out, seen);
    } else if (!line.trim()) {
      flush();
    } else {
      paragraph.push(line);
    }
  }
  flush();
  return out;
}

function list(lines, from, out, seen) {
  const item = /^( *)([-*]|\d+\.) +(\S.*)/;
  const ordered = /\d/.test(lines[from].match(item)[2]);
  const made = el(ordered ? "ol" : "ul", ordered ? { start: parseInt(lines[from].trim(), 10) } : {});
  let at = from;
  for (; at < lines.length; at++) {
    const match = lines[at].match(item);
    if (!match || /\d/.test(match[2]) !== ordered) break;
    made.append(el("li", { class: match[1].length > 1 ? "deep" : undefined }, inline(match[3], seen)));
  }
  out.append(made);
  return at - 1;
}

/** The text without its signs, for announcements. */
export function plain(text, seen) {
  return el("div", {}, markdown(text, seen)).textContent;
}

export const isWeb = (url) => WEB.test(url);
