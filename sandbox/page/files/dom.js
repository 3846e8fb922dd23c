// Small helpers for the page's elements and its server. Text goes in as text, never as HTML.

/** An element: properties starting with "on" are listeners, "class" and names with "-" are attributes. */
export function el(tag, properties = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (value === undefined || value === null || value === false) continue;
    if (name.startsWith("on")) made.addEventListener(name.slice(2), value);
    else if (name === "class" || name === "role" || name.includes("-")) made.setAttribute(name, value === true ? "" : value);
    else made[name] = value;
  }
  made.append(...children.flat().filter((child) => child !== null && child !== undefined && child !== false));
  return made;
}

export const SILENT = "The server does not answer: is the demo still up?";

/** What the server answers; throws an Error with its sentence where it refuses. */
export async function ask(path, body) {
  const sent = body && { method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(body) };
  let response;
  try {
    response = await fetch(path, sent);
  } catch {
    throw new Error(SILENT);
  }
  const data = await response.json().catch(() => ({ error: `The server answered ${response.status}.` }));
  if (!response.ok) throw new Error(data.error ?? `The server answered ${response.status}.`);
  return data;
}

/** Orders Discord's ids, which are numbers too long for a Number, by age. */
export const byAge = (a, b) => a.length - b.length || (a < b ? -1 : a > b ? 1 : 0);

const HUES = 12;

/** One of twelve colours for a person, always the same. */
export function hue(id) {
  let sum = 0;
  for (const digit of id) sum = (sum * 31 + digit.charCodeAt(0)) % 9973;
  return sum % HUES;
}
