// The conversation as it is shown: questions, and answers that grow while they stream.

import { tokensPerSecond } from "./answering.js";
import { chosen, isRunning } from "./conversation.js";
import { copyButton, element, iconButton } from "./dom.js";
import { renderMarkdown } from "./markdown.js";
import { t } from "./words.js";

/** Shows turns in `target`.
 *  actions: `regenerate(turn, answers)`, `choose(answers, index)`, `edit(turn, question)`,
 *  `modelOf(name)`, which gives {context_length, stage} or undefined, `drawn()`. */
export class ConversationView {
  #shown = new Map(); // answers -> AnswerView
  #changed = new Set();
  #edited = new Map(); // turn -> the text in its open editor, which outlives a new drawing

  constructor(target, actions) {
    this.target = target;
    this.actions = actions;
  }

  show(conversation) {
    this.#shown.clear();
    const isLast = (turn) => turn === conversation.turns.at(-1);
    this.target.replaceChildren(...conversation.turns.map((turn) => this.#turn(turn, isLast(turn))));
  }

  /** Draw what has changed of an answer, once for each picture that the screen shows. */
  update(answers) {
    if (!this.#shown.has(answers)) return;
    if (!this.#changed.size) requestAnimationFrame(() => this.#draw());
    this.#changed.add(answers);
  }

  #draw() {
    const changed = [...this.#changed];
    this.#changed.clear();
    for (const answers of changed) this.#shown.get(answers)?.draw();
    this.actions.drawn();
  }

  /** Let the question of a turn be edited in its place. */
  edit(turnIndex) {
    this.target.children[turnIndex]?.querySelector(".edit")?.click();
  }

  #turn(turn, isLast) {
    const views = turn.answers.map((answers) => {
      const view = new AnswerView(turn, answers, isLast, this.actions);
      this.#shown.set(answers, view);
      view.draw();
      return view;
    });
    const columns = element("div", { class: "answers", "data-count": views.length }, ...views.map((view) => view.node));
    return element("section", { class: "turn" }, this.#question(turn), columns);
  }

  #question(turn) {
    const node = element("article", { class: "question", "aria-label": t("you") });
    const send = (text) => {
      this.#edited.delete(turn);
      this.actions.edit(turn, text);
    };
    const edit = () => {
      const field = editorField(this.#edited.get(turn) ?? turn.question, show, send);
      field.addEventListener("input", () => this.#edited.set(turn, field.value));
      this.#edited.set(turn, field.value);
      node.replaceChildren(editor(field, show, send));
      queueMicrotask(() => growField(field));
      return field;
    };
    const show = () => {
      this.#edited.delete(turn);
      const tools = element("div", { class: "tools" }, copyButton(() => turn.question),
        iconButton("edit", t("edit"), () => edit().focus(), { class: "icon-button edit" }));
      node.replaceChildren(element("div", { class: "bubble", dir: "auto", text: turn.question }), tools);
    };
    if (this.#edited.has(turn)) edit();
    else show();
    return node;
  }
}

/** Return a field to edit a question in; `send` gets the new one. */
function editorField(question, close, send) {
  const field = element("textarea", { class: "edit-field", "aria-label": t("editMessage"), dir: "auto", rows: "1" });
  field.value = question;
  field.addEventListener("input", () => growField(field));
  field.addEventListener("keydown", (event) => {
    if (isEnter(event)) {
      event.preventDefault();
      if (field.value.trim()) send(field.value.trim());
    } else if (event.key === "Escape" && !event.isComposing) {
      event.stopPropagation();
      close();
    }
  });
  return field;
}

function editor(field, close, send) {
  const submit = () => {
    if (field.value.trim()) send(field.value.trim());
  };
  const button = (label, click, kind) =>
    element("button", { type: "button", class: `button ${kind}`, text: label, on: { click } });
  const buttons = [button(t("cancel"), close, ""), button(t("sendAgain"), submit, "main")];
  return element("div", { class: "editor" }, field, element("div", { class: "editor-buttons" }, buttons));
}

/** Whether this is the Enter that sends: not one that ends the typing of a Chinese word. */
export function isEnter(event) {
  return event.key === "Enter" && !event.shiftKey && !event.isComposing && event.keyCode !== 229;
}

/** Make a text field as high as its text. */
export function growField(field) {
  field.style.height = "auto";
  field.style.height = `${field.scrollHeight}px`;
}

class AnswerView {
  constructor(turn, answers, isLast, actions) {
    Object.assign(this, { turn, answers, isLast, actions });
    const stage = actions.modelOf(answers.model)?.stage;
    const name = element("h2", { class: "model-name" }, element("span", { text: answers.model }),
      stage && element("span", {
        class: `stage stage-${stage}`, text: t(`stage_${stage}`), title: stage === "pretrain" && t("onlyContinues"),
      }));
    const summary = element("summary");
    this.reasoning = element("div", { class: "prose", dir: "auto" });
    this.thinking = element("details", { class: "thinking" }, summary, this.reasoning);
    this.summary = summary;
    this.content = element("div", { class: "prose", dir: "auto" });
    this.notes = element("div", { class: "notes" });
    this.foot = element("div", { class: "foot" });
    this.node = element("article", { class: "answer", "aria-label": answers.model },
      name, this.thinking, this.content, this.notes, this.foot);
  }

  draw() {
    const answer = chosen(this.answers);
    const running = isRunning(answer);
    this.node.dataset.state = answer.state;
    this.node.setAttribute("aria-busy", running);
    this.thinking.hidden = !answer.reasoning;
    if (answer.reasoning) {
      const seconds = Math.max(1, Math.round(answer.thoughtMs / 1000));
      const isThinking = running && !answer.content;
      this.summary.textContent = isThinking ? t("thinking") : t("thought", { seconds });
      renderMarkdown(this.reasoning, answer.reasoning);
    }
    renderMarkdown(this.content, answer.content);
    this.notes.replaceChildren(...this.#notes(answer).filter(Boolean));
    // The tools come once there is something to use them on; the figures run along.
    const tools = running ? [] : this.#tools(answer);
    this.foot.replaceChildren(...tools, this.#figures(answer));
  }

  #notes(answer) {
    const note = (text) => element("p", { class: "note", text });
    const isEmpty = answer.state === "done" && !answer.content && !answer.reasoning;
    return [
      isEmpty && note(t("empty")),
      answer.leftOut > 0 && note(t("leftOut", { count: answer.leftOut })),
      answer.error && this.#error(answer),
    ];
  }

  #error({ state, error }) {
    if (error.kind === "busy" && state === "waiting")
      return element("p", { class: "note busy", text: t("errorBusyWait", { seconds: error.seconds }) });
    const words = { away: "errorAway", cut: "errorCut", key: "errorKey", busy: "errorBusy", context: "errorContext",
                    refused: "errorRefused", server: "errorServer" }[error.kind] ?? "errorServer";
    const again = () => this.actions.regenerate(this.turn, this.answers);
    const button = element("button", { type: "button", class: "button", text: t("tryAgain"), on: { click: again } });
    return element("div", { class: "error", role: "alert" },
      element("p", { text: t(words) }),
      error.message && element("p", { class: "error-detail", text: error.message }),
      this.isLast && button);
  }

  #tools(answer) {
    const { answers, actions } = this;
    const count = answers.tries.length;
    const step = (name, label, to) =>
      iconButton(name, t(label), () => actions.choose(answers, to), { disabled: !(to in answers.tries) });
    return [
      count > 1 && element("span", { class: "tries" }, step("before", "earlier", answers.chosen - 1),
        `${answers.chosen + 1}/${count}`, step("after", "later", answers.chosen + 1)),
      answer.content && copyButton(() => answer.content),
      this.isLast && iconButton("again", t("again"), () => actions.regenerate(this.turn, answers)),
    ].filter(Boolean);
  }

  #figures(answer) {
    const speed = tokensPerSecond(answer);
    const { prompt_tokens: prompt, completion_tokens: count } = answer.usage ?? {};
    const length = this.actions.modelOf(this.answers.model)?.context_length;
    const ending = answer.finish === "length" ? "cutAtLength" : answer.state;
    const parts = [
      ["stopped", "interrupted", "cutAtLength"].includes(ending) && t(ending),
      speed !== null && t("speed", { speed: speed < 10 ? speed.toFixed(1) : Math.round(speed) }),
      count !== undefined && (count === 1 ? t("oneToken") : t("tokens", { count })),
      // Side by side, there is no room for it.
      count !== undefined && length && this.turn.answers.length === 1 && t("context", { used: prompt + count, length }),
    ];
    const first = answer.firstMs === null ? "?" : (answer.firstMs / 1000).toFixed(2);
    const title = count === undefined ? null : t("usage", { prompt, answer: count, first });
    return element("span", { class: "figures", title, text: parts.filter(Boolean).join(" · ") });
  }
}
