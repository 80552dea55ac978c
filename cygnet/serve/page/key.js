// Asking for the API key, once.

import { byId } from "./dom.js";
import { saveKey } from "./store.js";
import { t } from "./words.js";

const PRINTABLE = /^[!-~]+$/; // what can stand in a header

export class KeyDialog {
  #asked = null; // the promise of the question that is open: several requests share it

  /** Ask for the key; resolves to it, or to null where the person gives none. */
  ask(message) {
    this.#asked ??= this.#open(message).finally(() => (this.#asked = null));
    return this.#asked;
  }

  #open(message) {
    const dialog = byId("key-dialog");
    const field = byId("key");
    byId("key-error").textContent = message;
    field.value = "";
    return new Promise((resolve) => {
      let given = null;
      byId("key-cancel").onclick = () => dialog.close();
      byId("key-form").onsubmit = (event) => {
        event.preventDefault();
        const key = field.value.trim();
        if (!PRINTABLE.test(key)) {
          byId("key-error").textContent = t("errorKeyText");
          return;
        }
        given = key;
        saveKey(key, byId("key-remember").checked);
        dialog.close();
      };
      dialog.onclose = () => resolve(given);
      dialog.showModal();
      field.focus();
    });
  }
}
