// The only way in which this page makes elements. Strings become text nodes, never markup.

const SVG = "http://www.w3.org/2000/svg";

/** An element. Properties that start with "on" are listeners; null, undefined and false leave an attribute out. */
export function el(tag, attributes = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (value === null || value === undefined || value === false) continue;
    if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else node.setAttribute(name, value === true ? "" : value);
  }
  node.append(...children.flat().filter((child) => child !== null && child !== undefined && child !== false));
  return node;
}

// 24 by 24 outlines.
const PATHS = {
  send: "M4 12 20 4l-4.500 16-4-6.500L4 12Zm7.500 1.500L20 4",
  attach: "m20 11-8.300 8.300a5 5 0 0 1-7-7L13 4a3.300 3.300 0 0 1 4.700 4.700l-8.300 8.200a1.700 1.700 0 0 1-2.300-2.300L14.500 7",
  compose: "M12 5H6a2 2 0 0 0-2 2v11a2 2 0 0 0 2 2h11a2 2 0 0 0 2-2v-6m-1.500-8.500a2.100 2.100 0 0 1 3 3L12 15l-4 1 1-4 8.500-8.500Z",
  back: "m15 5-7 7 7 7",
  search: "M11 18a7 7 0 1 0 0-14 7 7 0 0 0 0 14Zm5-2 5 5",
  close: "M6 6l12 12M18 6 6 18",
  down: "M12 4v12m-5-5 5 5 5-5M5 20h14",
  file: "M13 3H7a2 2 0 0 0-2 2v14a2 2 0 0 0 2 2h10a2 2 0 0 0 2-2V9l-6-6Zm0 0v6h6",
  reply: "m9 7-5 5 5 5m-5-5h10a6 6 0 0 1 6 6v1",
  leave: "M14 4h4a2 2 0 0 1 2 2v12a2 2 0 0 1-2 2h-4M4 12h11m-4-4 4 4-4 4",
  clock: "M12 21a9 9 0 1 0 0-18 9 9 0 0 0 0 18Zm0-14v5l3 2",
  tick: "m5 13 4.500 4.500L19 7",
  ticks: "m1.500 13 4.500 4.500L15 7m-4.500 9 1.500 1.500L22 7",
  alert: "M12 7v6m0 3.500v.1M12 21a9 9 0 1 0 0-18 9 9 0 0 0 0 18Z",
  latest: "m6 9 6 6 6-6",
  retry: "M20 11a8 8 0 1 0-2 6.300M20 5v6h-6",
};

export function icon(name, className = "") {
  const svg = document.createElementNS(SVG, "svg");
  svg.setAttribute("viewBox", "0 0 24 24");
  svg.setAttribute("class", `icon ${className}`);
  svg.setAttribute("aria-hidden", "true");
  const path = document.createElementNS(SVG, "path");
  path.setAttribute("d", PATHS[name]);
  svg.append(path);
  return svg;
}

/** Make `parent` hold exactly `nodes`, moving as little as possible, so that focus and scroll survive. */
export function place(parent, nodes) {
  const wanted = new Set(nodes);
  for (const child of [...parent.childNodes]) if (!wanted.has(child)) child.remove();
  nodes.forEach((node, index) => {
    if (parent.childNodes[index] !== node) parent.insertBefore(node, parent.childNodes[index] ?? null);
  });
}

/** An observer tells what changes, and to whoever begins to observe how it is: so let it begin again. */
export function observeAnew(observer, node) {
  observer.unobserve(node);
  observer.observe(node);
}

export function toast(text, kind = "info") {
  const note = el("div", { class: `toast ${kind}` }, text);
  document.getElementById("toasts").append(note);
  setTimeout(() => note.remove(), 6000);
}
