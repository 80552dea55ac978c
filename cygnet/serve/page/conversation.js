// A conversation: a list of turns. A turn is a question and, for each model that was asked, its
// answers: several where it was asked again, of which one is chosen.
//
//   {id, title, isNamed, created, updated, system, models: [name],
//    turns: [{question, answers: [{model, chosen, tries: [answer]}]}]}
//   answer: {content, reasoning, state, finish, error, usage, leftOut, pieces, firstMs, lastMs, thoughtMs}
//   state: waiting, streaming, done, stopped, interrupted, error

const TITLE_LENGTH = 60;

export function newConversation(models, system) {
  const now = Date.now();
  const id = `${now.toString(36)}-${crypto.getRandomValues(new Uint32Array(1))[0].toString(36)}`;
  return { id, title: "", isNamed: false, created: now, updated: now, system, models: [...models], turns: [] };
}

export function newTurn(question, models) {
  return { question, answers: models.map((model) => ({ model, chosen: 0, tries: [newAnswer()] })) };
}

export function newAnswer() {
  return { content: "", reasoning: "", state: "waiting", finish: null, error: null, usage: null, leftOut: 0,
           pieces: 0, firstMs: null, lastMs: null, thoughtMs: null };
}

export const isRunning = (answer) => answer.state === "waiting" || answer.state === "streaming";

/** The answer of the tries that is shown and that the conversation goes on from. */
export const chosen = (answers) => answers.tries[answers.chosen];

/** Return a stored conversation, completed. An answer that was on its way counts as interrupted.
 *  Throws a TypeError where it is damaged. */
export function readConversation(stored) {
  const text = (value) => {
    if (typeof value !== "string") throw new TypeError("no text");
    return value;
  };
  const number = (value) => {
    if (!Number.isFinite(value)) throw new TypeError("no number");
    return value;
  };
  const numberOrNone = (value) => (Number.isFinite(value) ? value : null);
  const readUsage = (usage) => usage && {
    prompt_tokens: number(usage.prompt_tokens), completion_tokens: number(usage.completion_tokens),
  };
  const readAnswer = (answer) => ({
    content: text(answer.content),
    reasoning: text(answer.reasoning),
    state: isRunning(answer) ? "interrupted" : text(answer.state),
    finish: answer.finish === null ? null : text(answer.finish),
    error: answer.error && { kind: text(answer.error.kind), message: text(answer.error.message) },
    usage: readUsage(answer.usage),
    leftOut: number(answer.leftOut),
    pieces: number(answer.pieces),
    firstMs: numberOrNone(answer.firstMs),
    lastMs: numberOrNone(answer.lastMs),
    thoughtMs: numberOrNone(answer.thoughtMs),
  });
  const readAnswers = (answers) => {
    const tries = answers.tries.map(readAnswer);
    if (!(answers.chosen in tries)) throw new TypeError("no such answer");
    return { model: text(answers.model), chosen: number(answers.chosen), tries };
  };
  const readTurn = (turn) => ({ question: text(turn.question), answers: turn.answers.map(readAnswers) });
  return {
    id: text(stored.id), title: text(stored.title), isNamed: Boolean(stored.isNamed),
    created: number(stored.created), updated: number(stored.updated), system: text(stored.system),
    models: stored.models.map(text), turns: stored.turns.map(readTurn),
  };
}

/** Return the messages that ask `model` for the answer to a turn, without the oldest `leftOut`. */
export function messagesFor(conversation, turnIndex, model, leftOut = 0) {
  const messages = conversation.system.trim() ? [{ role: "system", content: conversation.system.trim() }] : [];
  for (const turn of conversation.turns.slice(leftOut, turnIndex)) {
    // Each model goes on from its own answers; where it gave none, from the first model's.
    const answers = turn.answers.find((one) => one.model === model) ?? turn.answers[0];
    const content = answers ? chosen(answers).content : "";
    if (!content) continue;
    messages.push({ role: "user", content: turn.question }, { role: "assistant", content });
  }
  messages.push({ role: "user", content: conversation.turns[turnIndex].question });
  // Half an emoji can't be sent.
  return messages.map(({ role, content }) => ({ role, content: content.toWellFormed?.() ?? content }));
}

/** Return a title from the first question. */
export function titleFrom(question) {
  const characters = [...question.trim().replace(/\s+/g, " ")];
  const cut = characters.slice(0, TITLE_LENGTH).join("");
  return characters.length > TITLE_LENGTH ? `${cut}…` : cut;
}

/** Return the conversation as Markdown. */
export function toText(conversation) {
  const parts = [`# ${conversation.title}`];
  if (conversation.system) parts.push(`*${conversation.system}*`);
  for (const turn of conversation.turns) {
    parts.push("## ❯", turn.question);
    for (const answers of turn.answers) parts.push(`### ${answers.model}`, chosen(answers).content);
  }
  return `${parts.join("\n\n")}\n`;
}

/** Return the conversation as rows for training, one for each model: JSON lines of `messages`. */
export function toRows(conversation) {
  const models = [...new Set(conversation.turns.flatMap((turn) => turn.answers.map((answers) => answers.model)))];
  const rows = models.map((model) => {
    const messages = messagesFor(conversation, conversation.turns.length - 1, model);
    const last = conversation.turns.at(-1).answers.find((answers) => answers.model === model);
    if (last && chosen(last).content) messages.push({ role: "assistant", content: chosen(last).content });
    else messages.pop(); // a question without an answer teaches nothing
    return { messages, model, title: conversation.title };
  });
  return rows.filter((row) => row.messages.at(-1)?.role === "assistant").map((row) => `${JSON.stringify(row)}\n`).join("");
}
