// The page: what is known of the guild, who one is, which channel is open, and what the server tells.
import { Bar } from "./bar.js";
import { SILENT, ask, byAge, el } from "./dom.js";
import * as forms from "./forms.js";
import { plain } from "./markdown.js";
import { isShown, show } from "./messages.js";

const by = (id) => document.getElementById(id);
const box = by("messages");
const [CATEGORY, TEXT] = [4, 0];
const MESSAGE_MENU = 3;
const THREADS_SHOWN = 8;
const NEAR_PIXELS = 80;

const known = {
  guild: { guild: {}, bot: {}, people: [], roles: [], channels: [], commands: [] }, // what /sandbox/page says
  open: "", // the channel's id
  messages: new Map(), // of the open channel, by id
  privates: new Map(), // answers that this person alone sees, by id
  dismissed: new Set(), // of these, by id: an edit does not bring one back
  unread: new Set(),
  more: false,
  allThreads: false,
};

const seen = {
  get people() { return known.guild.people; },
  get roles() { return known.guild.roles.filter((role) => role.id !== known.guild.guild.id); },
  get channels() { return known.guild.channels; },
  channel: (id) => known.guild.channels.find((channel) => channel.id === id),
  person: (id) => [known.guild.bot, ...known.guild.people].find((person) => person.id === id)?.name ?? "someone",
  role: (id) => known.guild.roles.find((role) => role.id === id)?.name ?? "role",
};

const page = {
  seen,
  menu: [],
  channel: () => seen.channel(known.open),
  commands: () => known.guild.commands,
  refresh: () => refresh(),
  async say(content) {
    await ask(`/sandbox/channels/${known.open}/messages`, { user: me(), content });
  },
  run: (command, options) => act("command", { channel: known.open, command, options }),
  async complete(command, option, typed, options) {
    const answer = await ask("/sandbox/interactions/autocomplete", { user: me(), channel: known.open, command, option, typed, options });
    if (answer.kind === "none") throw new Error(`${known.guild.bot.name} sent no suggestions in time. Type on to ask again.`);
    return answer.choices;
  },
  press(message, target, values, button) {
    return busy(button, () => act("press", { message_id: message.id, target, values }));
  },
  choose: (message, name) => busy(null, () => act("menu", { message_id: message.id, name })),
  dismiss(message) {
    known.dismissed.add(message.id);
    known.privates.delete(message.id);
    by(`m${message.id}`)?.remove();
    bar.line.focus();
  },
};

const me = () => known.guild.you;
const bar = new Bar(by("bar"), page);

/** Does something that a person asked for, with its button showing that it is under way. */
async function busy(button, work) {
  button?.setAttribute("aria-busy", "true");
  try {
    const form = await work();
    bar.say("");
    form?.();
  } catch (error) {
    bar.say(error.message);
  } finally {
    button?.removeAttribute("aria-busy");
  }
}

/** An act of this person. Messages that answer it come by the stream; where it is a form, what opens it is given. */
async function act(kind, body) {
  const answer = await ask(`/sandbox/interactions/${kind}`, { user: me(), timeout: 0, ...body });
  if (answer.kind === "none") throw new Error(`${known.guild.bot.name} did not answer in time. Try it again.`);
  if (!answer.form) return null;
  return () => forms.open(answer.form, seen, (values) => act("submit", { interaction_id: answer.interaction_id, values }));
}

// --- The guild, the list of channels, and who one is

async function refresh() {
  const who = known.guild.you ?? sessionStorage.getItem("you");
  let guild;
  try {
    guild = await ask(`/sandbox/page${who ? `?user=${who}` : ""}`);
  } catch (error) {
    if (known.guild.you || !who) throw error;
    sessionStorage.removeItem("you");
    guild = await ask("/sandbox/page");
  }
  known.guild = guild;
  sessionStorage.setItem("you", guild.you);
  page.menu = guild.commands.filter((command) => command.type === MESSAGE_MENU).map((command) => command.name);
  by("guild").textContent = guild.guild.name;
  by("state").textContent = guild.bot.connected
    ? "A Discord on this machine alone: nothing leaves it."
    : `${guild.bot.name} is not connected: commands and buttons wait for it.`;
  drawPeople();
  drawChannels();
  drawHead();
}

