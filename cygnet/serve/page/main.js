// The page: what is open, what the person does, and what is asked of the server.

import { Answering } from "./answering.js";
import { listModels } from "./api.js";
import { chosen, isRunning, newAnswer, newConversation, newTurn, titleFrom } from "./conversation.js";
import { announce, byId, element, icon, toast } from "./dom.js";
import { Frame } from "./frame.js";
import { KeyDialog } from "./key.js";
import { ModelBar } from "./models.js";
import { Panel, requestSettings } from "./panel.js";
import { Sidebar } from "./sidebar.js";
import * as store from "./store.js";
import { ConversationView, growField, isEnter } from "./view.js";
import { setLanguage, t } from "./words.js";

const RETRY_MODELS_MS = 5000;
const ANNOUNCED_LENGTH = 1000;

class Page {
  settings = store.loadSettings();
  conversations = [];
  damaged = [];
  current = null; // null: the next conversation, which nothing was said in
  system = ""; // of the next conversation

  constructor() {
    for (const node of document.querySelectorAll("[data-icon]")) node.append(icon(node.dataset.icon));
    setLanguage(this.settings.language);
    this.keys = new KeyDialog();
    this.answering = new Answering(this.#forAnswering());
    this.view = new ConversationView(byId("turns"), this.#forView());
    this.models = new ModelBar(this.settings, () => this.#modelsChosen());
    this.panel = new Panel(this.settings, {
      changed: () => store.saveSettings(this.settings),
      systemChanged: (text) => this.#setSystem(text),
      lookChanged: () => this.#lookChanged(),
    });
    this.sidebar = new Sidebar({
      open: (conversation) => this.go(conversation.id),
      rename: (conversation, title) => this.#rename(conversation, title),
      remove: (conversations) => this.#remove(conversations),
      removeDamaged: () => this.#removeDamaged(),
    });
    this.frame = new Frame(this.settings, {
      newChat: () => this.go(""),
      stop: () => this.current && this.answering.stop(this.current),
      save: () => store.saveSettings(this.settings),
    });
    this.#listen();
    Object.assign(this, store.loadConversations());
    this.#openFromAddress();
    this.#draw();
    if (store.keepsNothing) this.#banner(t("errorNoStorage"));
    this.loadModels();
  }

  // --- what is shown --------------------------------------------------------------------------

  #draw() {
    this.panel.draw();
    this.models.draw();
    this.#drawList();
    this.#drawExamples();
    this.#drawCurrent();
  }

  #drawList() {
    this.sidebar.show(this.conversations, this.current, this.damaged);
  }

  #drawCurrent() {
    const { current } = this;
    byId("welcome").hidden = current !== null;
    document.title = current ? `${current.title} · Cygnet` : "Cygnet";
    document.body.classList.toggle("is-comparing", this.#columns() > 1);
    this.view.show(current ?? { turns: [] });
    this.panel.showSystem(current?.system ?? this.system);
    this.#drawRunning();
  }

  #columns() {
    return Math.max(1, ...(this.current?.turns ?? []).map((turn) => turn.answers.length));
  }

