// The settings: system prompt, sampling, thinking, theme, language.

import { byId, element } from "./dom.js";
import { growField } from "./view.js";
import { LANGUAGES, language, t } from "./words.js";

// name: [least, most, step, where the slider stands while nothing is chosen]
const SLIDERS = {
  temperature: [0, 2, 0.05, 0.8],
  top_p: [0.01, 1, 0.01, 0.95],
  min_p: [0, 1, 0.01, 0],
  repetition_penalty: [0.5, 2, 0.01, 1],
  presence_penalty: [-2, 2, 0.1, 0],
  frequency_penalty: [-2, 2, 0.1, 0],
};
// name: [least, most] of whole numbers
const FIELDS = { top_k: [0, 1_000_000], max_tokens: [1, 1_000_000], seed: [0, 4_294_967_295] };
const ORDER = ["temperature", "top_p", "top_k", "min_p", "max_tokens", "seed",
               "repetition_penalty", "presence_penalty", "frequency_penalty"]; // prettier-ignore

/** Return the part of a request's body that the settings ask for. */
export function requestSettings({ sampling }) {
  const body = {};
  for (const name of ORDER) if (Number.isFinite(sampling[name])) body[name] = sampling[name];
  if (typeof sampling.thinking === "boolean") body.chat_template_kwargs = { enable_thinking: sampling.thinking };
  return body;
}

/** The panel. actions: `changed()` after a setting, `systemChanged(text)`, `lookChanged()`. */
export class Panel {
  constructor(settings, actions) {
    this.settings = settings;
    this.actions = actions;
    const system = byId("system");
    system.addEventListener("input", () => {
      growField(system);
      actions.systemChanged(system.value);
    });
    byId("reset").addEventListener("click", () => {
      settings.sampling = {};
      actions.changed();
      this.draw();
    });
  }

  showSystem(text) {
    const system = byId("system");
    if (system.value !== text) system.value = text;
    growField(system);
  }

  draw() {
    const { sampling } = this.settings;
    const rows = ORDER.map((name) => this.#row(name, SLIDERS[name] ?? FIELDS[name], name in SLIDERS));
    byId("sampling").replaceChildren(...rows, this.#thinking());
    byId("reset").hidden = !Object.keys(sampling).length;
    const themes = [["auto", t("themeAuto")], ["light", t("themeLight")], ["dark", t("themeDark")]];
    byId("look").replaceChildren(
      this.#choice("theme", themes, this.settings.theme ?? "auto", (theme) => this.#look({ theme })),
      this.#choice("language", LANGUAGES, language(), (chosen) => this.#look({ language: chosen })),
    );
  }

  #look(change) {
    Object.assign(this.settings, change);
    this.actions.lookChanged();
  }

  #row(name, [least, most, step = 1, middle], withSlider) {
    const hint = t(`${name}Hint`);
    const limits = { min: least, max: most, step, "aria-describedby": `${name}-hint` };
    const field = element("input", { type: "number", id: name, inputmode: "decimal", placeholder: t("byDefault"), ...limits });
    const value = this.settings.sampling[name];
    field.value = value ?? "";
    const slider = withSlider && element("input", { type: "range", "aria-label": t(name), ...limits });
    if (slider) {
      slider.value = value ?? middle;
      slider.addEventListener("input", () => set(slider.value));
    }
    const set = (text) => {
      const number = text === "" ? null : Math.min(most, Math.max(least, Number(text)));
      const whole = withSlider ? number : number && Math.round(number);
      if (whole === null || !Number.isFinite(whole)) delete this.settings.sampling[name];
      else this.settings.sampling[name] = whole;
      field.value = this.settings.sampling[name] ?? "";
      if (slider) slider.value = this.settings.sampling[name] ?? middle;
      row.classList.toggle("is-set", name in this.settings.sampling);
      byId("reset").hidden = !Object.keys(this.settings.sampling).length;
      this.actions.changed();
    };
    field.addEventListener("change", () => set(field.value));
    const row = element("div", { class: "setting" }, element("label", { for: name, text: t(name) }), field,
      slider, element("p", { class: "hint", id: `${name}-hint`, text: hint }));
    row.classList.toggle("is-set", value !== undefined);
    return row;
  }

  #thinking() {
    const { sampling } = this.settings;
    const choices = [["", t("byDefault")], ["on", t("on")], ["off", t("off")]];
    const now = { true: "on", false: "off" }[sampling.thinking] ?? "";
    return this.#choice("thinkingMode", choices, now, (chosen) => {
      if (chosen) sampling.thinking = chosen === "on";
      else delete sampling.thinking;
      byId("reset").hidden = !Object.keys(sampling).length;
      this.actions.changed();
    });
  }

  #choice(name, choices, now, change) {
    const options = choices.map(([value, text]) => element("option", { value, text, selected: value === now }));
    const select = element("select", { id: name, on: { change: () => change(select.value) } }, ...options);
    return element("div", { class: "setting" }, element("label", { for: name, text: t(name) }), select);
  }
}