function drawPeople() {
  const options = known.guild.people.map((person) =>
    el("option", { value: person.id, selected: person.id === me() }, `${person.name}, ${person.about}`));
  by("who").replaceChildren(...options);
}

function drawChannels() {
  const { channels } = known.guild;
  const focused = document.activeElement?.closest("#channels a")?.getAttribute("href");
  const below = (id) => channels.filter((channel) => channel.type !== CATEGORY && channel.type < 10 && (channel.parent_id ?? "") === id)
    .sort((a, b) => a.position - b.position);
  const here = seen.channel(known.open);
  const opened = here?.type >= 10 ? here.parent_id : known.open;
  const entry = (channel, thread = false) => el("a", {
    href: `#${channel.id}`, title: channel.name, class: [thread ? "thread" : "", known.unread.has(channel.id) ? "unread" : ""].join(" ").trim() || undefined,
    "aria-current": channel.id === known.open ? "page" : undefined,
  }, el("span", { "aria-hidden": "true" }, thread ? "" : "#"), el("span", {}, channel.name),
  known.unread.has(channel.id) && el("span", { class: "unseen" }, " (unread)"));
  const threads = (channel) => {
    const own = channels.filter((thread) => thread.type >= 10 && thread.parent_id === channel.id && (!thread.archived || thread.id === known.open))
      .sort((a, b) => byAge(b.last_message_id ?? b.id, a.last_message_id ?? a.id));
    if (channel.id !== opened) return own.filter((thread) => known.unread.has(thread.id)).slice(0, 3);
    const few = known.allThreads ? own : own.filter((thread, index) => index < THREADS_SHOWN || thread.id === known.open);
    few.rest = own.length - few.length;
    return few;
  };
  const branch = (channel) => {
    const own = threads(channel);
    return [entry(channel), ...own.map((thread) => entry(thread, true)),
      own.rest > 0 && el("button", { class: "text", type: "button", onclick: () => { known.allThreads = true; drawChannels(); } }, `${own.rest} more threads`)];
  };
  const groups = [["", below("")], ...channels.filter((channel) => channel.type === CATEGORY)
    .sort((a, b) => a.position - b.position).map((category) => [category.name, below(category.id)])];
  by("channels").replaceChildren(...groups.filter(([, own]) => own.length).flatMap(([name, own]) =>
    [name && el("h3", {}, name), ...own.flatMap(branch)]).filter(Boolean));
  if (focused) by("channels").querySelector(`a[href="${focused}"]`)?.focus();
}

function drawHead() {
  const channel = seen.channel(known.open);
  if (!channel) return;
  const parent = channel.type >= 10 ? seen.channel(channel.parent_id) : null;
  by("name").replaceChildren(...(parent ? [el("a", { href: `#${parent.id}` }, `#${parent.name}`), el("span", {}, " › ")] : []),
    el("b", {}, parent ? channel.name : `#${channel.name}`));
  by("name").title = by("name").textContent;
  by("topic").title = by("topic").textContent = plain(channel.topic ?? "", seen);
  document.title = `${channel.name} · ${known.guild.guild.name}`;
  bar.show();
}

async function become(id) {
  known.guild.you = id;
  known.privates.clear();
  known.messages.clear();
  bar.away();
  bar.say("");
  await refresh();
  if (!seen.channel(known.open)) location.hash = firstChannel();
  listen();
}

const firstChannel = () => {
  const { channels } = known.guild;
  return (channels.find((channel) => channel.name === "proposals") ?? channels.find((channel) => channel.type === TEXT))?.id ?? "";
};

// --- The messages of the open channel

