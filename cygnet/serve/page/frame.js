// What surrounds the conversation: sidebar and settings that open and close, keyboard shortcuts,
// and the scrolling that follows an answer.

import { byId, element } from "./dom.js";
import { t } from "./words.js";

const NEAR_END_PX = 60;
const narrow = matchMedia("(max-width: 760px)");
const medium = matchMedia("(max-width: 1160px)");

const SHORTCUTS = [
  [["Enter"], "keySend"], [["Shift", "Enter"], "keyLine"], [["Esc"], "keyStop"], [["↑"], "keyEdit"],
  [["/"], "keyFocus"], [["Alt", "N"], "keyNew"], [["Alt", "B"], "keyChats"], [["Alt", "S"], "keySettings"],
  [["?"], "keyHelp"],
];

/** actions: `newChat()`, `stop()`, `save()` to keep what is open in the settings. */
export class Frame {
  #isFollowing = true;
  #lastTop = 0;

  constructor(settings, actions) {
    this.settings = settings;
    this.actions = actions;
    this.scroll = byId("scroll");
    const click = (id, run) => byId(id).addEventListener("click", run);
    click("show-sidebar", () => this.#toggle("sidebar"));
    click("hide-sidebar", () => this.#toggle("sidebar"));
    click("show-panel", () => this.#toggle("panel"));
    click("hide-panel", () => this.#toggle("panel"));
    click("backdrop", () => this.hideOverlays());
    click("new-chat", () => actions.newChat());
    click("stop", () => actions.stop());
    click("show-help", () => byId("help").showModal());
    click("hide-help", () => byId("help").close());
    click("to-end", () => this.follow());
    addEventListener("keydown", (event) => this.#key(event));
    this.scroll.addEventListener("scroll", () => this.#scrolled());
    new ResizeObserver(() => this.drawn()).observe(byId("turns"));
    this.#set("sidebar", !narrow.matches && settings.sidebar !== false);
    this.#set("panel", !medium.matches && settings.panel === true);
    this.draw();
  }

  draw() {
    const keys = (names) => names.flatMap((name, index) => [index ? " + " : "", element("kbd", { text: name })]);
    const rows = SHORTCUTS.flatMap(([names, words]) => [
      element("dt", {}, ...keys(names)), element("dd", { text: t(words) }),
    ]);
    byId("shortcuts").replaceChildren(...rows);
  }

  /** Close what covers the conversation on a narrow screen. */
  hideOverlays() {
    if (narrow.matches) this.#set("sidebar", false);
    if (medium.matches) this.#set("panel", false);
  }

  #isOpen(name) {
    return document.body.classList.contains(`with-${name}`);
  }

  #set(name, isOpen) {
    document.body.classList.toggle(`with-${name}`, isOpen);
    byId(name).inert = !isOpen;
    byId(`show-${name}`).setAttribute("aria-expanded", isOpen);
  }

  #toggle(name) {
    const isOpen = !this.#isOpen(name);
    this.#set(name, isOpen);
    if (isOpen && narrow.matches) this.#set(name === "panel" ? "sidebar" : "panel", false);
    if (!(name === "sidebar" ? narrow : medium).matches) {
      this.settings[name] = isOpen;
      this.actions.save();
    }
    byId(isOpen ? `hide-${name}` : `show-${name}`).focus();
  }

  #key(event) {
    if (event.isComposing || event.defaultPrevented) return;
    const isTyping = event.target.matches?.("input, textarea, select");
    const alt = event.altKey && !event.ctrlKey && !event.metaKey;
    const plain = !event.altKey && !event.ctrlKey && !event.metaKey && !isTyping;
    const run = {
      Escape: () => this.#escape(),
      "?": plain && (() => byId("help").showModal()),
      "/": plain && (() => byId("message").focus()),
    }[event.key] || (alt && {
      // By place: Alt with a letter types another character on some keyboards.
      KeyN: () => this.actions.newChat(),
      KeyB: () => this.#toggle("sidebar"),
      KeyS: () => this.#toggle("panel"),
    }[event.code]);
    if (!run || document.querySelector("dialog[open]")) return;
    if (event.key !== "Escape") event.preventDefault();
    run();
  }

  #escape() {
    const covers = (name, screen) => screen.matches && this.#isOpen(name);
    if (covers("sidebar", narrow) || covers("panel", medium)) this.hideOverlays();
    else this.actions.stop();
  }

  // --- scrolling ------------------------------------------------------------------------------

  /** Go to the end, and stay there while it grows. */
  follow() {
    this.#isFollowing = true;
    this.drawn();
  }

  /** The conversation has grown. */
  drawn() {
    if (this.#isFollowing) this.scroll.scrollTop = this.scroll.scrollHeight;
    this.#scrolled();
  }

  #scrolled() {
    const { scrollTop, scrollHeight, clientHeight } = this.scroll;
    const isNearEnd = scrollHeight - scrollTop - clientHeight < NEAR_END_PX;
    if (isNearEnd) this.#isFollowing = true;
    else if (scrollTop < this.#lastTop) this.#isFollowing = false;
    this.#lastTop = scrollTop;
    byId("to-end").hidden = isNearEnd;
  }
}
