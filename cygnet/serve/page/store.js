// What the browser keeps: each conversation under a key of its own, so that one that is damaged
// costs no other, drafts, settings, and (for the tab alone, unless asked otherwise) the API key.

import { readConversation } from "./conversation.js";

const CHAT = "cygnet.chat.";
const DRAFT = "cygnet.draft.";
const SETTINGS = "cygnet.settings";
const KEY = "cygnet.key";

/** A storage that lasts as long as the page, where the browser allows no other. */
class Memory extends Map {
  getItem = (key) => this.get(key) ?? null;
  setItem = (key, value) => void this.set(key, value);
  removeItem = (key) => void this.delete(key);
}

function storageOr(name) {
  try {
    const storage = window[name];
    storage.setItem("cygnet.try", "1");
    storage.removeItem("cygnet.try");
    return storage;
  } catch (error) {
    // A full storage can still be read and emptied.
    return error.name === "QuotaExceededError" ? window[name] : new Memory();
  }
}

const kept = storageOr("localStorage");
const tab = storageOr("sessionStorage");

export const keepsNothing = kept instanceof Memory;
export const isChatKey = (key) => key?.startsWith(CHAT);

function keysOf(prefix) {
  const keys = kept instanceof Memory ? [...kept.keys()] : Object.keys(kept);
  return keys.filter((key) => key.startsWith(prefix));
}

/** Return what is stored: the conversations, newest first, and [key, text] of the damaged ones. */
export function loadConversations() {
  const conversations = [];
  const damaged = [];
  for (const key of keysOf(CHAT)) {
    const text = kept.getItem(key);
    try {
      const conversation = readConversation(JSON.parse(text));
      if (CHAT + conversation.id !== key) throw new TypeError("stored under another key");
      conversations.push(conversation);
    } catch {
      damaged.push([key, text]);
    }
  }
  return { conversations: conversations.sort((a, b) => b.updated - a.updated), damaged };
}

/** Keep a conversation; false where the browser's storage is full. */
export function saveConversation(conversation) {
  return set(CHAT + conversation.id, JSON.stringify(conversation));
}

export function removeConversation(id) {
  kept.removeItem(CHAT + id);
  kept.removeItem(DRAFT + id);
}

export function removeDamaged(keys) {
  for (const key of keys) kept.removeItem(key);
}

/** What was typed and not sent, of a conversation or (id "new") of the next one. */
export const loadDraft = (id) => kept.getItem(DRAFT + id) ?? "";

export function saveDraft(id, text) {
  if (text) set(DRAFT + id, text);
  else kept.removeItem(DRAFT + id);
}

/** The settings: theme, language, models, sampling; damaged ones count as none. */
export function loadSettings() {
  let found = null;
  try {
    found = JSON.parse(kept.getItem(SETTINGS));
  } catch {
    // As on the first visit.
  }
  const isObject = (value) => value !== null && typeof value === "object" && !Array.isArray(value);
  const settings = isObject(found) ? found : {};
  const models = Array.isArray(settings.models) ? settings.models.filter((name) => typeof name === "string") : [];
  return { ...settings, models, sampling: isObject(settings.sampling) ? settings.sampling : {} };
}

export const saveSettings = (settings) => set(SETTINGS, JSON.stringify(settings));

export const loadKey = () => tab.getItem(KEY) ?? kept.getItem(KEY);

export function saveKey(key, remember) {
  forgetKey();
  (remember ? kept : tab).setItem(KEY, key);
}

export function forgetKey() {
  tab.removeItem(KEY);
  kept.removeItem(KEY);
}

function set(key, value) {
  try {
    kept.setItem(key, value);
    return true;
  } catch {
    return false;
  }
}
