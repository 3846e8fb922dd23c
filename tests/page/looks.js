// What keeps a person from reading the page as it stands, or from using it: a sentence for each fault.
// `smallest` is the size, in pixels of a picture 1,000 pixels wide, of the smallest text in a loss curve.
({ smallest }) => {
  const CONTRAST = 4.5; // WCAG 2.2, 1.4.3
  const TARGET = 24; // WCAG 2.2, 2.5.8
  const GAP = 4;
  const PICTURE_TEXT = 9.5; // an x-height of 5 pixels in DejaVu Sans
  const faults = new Set();
  const named = (element) => `${element.tagName.toLowerCase()}${element.id && `#${element.id}`} “${(element.textContent || element.placeholder || element.value || "").trim().slice(0, 50)}”`;
  const visible = (element) => element.checkVisibility({ checkOpacity: true, checkVisibilityCSS: true }) && !element.closest(".unseen, .skip");
  const scrolls = (style) => ["auto", "scroll"].includes(style.overflowX);
  const all = [...document.body.querySelectorAll("*")].filter(visible);

  // Nothing is wider than the window.
  if (document.documentElement.scrollWidth > innerWidth) faults.add("the page scrolls sideways");
  for (const element of all) {
    if (scrolls(getComputedStyle(element)) && element.scrollWidth > element.clientWidth && !element.matches("pre")) faults.add(`${named(element)} scrolls sideways`);
  }

  // The part of a line that is not hidden by what holds it.
  const shown = (element, { left, right, top, bottom }) => {
    for (let it = element; it !== document.body; it = it.parentElement) {
      if (!["hidden", "clip"].includes(getComputedStyle(it).overflowX)) continue;
      const box = it.getBoundingClientRect();
      [left, right] = [Math.max(left, box.left), Math.min(right, box.right)];
    }
    return { left, right, top, bottom };
  };

  // The lines of text, each with its element and its rectangle.
  const lines = [];
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (walker.nextNode()) {
    const element = walker.currentNode.parentElement;
    if (!walker.currentNode.data.trim() || !visible(element) || element.matches("option, noscript")) continue;
    const range = document.createRange();
    range.selectNodeContents(walker.currentNode);
    for (const whole of range.getClientRects()) {
      const box = shown(element, whole);
      if (box.right > box.left + 1) lines.push({ element, box });
    }
  }
  for (const { element, box } of lines) {
    if (element.closest("pre")) continue;
    const around = element.closest("button, .button, .card, .message, .field, dialog, li, #channels a, header, footer")?.getBoundingClientRect();
    if (around && (box.left < around.left - 1 || box.right > around.right + 1)) faults.add(`${named(element)} sticks out`);
    if (box.left < -1 || box.right > innerWidth + 1) faults.add(`${named(element)} is outside the window`);
  }

  // Nothing is cut, but for what ends in “…” and says the whole under the pointer.
  const ruler = document.createElement("canvas").getContext("2d");
  const room = (element) => {
    const style = getComputedStyle(element);
    return element.clientWidth - parseFloat(style.paddingLeft) - parseFloat(style.paddingRight);
  };
  const width = (text, element) => {
    ruler.font = getComputedStyle(element).font;
    return ruler.measureText(text).width;
  };
  for (const element of all) {
    const style = getComputedStyle(element);
    const hides = ["hidden", "clip"].includes(style.overflowX) && element.textContent.trim() && element !== document.body;
    if (hides && (element.scrollWidth > element.clientWidth + 1 || element.scrollHeight > element.clientHeight + 1)) {
      const whole = element.closest("[title]")?.title ?? "";
      if (style.textOverflow !== "ellipsis" || !whole.includes(element.textContent.trim())) faults.add(`${named(element)} is cut`);
    }
    if (element.matches("input") && !element.value && width(element.placeholder, element) > room(element)) faults.add(`the placeholder of ${named(element)} is cut`);
    if (element.matches("select") && element.selectedOptions[0] && width(element.selectedOptions[0].text, element) > room(element) - 16) faults.add(`${named(element)} is cut`);
  }

  // What can be pressed is large enough, and apart from what else can be.
  const targets = all.filter((it) => it.matches("button, .button, summary, select, input:not([type=checkbox]), textarea, #choices li, #channels a, .list > *, a.thread, a.file"))
    .map((element) => ({ element, box: element.getBoundingClientRect() }));
  for (const { element, box } of targets) {
    if (Math.min(box.width, box.height) < TARGET - 0.1) faults.add(`${named(element)} is ${box.width.toFixed(0)} × ${box.height.toFixed(0)} pixels`);
  }
  const layer = (element) => element.closest("dialog, #choices, .menu > .list, #side, #messages, main");
  const listed = (element) => element.closest("#channels, #choices, .list");
  const apart = (a, b) => Math.max(a.left - b.right, b.left - a.right, a.top - b.bottom, b.top - a.bottom);
  const pairs = (one, other, tell) => one.forEach((a, index) => other.forEach((b, at) => {
    if ((one !== other || at > index) && layer(a.element) === layer(b.element) && !a.element.contains(b.element) && !b.element.contains(a.element)) tell(a, b);
  }));
  pairs(targets, targets, (a, b) => {
    if (apart(a.box, b.box) < (listed(a.element) ? 0 : GAP) - 0.1) faults.add(`${named(a.element)} is too near to ${named(b.element)}`);
  });

  // Nothing lies on something else.
  const pictures = all.filter((it) => it.matches("img")).map((element) => ({ element, box: element.getBoundingClientRect() }));
  const overlap = (a, b) => { if (apart(a.box, b.box) < -2) faults.add(`${named(a.element)} lies on ${named(b.element)}`); };
  pairs(lines, lines, overlap);
  pairs(lines, targets, overlap);
  pairs(lines, pictures, overlap);
  pairs(targets, pictures, overlap);

  // Text stands out from what is behind it.
  const colour = (text) => { const [r, g, b, a = 1] = text.match(/[\d.]+/g).map(Number); return [r, g, b, a]; };
  const over = ([r, g, b, a], [R, G, B]) => [r * a + R * (1 - a), g * a + G * (1 - a), b * a + B * (1 - a), 1];
  const behind = (element) => {
    const layers = [];
    for (let it = element; it; it = it.parentElement) {
      layers.push(colour(getComputedStyle(it).backgroundColor));
      if (layers.at(-1)[3] === 1) break;
    }
    return layers.reverse().reduce((below, above) => over(above, below), [255, 255, 255, 1]);
  };
  const light = (rgb) => {
    const [r, g, b] = rgb.slice(0, 3).map((part) => part / 255).map((part) => (part <= 0.04045 ? part / 12.92 : ((part + 0.055) / 1.055) ** 2.4));
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const dimmed = (element) => {
    let opacity = 1;
    for (let it = element; it; it = it.parentElement) opacity *= parseFloat(getComputedStyle(it).opacity);
    return opacity;
  };
  const stands = (element, ink) => {
    const ground = behind(element);
    const [r, g, b, a] = colour(ink);
    const [one, other] = [light(over([r, g, b, a * dimmed(element)], ground)), light(ground)].sort((x, y) => y - x);
    const contrast = (one + 0.05) / (other + 0.05);
    if (contrast < CONTRAST) faults.add(`${named(element)} has a contrast of ${contrast.toFixed(2)}`);
  };
  for (const element of new Set(lines.map((line) => line.element))) {
    if (!element.closest(":disabled, [aria-disabled], .spoiler")) stands(element, getComputedStyle(element).color);
  }
  for (const element of all.filter((it) => it.matches("input, textarea, select"))) {
    stands(element, getComputedStyle(element).color);
    if (element.placeholder) stands(element, getComputedStyle(element, "::placeholder").color);
  }

  // What works by a click works by keys: it takes the focus, or is chosen by arrows.
  for (const element of all) {
    const clicked = getComputedStyle(element).cursor === "pointer" && getComputedStyle(element.parentElement).cursor !== "pointer";
    if (clicked && element.tabIndex < 0 && !element.matches("#choices li, label")) faults.add(`${named(element)} takes no focus`);
  }

  // The text in a loss curve is large enough as it is shown.
  for (const { element, box } of pictures) {
    if (element.naturalWidth !== 1000) continue;
    const high = (smallest * box.width) / element.naturalWidth;
    if (high < PICTURE_TEXT) faults.add(`the text of “${element.alt.slice(0, 40)}” is ${high.toFixed(1)} pixels high`);
  }
  return [...faults];
}