  #drawRunning() {
    const isAnswering = this.current !== null && this.answering.isAnswering(this.current);
    byId("send").hidden = isAnswering;
    byId("stop").hidden = !isAnswering;
    byId("hint").hidden = !this.models.chosen.length || !this.models.chosen.every((name) => this.models.isPretrained(name));
  }

  #drawExamples() {
    const use = (text) => () => this.#send(text);
    const examples = ["example1", "example2", "example3"].map((name) =>
      element("button", { type: "button", class: "example", text: t(name), on: { click: use(t(name)) } }));
    const stages = this.models.stages();
    const compare = () => this.models.choose(stages);
    const offer = stages.length > 1 && element("button", {
      type: "button", class: "example stages", "aria-pressed": String(this.models.areChosen(stages)),
      on: { click: compare },
    }, t("compareStages"), element("small", { text: stages.join(" · ") }));
    byId("examples").replaceChildren(...examples, offer || "");
  }

  #lookChanged() {
    const { theme, language } = this.settings;
    if (theme === "light" || theme === "dark") document.documentElement.dataset.theme = theme;
    else delete document.documentElement.dataset.theme;
    setLanguage(language);
    store.saveSettings(this.settings);
    this.#draw();
    this.frame.draw();
  }

  #banner(text, action = null) {
    const button = action && element("button", {
      type: "button", class: "text-button", text: action.label, on: { click: action.run },
    });
    byId("banner").replaceChildren(...(text ? [element("span", { text }), button ?? ""] : []));
  }

  // --- models ---------------------------------------------------------------------------------

  async loadModels() {
    clearTimeout(this.retry);
    try {
      this.models.offer(await listModels(store.loadKey()));
      this.#banner(this.models.offered.length ? "" : t("errorNoModel"));
      byId("forget-key").hidden = store.loadKey() === null;
      this.#drawCurrent();
      this.#drawExamples();
    } catch (error) {
      if (error.kind === "key") return this.#enterKey(error.message);
      const words = { away: "errorAway", busy: "errorBusy" }[error.kind];
      const text = words ? t(words) : `${t("errorServer")} ${error.message}`;
      this.#banner(text, { label: t("tryAgain"), run: () => this.loadModels() });
      this.retry = setTimeout(() => this.loadModels(), RETRY_MODELS_MS);
    }
  }

  async #enterKey(message) {
    if (await this.keys.ask(store.loadKey() === null ? "" : message)) return this.loadModels();
    this.#banner(t("keyTitle"), { label: t("keyEnter"), run: () => this.#enterKey("") });
  }

  #modelsChosen() {
    store.saveSettings(this.settings);
    this.#drawExamples();
    this.#drawRunning();
  }

  // --- conversations --------------------------------------------------------------------------

  /** Open the conversation of this id ("": a new one); the address says which is open. */
  go(id) {
    if (location.hash.slice(1) !== id) location.hash = id;
    else this.#openFromAddress();
    this.frame.hideOverlays();
    byId("message").focus();
  }

  #openFromAddress() {
    const id = location.hash.slice(1);
    this.current = this.conversations.find((conversation) => conversation.id === id) ?? null;
    if (this.current) this.models.choose(this.current.models);
    const field = byId("message");
    field.value = store.loadDraft(this.#draftId());
    growField(field);
    this.#drawList();
    this.#drawCurrent();
    this.frame.follow();
  }

  #draftId() {
    return this.current?.id ?? "new";
  }

  #save(conversation) {
    if (!this.conversations.includes(conversation)) return; // deleted meanwhile
    if (!store.saveConversation(conversation)) this.#banner(t("errorFull"));
  }

  #touch(conversation) {
    conversation.updated = Date.now();
    this.conversations.sort((a, b) => b.updated - a.updated);
    this.#save(conversation);
    this.#drawList();
    this.#drawCurrent();
  }

  #rename(conversation, title) {
    if (title !== conversation.title) Object.assign(conversation, { title, isNamed: true });
    this.#save(conversation);
    this.#drawList();
    this.#drawCurrent();
  }

  #remove(removed) {
    const gone = [...removed];
    const wasOpen = this.current;
    for (const conversation of gone) {
      this.answering.stop(conversation);
      store.removeConversation(conversation.id);
    }
    this.conversations = this.conversations.filter((conversation) => !gone.includes(conversation));
    const undo = () => {
      this.conversations.push(...gone);
      for (const conversation of gone) this.#save(conversation);
      this.conversations.sort((a, b) => b.updated - a.updated);
      this.#drawList();
      if (gone.includes(wasOpen)) this.go(wasOpen.id);
    };
    toast(gone.length > 1 ? t("removedAll") : t("removed", gone[0]), { label: t("undo"), run: undo });
    if (gone.includes(wasOpen)) this.go("");
    else this.#drawList();
  }

  #removeDamaged() {
    store.removeDamaged(this.damaged.map(([key]) => key));
    this.damaged = [];
    this.#drawList();
  }

  #setSystem(text) {
    if (!this.current) this.system = text;
    else {
      this.current.system = text;
      this.#save(this.current);
    }
  }

  // --- asking ---------------------------------------------------------------------------------

  /** Send a question; false where it can't be sent, and then it stays where it was typed. */
  async #send(text) {
    const question = text.trim();
    if (!question) return false;
    if (!this.models.chosen.length) await this.loadModels();
    if (!this.models.chosen.length || (this.current && this.answering.isAnswering(this.current))) return false;
    let conversation = this.current;
    if (!conversation) {
      conversation = newConversation(this.models.chosen, this.system);
      conversation.title = titleFrom(question);
      this.system = "";
      this.current = conversation;
      this.conversations.push(conversation);
      history.pushState(null, "", `#${conversation.id}`);
    }
    conversation.models = [...this.models.chosen];
    this.#ask(conversation, newTurn(question, conversation.models));
    return true;
  }

  #ask(conversation, turn) {
    conversation.turns.push(turn);
    this.#start(conversation, turn);
  }

  #start(conversation, turn) {
    this.frame.follow();
    const started = this.answering.start(conversation, turn);
    this.#touch(conversation);
    announce(t("answering"));
    return started;
  }

  #edit(turn, question) {
    const conversation = this.current;
    this.answering.stop(conversation);
    const old = { turns: conversation.turns, title: conversation.title };
    const index = old.turns.indexOf(turn);
    conversation.turns = old.turns.slice(0, index);
    if (index === 0 && !conversation.isNamed) conversation.title = titleFrom(question);
    const undo = () => {
      this.answering.stop(conversation);
      Object.assign(conversation, old);
      this.#touch(conversation);
    };
    this.#ask(conversation, newTurn(question, this.models.chosen.length ? this.models.chosen : conversation.models));
    toast(t("replaced"), { label: t("undo"), run: undo });
  }

  #regenerate(turn, answers) {
    const isOffered = this.models.offered.some((model) => model.id === answers.model);
    if (!isOffered && this.models.chosen.length) answers.model = this.models.chosen[0];
    // An answer that never began is no answer to keep.
    if (!chosen(answers).content && !chosen(answers).reasoning) answers.tries.splice(answers.chosen, 1);
    answers.tries.push(newAnswer());
    answers.chosen = answers.tries.length - 1;
    this.#start(this.current, turn);
  }

  #choose(answers, index) {
    answers.chosen = index;
    this.#save(this.current);
    this.view.update(answers);
  }

  #forAnswering() {
    return {
      sampling: () => requestSettings(this.settings),
      key: () => store.loadKey(),
      askForKey: (message) => this.keys.ask(store.loadKey() === null ? "" : message),
      save: (conversation) => this.#save(conversation),
      show: (conversation, answers) => {
        if (conversation === this.current) this.view.update(answers);
      },
      ended: (conversation, turn) => {
        this.#drawRunning();
        if (conversation !== this.current) return;
        const text = turn.answers.map((answers) => chosen(answers).content).join("\n\n");
        announce(t("answered", { text: text.slice(0, ANNOUNCED_LENGTH) }));
      },
    };
  }

  #forView() {
    return {
      regenerate: (turn, answers) => this.#regenerate(turn, answers),
      choose: (answers, index) => this.#choose(answers, index),
      edit: (turn, question) => this.#edit(turn, question),
      modelOf: (name) => this.models.offered.find((model) => model.id === name),
      drawn: () => this.frame.drawn(),
    };
  }

  // --- what the person does -------------------------------------------------------------------

  #listen() {
    const field = byId("message");
    field.addEventListener("input", () => {
      growField(field);
      store.saveDraft(this.#draftId(), field.value);
    });
    field.addEventListener("keydown", (event) => {
      if (isEnter(event)) {
        event.preventDefault();
        this.#submit();
      } else if (event.key === "ArrowUp" && !field.value && this.current) {
        event.preventDefault();
        this.view.edit(this.current.turns.length - 1);
      }
    });
    byId("composer").addEventListener("submit", (event) => {
      event.preventDefault();
      this.#submit();
    });
    byId("forget-key").addEventListener("click", () => {
      store.forgetKey();
      toast(t("keyForgotten"));
      this.loadModels();
    });
    addEventListener("hashchange", () => this.#openFromAddress());
    addEventListener("popstate", () => this.#openFromAddress());
    addEventListener("pagehide", () => {
      for (const conversation of this.conversations) if (this.answering.isAnswering(conversation)) this.#save(conversation);
    });
    // Another tab wrote: take over what it did, unless an answer is on its way here.
    addEventListener("storage", (event) => {
      if (event.key !== null && !store.isChatKey(event.key)) return;
      const isBusy = this.conversations.some((conversation) => this.answering.isAnswering(conversation));
      if (isBusy) return;
      Object.assign(this, store.loadConversations());
      const id = this.current?.id;
      this.current = this.conversations.find((conversation) => conversation.id === id) ?? null;
      this.#drawList();
      this.#drawCurrent();
    });
  }

  async #submit() {
    const field = byId("message");
    const draftId = this.#draftId();
    const text = field.value;
    if (!(await this.#send(text)) || field.value !== text) return;
    field.value = "";
    growField(field);
    store.saveDraft(draftId, "");
  }
}

new Page();
