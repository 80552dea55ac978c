// Fetching answers: each runs on its own, goes on while another conversation is shown, and ends
// in a state that says how. Nothing that was asked or answered so far is lost by an error.

import { ApiError, streamChat } from "./api.js";
import { chosen, isRunning, messagesFor } from "./conversation.js";

const MAX_BUSY_TRIES = 5;
const DEFAULT_WAIT_S = 2;
const SAVE_EVERY_MS = 1000;
const LEAVING_MS = 200;

export class Answering {
  #running = new Map(); // answer -> AbortController

  /** @param page what the page does for it: `sampling()`, `key()`, `askForKey(message)`, which
   *  resolves to a key or null, `show(conversation, answers)` when an answer has changed, `save(conversation)`,
   *  `ended(conversation)` when none of its answers runs any more. */
  constructor(page) {
    this.page = page;
  }

  /** Ask every model of a turn whose answer waits. */
  async start(conversation, turn) {
    const waiting = turn.answers.filter((answers) => chosen(answers).state === "waiting");
    await Promise.all(waiting.map((answers) => this.#answer(conversation, turn, answers)));
    if (!this.isAnswering(conversation)) this.page.ended(conversation, turn);
  }

  isAnswering(conversation) {
    return conversation.turns.some((turn) => turn.answers.some((answers) => this.#running.has(chosen(answers))));
  }

  stop(conversation) {
    for (const turn of conversation.turns)
      for (const answers of turn.answers) for (const answer of answers.tries) this.#running.get(answer)?.abort();
  }

  async #answer(conversation, turn, answers) {
    const answer = chosen(answers);
    const controller = new AbortController();
    this.#running.set(answer, controller);
    try {
      await this.#untilAnswered(conversation, turn, answers, controller.signal);
    } catch (error) {
      // A page that is being left fails its requests first: it must not live to call that an error.
      if (!controller.signal.aborted) await sleep(LEAVING_MS, controller.signal).catch(() => {});
      if (controller.signal.aborted) Object.assign(answer, { state: "stopped", error: null });
      else {
        answer.state = "error";
        const kind = error instanceof ApiError ? error.kind : "server";
        answer.error = { kind, message: String(error.message) };
      }
    } finally {
      this.#running.delete(answer);
      this.page.save(conversation);
      this.page.show(conversation, answers);
    }
  }

  /** Ask until there is an answer: again with a key, when the server is no longer busy, and with
   *  fewer of the oldest turns where the context is too short for all. */
  async #untilAnswered(conversation, turn, answers, signal) {
    const answer = chosen(answers);
    for (let busyTries = 0; ; ) {
      try {
        return await this.#stream(conversation, turn, answers, signal);
      } catch (error) {
        const began = answer.state !== "waiting";
        const index = conversation.turns.indexOf(turn);
        if (signal.aborted || began || !(error instanceof ApiError)) throw error;
        if (error.kind === "key") {
          if (!(await this.page.askForKey(error.message))) throw error;
        } else if (error.kind === "busy" && ++busyTries <= MAX_BUSY_TRIES) {
          await this.#wait(error.retryAfterS ?? DEFAULT_WAIT_S * busyTries, conversation, answers, signal);
        } else if (error.kind === "context" && answer.leftOut < index) {
          answer.leftOut += Math.ceil((index - answer.leftOut) / 4);
        } else throw error;
      }
    }
  }

  async #stream(conversation, turn, answers, signal) {
    const answer = chosen(answers);
    const index = conversation.turns.indexOf(turn);
    const messages = messagesFor(conversation, index, answers.model, answer.leftOut);
    const body = { model: answers.model, messages, ...this.page.sampling() };
    const began = performance.now();
    let saved = began;
    for await (const { delta, finish, usage } of streamChat(body, this.page.key(), signal)) {
      const now = performance.now();
      if (delta.content || delta.reasoning_content) {
        answer.state = "streaming";
        answer.firstMs ??= now - began;
        answer.lastMs = now - began;
        answer.pieces += 1;
      }
      answer.reasoning += delta.reasoning_content ?? "";
      if (delta.content && answer.reasoning) answer.thoughtMs ??= now - began - answer.firstMs;
      answer.content += delta.content ?? "";
      answer.finish = finish;
      answer.usage = usage ?? answer.usage;
      this.page.show(conversation, answers);
      if (now - saved > SAVE_EVERY_MS) {
        saved = now;
        this.page.save(conversation);
      }
    }
    answer.state = "done";
  }

  /** Wait, counting down where the person can see it. */
  async #wait(seconds, conversation, answers, signal) {
    const answer = chosen(answers);
    for (let left = Math.ceil(seconds); left > 0; left--) {
      answer.error = { kind: "busy", message: "", seconds: left };
      this.page.show(conversation, answers);
      await sleep(1000, signal);
    }
    answer.error = null;
  }
}

function sleep(ms, signal) {
  return new Promise((resolve, reject) => {
    const timer = setTimeout(resolve, ms);
    const abort = () => {
      clearTimeout(timer);
      reject(signal.reason);
    };
    signal.addEventListener("abort", abort, { once: true });
  });
}

/** Return tokens a second: between the first and the last token, by the server's count. */
export function tokensPerSecond(answer) {
  const tokens = answer.usage?.completion_tokens ?? answer.pieces;
  const seconds = (answer.lastMs - answer.firstMs) / 1000;
  if (!tokens || tokens < 2 || answer.firstMs === null) return null;
  // It came in a lump, which says nothing of the time between: count from the question on.
  if (seconds < 0.1) return answer.lastMs > 0 ? (1000 * tokens) / answer.lastMs : null;
  // While it streams, a piece is about a token.
  return ((isRunning(answer) ? answer.pieces : tokens) - 1) / seconds;
}
