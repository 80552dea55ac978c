// What the page says, in English and Chinese.

const WORDS = {
  // The frame
  newChat: ["New chat", "新对话"],
  chats: ["Conversations", "对话列表"],
  showChats: ["Show conversations", "显示对话列表"],
  hideChats: ["Hide conversations", "隐藏对话列表"],
  settings: ["Settings", "设置"],
  close: ["Close", "关闭"],
  cancel: ["Cancel", "取消"],
  shortcuts: ["Keyboard shortcuts", "键盘快捷键"],
  toEnd: ["Go to the newest message", "跳到最新消息"],
  model: ["Model", "模型"],
  models: ["Models", "模型"],
  compare: ["Compare", "对比"],
  compareTitle: ["Ask another model the same question", "让另一个模型回答同样的问题"],
  leaveOut: ["Leave out {model}", "不再对比 {model}"],
  noModels: ["no model", "没有模型"],
  stage_pretrain: ["pretrained", "预训练"],
  stage_sft: ["tuned", "指令微调"],
  stage_dpo: ["aligned", "偏好对齐"],
  stage_imported: ["imported", "导入"],
  onlyContinues: [
    "Only pretrained: it goes on from your text, and has not learnt to answer.",
    "只做过预训练：它会接着你的文字往下写，还没有学会回答。",
  ],
  // The beginning
  hello: ["What shall we talk about?", "想聊点什么？"],
  helloText: [
    "Your conversations stay in this browser.",
    "对话只保存在这个浏览器里。",
  ],
  example1: ["Write a recipe for tomato soup.", "写一首五言绝句，题为《秋夜》。"],
  example2: ["What is a lighthouse?", "来一首七言绝句吧。"],
  example3: ["写一首五言绝句，题为《秋夜》。", "How do I make pancakes?"],
  compareStages: ["Compare how training changed the answer", "对比训练如何改变回答"],
  // Messages
  you: ["You", "你"],
  ask: ["Ask something…", "输入消息…"],
  message: ["Message", "消息"],
  send: ["Send", "发送"],
  stop: ["Stop", "停止"],
  edit: ["Edit", "编辑"],
  editMessage: ["Edit the message", "编辑消息"],
  sendAgain: ["Send", "发送"],
  again: ["Regenerate", "重新生成"],
  copy: ["Copy", "复制"],
  copied: ["Copied", "已复制"],
  notCopied: ["The browser did not let us copy", "浏览器不允许复制"],
  earlier: ["Earlier answer", "上一个回答"],
  later: ["Later answer", "下一个回答"],
  thinking: ["Thinking…", "正在思考…"],
  thought: ["Thought for {seconds} s", "思考了 {seconds} 秒"],
  answering: ["Answering…", "正在回答…"],
  answered: ["Answer: {text}", "回答：{text}"],
  tokens: ["{count} tokens", "{count} 个 token"],
  oneToken: ["1 token", "1 个 token"],
  speed: ["{speed} tokens/s", "{speed} token/秒"],
  context: ["context {used} of {length}", "上下文 {used} / {length}"],
  usage: [
    "prompt {prompt} tokens, answer {answer} tokens, first token after {first} s",
    "提示 {prompt} 个 token，回答 {answer} 个 token，{first} 秒后出现第一个 token",
  ],
  stopped: ["stopped", "已停止"],
  interrupted: ["interrupted", "已中断"],
  cutAtLength: ["ended at the longest length", "到达最大长度"],
  empty: ["(an empty answer)", "（空回答）"],
  leftOut: [
    "The oldest {count} exchanges no longer fit the model's context and were left out.",
    "最早的 {count} 轮对话放不进模型的上下文，已略去。",
  ],
  replaced: ["The messages after it were replaced.", "其后的消息已被替换。"],
  undo: ["Undo", "撤销"],
  // Conversations
  rename: ["Rename", "重命名"],
  title: ["Title", "标题"],
  remove: ["Delete", "删除"],
  removed: ["“{title}” deleted.", "已删除「{title}」。"],
  exportText: ["Save as text (Markdown)", "保存为文本（Markdown）"],
  exportRows: ["Save as messages (JSONL)", "保存为消息（JSONL）"],
  exportAll: ["Save all (JSONL)", "全部保存（JSONL）"],
  removeAll: ["Delete all", "全部删除"],
  removedAll: ["All conversations deleted.", "已删除全部对话。"],
  more: ["More about “{title}”", "「{title}」的更多操作"],
  allChats: ["All conversations", "全部对话"],
  today: ["Today", "今天"],
  yesterday: ["Yesterday", "昨天"],
  before: ["Earlier", "更早"],
  noChats: ["Nothing here yet.", "还没有对话。"],
  damaged: [
    "{count} stored conversations are damaged. They were left as they are.",
    "有 {count} 个已存的对话损坏，已原样保留。",
  ],
  saveDamaged: ["Save to a file", "存为文件"],
  // Settings
  system: ["System prompt", "系统提示词"],
  systemHint: ["For this conversation, e.g. “Answer briefly.”", "用于本次对话，例如「请简短回答」"],
  sampling: ["Sampling", "采样"],
  samplingHint: ["Empty: as the server does by default.", "留空则用服务器的默认值。"],
  reset: ["Reset", "重置"],
  temperature: ["Temperature", "温度"],
  temperatureHint: ["0 always takes the likeliest token", "0 总是取最可能的 token"],
  top_p: ["Top-p", "Top-p"],
  top_pHint: ["the likeliest tokens that together have this probability", "累计概率达到此值的最可能 token"],
  top_k: ["Top-k", "Top-k"],
  top_kHint: ["this many of the likeliest tokens; 0 keeps all", "只留这么多最可能的 token；0 为全部"],
  min_p: ["Min-p", "Min-p"],
  min_pHint: ["tokens at least this times as likely as the likeliest", "概率至少为最大概率的这个倍数"],
  max_tokens: ["Longest answer", "最大长度"],
  max_tokensHint: ["in tokens", "以 token 计"],
  seed: ["Seed", "随机种子"],
  seedHint: ["the same seed gives the same answer", "相同种子得到相同回答"],
  repetition_penalty: ["Repetition penalty", "重复惩罚"],
  repetition_penaltyHint: ["above 1, what occurred becomes less likely", "大于 1 时，出现过的 token 概率降低"],
  presence_penalty: ["Presence penalty", "存在惩罚"],
  presence_penaltyHint: ["against each token that the answer holds", "针对回答中已有的 token"],
  frequency_penalty: ["Frequency penalty", "频率惩罚"],
  frequency_penaltyHint: ["as often as it holds it", "按出现次数累计"],
  thinkingMode: ["Thinking", "思考"],
  byDefault: ["default", "默认"],
  on: ["on", "开"],
  off: ["off", "关"],
  look: ["Appearance", "外观"],
  theme: ["Theme", "主题"],
  themeAuto: ["System", "跟随系统"],
  themeLight: ["Light", "浅色"],
  themeDark: ["Dark", "深色"],
  language: ["Language", "语言"],
  // The key
  keyTitle: ["This server asks for a key", "此服务器需要密钥"],
  keyText: ["It is kept until you close this tab.", "密钥只保留到关闭此标签页。"],
  keyLabel: ["API key", "API 密钥"],
  keyRemember: ["Remember it in this browser", "在此浏览器中记住"],
  keyUse: ["Use this key", "使用此密钥"],
  keyEnter: ["Enter the key", "输入密钥"],
  keyForget: ["Forget the key", "忘记密钥"],
  keyForgotten: ["The key is forgotten.", "密钥已忘记。"],
  // What can go wrong
  tryAgain: ["Try again", "重试"],
  errorAway: [
    "The server can't be reached. Is `cygnet serve` still running?",
    "无法连接服务器。`cygnet serve` 还在运行吗？",
  ],
  errorCut: ["The connection ended before the answer did.", "回答还没结束，连接就断了。"],
  errorKey: ["The server did not take the key.", "服务器不接受这个密钥。"],
  errorKeyText: ["A key has letters, digits and signs, without spaces.", "密钥由字母、数字和符号组成，不含空格。"],
  errorBusy: ["The server is busy.", "服务器正忙。"],
  errorBusyWait: ["The server is busy; trying again in {seconds} s.", "服务器正忙，{seconds} 秒后重试。"],
  errorContext: [
    "This is too long for the model's context. Shorten the message or the system prompt, or ask for a shorter answer.",
    "内容超出了模型的上下文。请缩短消息或系统提示词，或减小最大长度。",
  ],
  errorRefused: ["The server refused the request.", "服务器拒绝了请求。"],
  errorServer: ["The server failed.", "服务器出错了。"],
  errorNoModel: ["The server offers no model.", "服务器没有提供模型。"],
  errorFull: [
    "The browser's storage is full: this conversation is not kept. Save or delete older ones.",
    "浏览器存储已满：本次对话没有保存。请导出或删除较早的对话。",
  ],
  errorNoStorage: [
    "This browser lets the page keep nothing: conversations end with this tab.",
    "此浏览器不允许保存数据：关闭标签页后对话即消失。",
  ],
  // Shortcuts
  keySend: ["Send", "发送"],
  keyLine: ["New line", "换行"],
  keyStop: ["Stop; close what is open", "停止；关闭弹出内容"],
  keyEdit: ["Edit the last message (in an empty field)", "编辑上一条消息（输入框为空时）"],
  keyFocus: ["Go to the message field", "回到输入框"],
  keyNew: ["New chat", "新对话"],
  keyChats: ["Show or hide conversations", "显示或隐藏对话列表"],
  keySettings: ["Show or hide settings", "显示或隐藏设置"],
  keyHelp: ["This list", "本列表"],
};

export const LANGUAGES = [["en", "English"], ["zh", "中文"]];

let column = 0;

/** Return the words of this name, with `{name}` replaced by `values.name`. */
export function t(name, values = {}) {
  const words = WORDS[name][column];
  return words.replace(/\{(\w+)\}/g, (_, key) => values[key]);
}

/** Speak "en" or "zh"; without a choice, the browser's language where it is one of the two. */
export function setLanguage(chosen) {
  const wanted = chosen ?? (navigator.language.toLowerCase().startsWith("zh") ? "zh" : "en");
  column = wanted === "zh" ? 1 : 0;
  document.documentElement.lang = wanted === "zh" ? "zh-Hans" : "en";
  for (const node of document.querySelectorAll("[data-words]")) node.textContent = t(node.dataset.words);
  for (const node of document.querySelectorAll("[data-label]")) {
    node.setAttribute("aria-label", t(node.dataset.label));
    if (node.tagName === "BUTTON") node.title = t(node.dataset.label);
  }
  for (const node of document.querySelectorAll("[data-hint]")) node.placeholder = t(node.dataset.hint);
}

export const language = () => (column ? "zh" : "en");