const all = () => [...known.messages.values(), ...[...known.privates.values()].filter((message) => message.channel_id === known.open)]
  .filter(isShown).sort((a, b) => byAge(a.id, b.id));
const atEnd = () => box.scrollHeight - box.scrollTop - box.clientHeight < NEAR_PIXELS;
const toEnd = () => { box.scrollTop = box.scrollHeight; };

// Where the end was in view, it stays there when the bar, the window or a phone's keyboard take or give room. A change of
// size scrolls, too, and says so before it tells the observer: only a scroll at the size known is the reader's.
let following = true;
let size = "";
const sizeNow = () => `${box.clientWidth} ${box.clientHeight}`;
box.addEventListener("scroll", () => { if (size === sizeNow()) following = atEnd(); });
new ResizeObserver(() => {
  size = sizeNow();
  if (following) toEnd();
}).observe(box);

async function openChannel(id, message) {
  const changed = known.open !== id;
  known.open = id;
  known.unread.delete(id);
  known.allThreads = known.allThreads && !changed;
  drawChannels();
  drawHead();
  if (changed) {
    known.messages.clear();
    known.more = false;
    delete box.dataset.channel;
    box.replaceChildren();
    bar.away();
  }
  await load();
  if (message) by(`m${message}`)?.scrollIntoView({ block: "start" });
}

// What the server tells while a channel is read, a list for each reading: it may be newer than what is read.
const meanwhile = new Set();

/** Reads the channel anew, keeping the place where one reads. */
async function load() {
  const id = known.open;
  const same = box.dataset.channel === id;
  const end = !same || atEnd();
  const told = [];
  meanwhile.add(told);
  const got = await ask(`/sandbox/page/channels/${id}?user=${me()}`).finally(() => meanwhile.delete(told));
  if (id !== known.open) return;
  const earlier = same ? [...known.messages.values()].filter((old) => got.messages.length && byAge(old.id, got.messages[0].id) < 0) : [];
  known.messages = new Map([...earlier, ...got.messages].map((item) => [item.id, item]));
  known.more = earlier.length ? known.more : got.more;
  for (const event of told) {
    if (event.kind === "gone") known.messages.delete(event.id);
    if (event.kind === "message" && event.message.channel_id === id && !event.message.private) keep(event.message);
  }
  const top = box.scrollTop;
  box.dataset.channel = id;
  draw();
  box.scrollTop = end ? box.scrollHeight : top;
  await settled(box);
  if (end && id === known.open) toEnd();
}

const settled = (element) => Promise.all([...element.querySelectorAll("img")].map((image) => image.decode().catch(() => {})));

function draw() {
  const channel = seen.channel(known.open);
  const parts = [];
  if (known.more) parts.push(el("button", { class: "button secondary earlier", type: "button", onclick: earlier }, "Show earlier messages"));
  else parts.push(beginning(channel));
  let day = "";
  for (const message of all()) {
    const its = new Date(message.timestamp).toLocaleDateString([], { dateStyle: "long" });
    if (its !== day) parts.push(el("p", { class: "day" }, el("span", {}, its)));
    day = its;
    parts.push(show(message, page));
  }
  box.replaceChildren(...parts);
}

function beginning(channel) {
  const parent = channel?.type >= 10 ? seen.channel(channel.parent_id) : null;
  if (parent) {
    return el("p", { class: "beginning" }, "A thread of ", el("a", { href: `#${parent.id}/${channel.id}` }, `the message in #${parent.name}`), ".");
  }
  return el("p", { class: "beginning" }, all().length ? `This is where #${channel.name} begins.` : `Nothing has been said in #${channel?.name} yet.`);
}

async function earlier() {
  const oldest = all()[0];
  const got = await ask(`/sandbox/page/channels/${known.open}?user=${me()}&before=${oldest.id}`);
  known.messages = new Map([...got.messages.map((item) => [item.id, item]), ...known.messages]);
  known.more = got.more;
  const fromEnd = box.scrollHeight - box.scrollTop;
  draw();
  box.scrollTop = box.scrollHeight - fromEnd;
  by(`m${oldest.id}`)?.querySelector("a, button")?.focus({ preventScroll: true });
}

