// Which models answer: one, or several side by side.

import { byId, element, icon, iconButton } from "./dom.js";
import { t } from "./words.js";

const MOST = 4;
const STAGES = ["pretrain", "sft", "dpo"];

/** `offered`: what the server has; `chosen`: the names of those that answer. */
export class ModelBar {
  offered = [];
  #wanted; // chosen before the server said what it has, or on another visit

  constructor(settings, changed) {
    this.settings = settings;
    this.changed = changed;
    this.#wanted = settings.models;
  }

  get chosen() {
    const names = this.offered.map((model) => model.id);
    const kept = [...new Set(this.#wanted)].filter((name) => names.includes(name)).slice(0, MOST);
    return kept.length ? kept : this.#usual();
  }

  /** Of the stages of a training the last is the one to talk to; else what the server names first. */
  #usual() {
    const byStage = ["dpo", "sft"].map((stage) => this.offered.find((model) => model.stage === stage));
    const usual = byStage.find(Boolean) ?? this.offered[0];
    return usual ? [usual.id] : [];
  }

  offer(models) {
    this.offered = models;
    this.draw();
  }

  choose(names) {
    this.#wanted = [...names];
    this.settings.models = this.#wanted;
    this.draw();
    this.changed();
  }

  areChosen(names) {
    return names.length === this.chosen.length && names.every((name) => this.chosen.includes(name));
  }

  isPretrained(name) {
    return this.offered.find((model) => model.id === name)?.stage === "pretrain";
  }

  /** Return the models that are the stages of one training, in their order; none if it's one. */
  stages() {
    const family = (id) => id.slice(0, id.lastIndexOf("/") + 1);
    const families = Map.groupBy(this.offered.filter((model) => STAGES.includes(model.stage)), (model) => family(model.id));
    const largest = [...families.values()].sort((a, b) => b.length - a.length)[0] ?? [];
    const ordered = STAGES.flatMap((stage) => largest.filter((model) => model.stage === stage).slice(0, 1));
    return ordered.length > 1 ? ordered.map((model) => model.id) : [];
  }

  draw() {
    const { chosen } = this;
    const pickers = chosen.map((name, index) => this.#picker(name, index));
    const next = this.offered.find((model) => !chosen.includes(model.id));
    const add = next && chosen.length < MOST && element("button", {
      type: "button", class: "button compare", title: t("compareTitle"), "aria-label": t("compareTitle"),
      on: { click: () => this.choose([...chosen, next.id]) },
    }, icon("plus"), element("span", { text: t("compare") }));
    const none = element("span", { class: "note", text: t("noModels") });
    byId("models").replaceChildren(...(pickers.length ? pickers : [none]), add || "");
  }

  #picker(name, index) {
    const { chosen, offered } = this;
    const options = offered.map(({ id, stage }) => element("option", {
      value: id, selected: id === name, disabled: id !== name && chosen.includes(id),
      text: stage && !id.endsWith(stage) ? `${id} (${t(`stage_${stage}`)})` : id,
    }));
    const change = () => this.choose(chosen.with(index, select.value));
    const select = element("select", { "aria-label": t("model"), title: name, on: { change } }, ...options);
    const remove = chosen.length > 1 && iconButton("close", t("leaveOut", { model: name }),
      () => this.choose(chosen.toSpliced(index, 1)));
    return element("span", { class: "picker" }, select, remove);
  }
}
