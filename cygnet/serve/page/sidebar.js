// The list of conversations.

import { toRows, toText } from "./conversation.js";
import { byId, download, element, iconButton, openMenu } from "./dom.js";
import { t } from "./words.js";

/** Return a file's name from a title. */
const fileName = (title, ending) => `${title.replace(/[\\/:*?"<>|\s\p{C}]+/gu, " ").trim() || "chat"}.${ending}`;

/** Shows the conversations in #chats.
 *  actions: `open(conversation)`, `rename(conversation, title)`, `remove(conversations)`,
 *  `removeDamaged()`. */
export class Sidebar {
  constructor(actions) {
    this.actions = actions;
  }

  /** @param conversations newest first; @param current the one that is open, or null;
   *  @param damaged [key, text] of those that can't be read. */
  show(conversations, current, damaged) {
    const list = byId("chats");
    const groups = Map.groupBy(conversations, (conversation) => dayOf(conversation.updated));
    const parts = [...groups].flatMap(([day, members]) => [
      element("h3", { text: t(day) }),
      element("ul", {}, ...members.map((conversation) => this.#entry(conversation, conversation === current))),
    ]);
    const nothing = element("p", { class: "note", text: t("noChats") });
    list.replaceChildren(...(parts.length ? parts : [nothing]), this.#damaged(damaged));
    byId("all-chats").hidden = !conversations.length;
    byId("all-chats").onclick = () => this.#allMenu(conversations);
  }

  #entry(conversation, isCurrent) {
    const { title } = conversation;
    const open = element("button", {
      type: "button", class: "chat", "aria-current": isCurrent && "page", dir: "auto", text: title, title,
      on: { click: () => this.actions.open(conversation) },
    });
    const item = element("li", {}, open);
    const menu = (event) => this.#menu(event.currentTarget, conversation, item);
    item.append(iconButton("more", t("more", { title }), menu, { "aria-haspopup": "menu" }));
    return item;
  }

  #menu(button, conversation, item) {
    const { title } = conversation;
    openMenu(button, [
      [t("rename"), () => this.#rename(conversation, item)],
      [t("exportText"), () => download(fileName(title, "md"), "text/markdown", toText(conversation))],
      [t("exportRows"), () => download(fileName(title, "jsonl"), "application/jsonl", toRows(conversation))],
      [t("remove"), () => this.actions.remove([conversation]), true],
    ]);
  }

  #allMenu(conversations) {
    const rows = () => download("chats.jsonl", "application/jsonl", conversations.map(toRows).join(""));
    openMenu(byId("all-chats"), [
      [t("exportAll"), rows],
      [t("removeAll"), () => this.actions.remove(conversations), true],
    ]);
  }

  #rename(conversation, item) {
    const field = element("input", { class: "rename", "aria-label": t("title"), maxlength: "200", dir: "auto" });
    field.value = conversation.title;
    let isDone = false;
    const finish = (title) => {
      if (isDone) return;
      isDone = true;
      this.actions.rename(conversation, title.trim() || conversation.title);
    };
    field.addEventListener("keydown", (event) => {
      if (event.isComposing) return;
      if (event.key === "Enter") finish(field.value);
      else if (event.key === "Escape") finish(conversation.title);
      else return;
      event.stopPropagation();
    });
    field.addEventListener("blur", () => finish(field.value));
    item.replaceChildren(field);
    field.select();
  }

  #damaged(damaged) {
    if (!damaged.length) return "";
    const save = () => download("damaged.json", "application/json", JSON.stringify(Object.fromEntries(damaged)));
    const button = (label, click) =>
      element("button", { type: "button", class: "text-button", text: label, on: { click } });
    return element("div", { class: "damaged", role: "note" },
      element("p", { text: t("damaged", { count: damaged.length }) }),
      button(t("saveDamaged"), save), button(t("remove"), () => this.actions.removeDamaged()));
  }
}

function dayOf(time) {
  const midnight = new Date().setHours(0, 0, 0, 0);
  if (time >= midnight) return "today";
  return time >= midnight - 86_400_000 ? "yesterday" : "before";
}