/** Keeps a message in its newest state: whether this is it. */
function keep(message) {
  const place = message.private ? known.privates : known.messages;
  const old = place.get(message.id);
  if (old && (old.edited_timestamp ?? "") > (message.edited_timestamp ?? "")) return false;
  if (!old && known.more && byAge(message.id, all()[0]?.id ?? "") < 0) return false;
  place.set(message.id, message);
  return true;
}

/** A message that came or changed. */
async function arrived(message) {
  if (known.dismissed.has(message.id)) return;
  const place = message.private ? known.privates : known.messages;
  if (message.channel_id !== known.open) {
    if (message.private) place.set(message.id, message);
    if (!known.unread.has(message.channel_id) && !message.edited_timestamp) {
      known.unread.add(message.channel_id);
      drawChannels();
    }
    return;
  }
  const old = place.get(message.id);
  if (!keep(message) || !isShown(message)) return;
  if (old) await redraw(message, old);
  else append(message);
}

function append(message) {
  const end = atEnd();
  const before = all().at(-2);
  // One that is older than the last, and days that change, are rare: then everything is drawn anew.
  const last = all().at(-1) === message && before && new Date(before.timestamp).toDateString() === new Date(message.timestamp).toDateString();
  const top = box.scrollTop;
  if (last) box.append(show(message, page));
  else draw();
  const shown = by(`m${message.id}`);
  shown.classList.add("new");
  if (end || message.private) { toEnd(); settled(shown).then(() => (end || message.private) && toEnd()); } else box.scrollTop = top;
  announce(message);
}

/** What stands in a message's new state where something stood in the old: what has its id, or else its place. */
function successor(element, shown, made) {
  const id = element.dataset.id;
  const those = (article) => [...article.querySelectorAll(element.tagName)];
  return (id && made.querySelector(`[data-id="${CSS.escape(id)}"]`)) ?? those(made)[those(shown).indexOf(element)];
}

/** Puts a message's new state in the place of the old, when its pictures are there: nothing jumps, nothing flickers. */
async function redraw(message, old) {
  const made = show(message, page);
  await Promise.race([settled(made), new Promise((wake) => setTimeout(wake, 1000))]);
  const place = message.private ? known.privates : known.messages;
  const shown = by(`m${message.id}`);
  if (place.get(message.id) !== message || !shown) return; // it changed again, or is gone
  const focused = shown.contains(document.activeElement) ? document.activeElement : null;
  const opened = shown.querySelector("details[open] > summary");
  const [focus, open] = [focused, opened].map((element) => element && successor(element, shown, made));
  const end = atEnd();
  const above = shown.getBoundingClientRect().bottom <= box.getBoundingClientRect().top + 1;
  const height = shown.offsetHeight;
  const answered = old.private && old.flags !== message.flags;
  if (!answered && message !== old) made.classList.add("changed");
  shown.replaceWith(made);
  open?.parentElement.setAttribute("open", "");
  if (end) toEnd();
  else if (above) box.scrollTop += made.offsetHeight - height;
  focus?.focus({ preventScroll: true });
  if (focused && !made.contains(document.activeElement)) {
    made.tabIndex = -1;
    made.focus({ preventScroll: true });
  }
  if (answered) announce(message);
}

function announce(message) {
  const author = message.author.global_name ?? message.author.username;
  const texts = (parts) => parts.flatMap((part) => [part.content ?? "", ...texts([...(part.components ?? [])])]);
  const said = plain([message.content, ...texts(message.components)].filter(Boolean).join("\n"), seen);
  by("said").textContent = `${author}: ${said.slice(0, 200)}`;
}

function gone({ id }) {
  known.messages.delete(id);
  known.privates.delete(id);
  by(`m${id}`)?.remove();
}

