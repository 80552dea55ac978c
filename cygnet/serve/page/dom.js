// Building the page. Text enters it as text nodes and attributes alone: no string is ever read as
// HTML, and the page's own policy (trusted types, in index.html) refuses that everywhere.

import { t } from "./words.js";

const SVG = "http://www.w3.org/2000/svg";

// Each icon is a list of path data on a grid of 24, drawn with the text's colour.
const ICONS = {
  send: ["M12 19V5", "M6 11l6-6 6 6"],
  stop: ["M8 8h8v8H8z"],
  plus: ["M12 5v14", "M5 12h14"],
  menu: ["M4 7h16", "M4 12h16", "M4 17h16"],
  close: ["M6 6l12 12", "M18 6L6 18"],
  copy: ["M9 9h10v10H9z", "M5 15V5h10"],
  done: ["M5 12.5l4.5 4.5L19 7.5"],
  again: ["M19 12a7 7 0 1 1-2.2-5.1", "M19 4v4h-4"],
  edit: ["M5 19l1-4L16 5l3 3L9 18z", "M14 7l3 3"],
  more: ["M6 12h.01", "M12 12h.01", "M18 12h.01"],
  before: ["M14 7l-5 5 5 5"],
  after: ["M10 7l5 5-5 5"],
  down: ["M12 5v14", "M6 13l6 6 6-6"],
};

/** Return an element with attributes, listeners and children (nodes, texts, or arrays of them).
 *  `text` is its text content, `on` maps events to listeners; null and false are left out. */
export function element(tag, properties = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (value === null || value === undefined || value === false) continue;
    if (name === "text") made.textContent = value;
    else if (name === "on") for (const [event, run] of Object.entries(value)) made.addEventListener(event, run);
    else made.setAttribute(name, value === true ? "" : value);
  }
  // One by one: a hostile text makes more nodes than a call takes arguments.
  for (const child of children.flat()) if (child !== null && child !== undefined && child !== false) made.append(child);
  return made;
}

export function icon(name) {
  const svg = document.createElementNS(SVG, "svg");
  svg.setAttribute("viewBox", "0 0 24 24");
  svg.setAttribute("class", `icon icon-${name}`);
  svg.setAttribute("aria-hidden", "true");
  for (const data of ICONS[name]) {
    const path = document.createElementNS(SVG, "path");
    path.setAttribute("d", data);
    svg.append(path);
  }
  return svg;
}

/** Return a button that shows an icon alone; `label` is read aloud and shown on hovering. */
export function iconButton(name, label, click, properties = {}) {
  return element(
    "button",
    { type: "button", class: "icon-button", "aria-label": label, title: label, on: { click }, ...properties },
    icon(name),
  );
}

export const byId = (id) => document.getElementById(id);

/** Return a button that copies `text()` and says so for a moment. */
export function copyButton(text) {
  const button = iconButton("copy", t("copy"), async () => {
    const copied = await copyText(text());
    button.replaceChildren(icon(copied ? "done" : "close"));
    announce(t(copied ? "copied" : "notCopied"));
    setTimeout(() => button.replaceChildren(icon("copy")), 1500);
  });
  return button;
}

async function copyText(text) {
  try {
    await navigator.clipboard.writeText(text);
    return true;
  } catch {
    // Only pages from this machine or over TLS have a clipboard; elsewhere the old way works.
    const area = element("textarea", { class: "hidden-text", "aria-hidden": "true" });
    area.value = text;
    const focused = document.activeElement;
    document.body.append(area);
    area.select();
    const copied = document.execCommand("copy");
    area.remove();
    focused?.focus();
    return copied;
  }
}

/** Give the browser a file to keep. */
export function download(name, type, text) {
  const url = URL.createObjectURL(new Blob([text], { type }));
  element("a", { href: url, download: name }).click();
  setTimeout(() => URL.revokeObjectURL(url), 10_000);
}

/** Have a screen reader say this. */
export function announce(text) {
  byId("status").textContent = text;
}

/** Show a line at the foot of the page for a while, with one thing that can be done about it. */
export function toast(text, action = null, seconds = 8) {
  const close = () => shown.remove();
  const shown = element("div", { class: "toast", role: "status" }, element("span", { text }));
  if (action) {
    const click = () => {
      close();
      action.run();
    };
    shown.append(element("button", { type: "button", class: "text-button", text: action.label, on: { click } }));
  }
  byId("toasts").replaceChildren(shown);
  setTimeout(close, seconds * 1000);
}

/** Open a menu beside the button that was pressed: `entries` are [label, run, isDanger]. */
export function openMenu(button, entries) {
  const menu = element("div", { class: "menu", popover: "auto", role: "menu" });
  for (const [label, run, isDanger] of entries) {
    const click = () => {
      menu.hidePopover();
      run();
    };
    const danger = isDanger ? "danger" : null;
    menu.append(element("button", { type: "button", role: "menuitem", class: danger, text: label, on: { click } }));
  }
  menu.addEventListener("keydown", (event) => moveInMenu(event, menu));
  menu.addEventListener("toggle", (event) => {
    if (event.newState === "closed") menu.remove();
  });
  document.body.append(menu);
  menu.showPopover();
  const at = button.getBoundingClientRect();
  const left = Math.max(8, Math.min(at.left, innerWidth - menu.offsetWidth - 8));
  const below = at.bottom + 4 + menu.offsetHeight <= innerHeight;
  menu.style.left = `${left}px`;
  menu.style.top = `${below ? at.bottom + 4 : Math.max(8, at.top - 4 - menu.offsetHeight)}px`;
  menu.firstChild.focus();
}

function moveInMenu(event, menu) {
  const step = { ArrowDown: 1, ArrowUp: -1 }[event.key];
  if (!step) return;
  event.preventDefault();
  const entries = [...menu.children];
  const next = entries.indexOf(document.activeElement) + step;
  entries[(next + entries.length) % entries.length].focus();
}