// --- What the server tells

let source = null;
let changes = 0;

function listen() {
  source?.close();
  source = new EventSource(`/sandbox/page/stream?user=${me()}`);
  // Also after a break: what was missed is read anew.
  source.onopen = () => {
    if (bar.hint.textContent === SILENT) bar.say("");
    refresh().then(load).catch((error) => bar.say(error.message));
  };
  source.onmessage = ({ data }) => {
    const event = JSON.parse(data);
    for (const told of meanwhile) told.push(event);
    if (event.kind === "message") arrived(event.message);
    if (event.kind === "gone") gone(event);
    if (event.kind === "guild") guildChanged();
  };
  source.onerror = () => {
    if (by("state").textContent !== SILENT) bar.say(SILENT); // once, since it tries again twice a second
    by("state").textContent = SILENT;
  };
}

/** Many changes at once, as when a project gets its channel, are read once. */
function guildChanged() {
  clearTimeout(changes);
  changes = setTimeout(async () => {
    const named = (guild) => guild.channels.map(({ id, name }) => `${id} ${name}`).join();
    const before = named(known.guild);
    await refresh().catch((error) => bar.say(error.message));
    if (!seen.channel(known.open)) location.hash = firstChannel();
    else if (named(known.guild) !== before) all().filter(pointsElsewhere).forEach((message) => redraw(message, message));
  }, 100);
}

/** Whether a message names channels, or has a thread: what it shows depends on the guild too. */
const pointsElsewhere = (message) => seen.channel(message.id) || by(`m${message.id}`)?.querySelector(".mention");

// --- Keys, the drawer, and the beginning

function drawer(open) {
  document.body.classList.toggle("drawer", open);
  document.querySelector("main").inert = open;
  by("open").setAttribute("aria-expanded", String(open));
  if (open) (by("channels").querySelector("[aria-current]") ?? by("channels").querySelector("a"))?.focus();
}

function route() {
  const [id, message] = location.hash.slice(1).split("/");
  drawer(false);
  if (!seen.channel(id)) location.replace(`#${firstChannel()}`);
  else openChannel(id, message).catch((error) => bar.say(error.message));
}

by("open").onclick = () => drawer(true);
by("shut").onclick = () => { drawer(false); by("open").focus(); };
by("veil").onclick = () => drawer(false);
matchMedia("(max-width: 760px)").onchange = () => drawer(false); // a wide window has no drawer
by("skip").onclick = (event) => { event.preventDefault(); drawer(false); bar.line.focus(); };
by("who").onchange = (event) => become(event.target.value).catch((error) => bar.say(error.message));
by("join").onclick = () => forms.open({ title: "Join as a newcomer", components: [
  { type: 18, label: "Your name", component: { type: 4, style: 1, custom_id: "name", max_length: 32, value: "" } },
] }, seen, async ({ name }) => become((await ask("/sandbox/members", { name: name.trim() })).id));
by("channels").onkeydown = (event) => {
  const step = { ArrowDown: 1, ArrowUp: -1 }[event.key];
  if (!step) return;
  event.preventDefault();
  const links = [...by("channels").querySelectorAll("a")];
  links[(links.indexOf(document.activeElement) + step + links.length) % links.length].focus();
};
document.addEventListener("keydown", (event) => {
  if (document.querySelector("dialog[open]")) return;
  if (event.key === "Escape" && document.body.classList.contains("drawer")) { drawer(false); by("open").focus(); }
  if (event.key === "/" && !/^(INPUT|TEXTAREA|SELECT)$/.test(document.activeElement.tagName)) {
    event.preventDefault();
    bar.line.value = "/";
    bar.line.focus();
  }
});
document.addEventListener("click", (event) => {
  for (const details of document.querySelectorAll("details[open]")) if (!details.contains(event.target)) details.open = false;
});
window.addEventListener("hashchange", route);

await refresh();
route();
listen();
