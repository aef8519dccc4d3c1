// One open conversation: its history, and the place to write.

import { el, icon, observeAnew, place, toast } from "./dom.js";
import { channelName, dayKey, dayName, fileSize, hue } from "./format.js";
import { avatar } from "./list.js";
import { bubble } from "./message.js";
import { isUnread } from "./store.js";

const GROUP_MS = 5 * 60_000;
const NEAR_BOTTOM_PX = 120;
// A message was seen once half of it is in sight, or as much of it as fills half of the log: a tall one does when it lies over
// the log's middle, which is a narrow band here and no line, as browsers round.
const SEEN_WHEN = [{ threshold: 0.5 }, { rootMargin: "-49% 0px" }];

export class Thread {
  #actions;
  #userId;
  #conversation = null;
  #bubbles = new Map();
  #days = new Map();
  #reply = null;
  #file = null;
  #drafts = new Map();
  #fetching = new Set(); // conversations of which an older page is under way
  #cursor; // where the history that is shown goes on
  #start;
  #pinned = true;
  #seen;

  /** actions: older(conversation), send(conversation, draft), read(message), back(), and those of a bubble. */
  constructor({ userId, maxFileBytes, actions }) {
    this.#userId = userId;
    this.#actions = actions;
    this.maxFileBytes = maxFileBytes;
    this.title = el("h1", {});
    this.subtitle = el("p", {});
    this.face = el("span");
    this.items = el("div", { class: "items" });
    this.log = el("div", { class: "messages", role: "log", "aria-label": "Messages", tabindex: 0 }, this.items);
    this.sentinel = el("div", { class: "sentinel" });
    this.latest = el("button", { type: "button", class: "latest", hidden: true, "aria-label": "Go to the latest message", onclick: () => this.#toBottom("smooth") }, icon("latest"));
    this.text = el("textarea", { rows: 1, maxlength: 65536, placeholder: "Write a message", "aria-label": "Message", dir: "auto", oninput: () => this.#typed(), onkeydown: (event) => this.#keys(event), onpaste: (event) => this.#pasted(event) });
    this.picker = el("input", { type: "file", class: "hidden", tabindex: -1, "aria-label": "File", onchange: () => this.#choose(this.picker.files[0]) });
    this.button = el("button", { type: "submit", class: "icon-button send", "aria-label": "Send", title: "Send" }, icon("send"));
    this.extras = el("div", { class: "extras" });
    this.composer = el("form", { class: "composer", "aria-label": "Write", onsubmit: (event) => this.#submit(event) },
      this.extras,
      el("div", { class: "composer-line" },
        el("button", { type: "button", class: "icon-button", title: "Attach a file", "aria-label": "Attach a file", onclick: () => this.picker.click() }, icon("attach")),
        this.picker, this.text, this.button));
    this.root = el("section", { class: "thread", "aria-label": "Conversation", ondragover: (event) => event.preventDefault(), ondrop: (event) => this.#dropped(event) },
      el("header", {},
        el("button", { type: "button", class: "icon-button back", "aria-label": "Back to the conversations", onclick: () => actions.back() }, icon("back")),
        this.face, el("div", { class: "heading" }, this.title, this.subtitle)),
      el("div", { class: "scroll-area" }, this.log, this.latest),
      this.composer);
    this.log.addEventListener("scroll", () => this.#scrolled(), { passive: true });
    this.#start = new IntersectionObserver((seen) => seen.at(-1).isIntersecting && this.#older(), { root: this.log, rootMargin: "300px 0px 0px" });
    this.#seen = SEEN_WHEN.map((when) => new IntersectionObserver((entries) => this.#visible(entries), { root: this.log, ...when }));
    // Previews and file names come later than the message: who was at the end stays there.
    new ResizeObserver(() => this.#pinned && this.#toBottom()).observe(this.items);
    addEventListener("focus", () => this.#lookAgain());
    document.addEventListener("visibilitychange", () => this.#lookAgain());
  }

  /** null: none any more. */
  open(conversation) {
    if (this.#conversation) this.#drafts.set(this.#conversation, { text: this.text.value, reply: this.#reply, file: this.#file });
    this.#conversation = conversation;
    this.#bubbles.clear();
    this.#days.clear();
    this.items.replaceChildren();
    const draft = this.#drafts.get(conversation) ?? { text: "", reply: null, file: null };
    this.text.value = draft.text;
    this.#reply = draft.reply;
    this.#file = draft.file;
    this.#cursor = undefined;
    this.#pinned = true;
    this.#drawExtras();
    this.#typed();
    this.draw();
    this.#toBottom();
    if (matchMedia("(pointer: fine)").matches) this.text.focus();
  }

  draw() {
    const conversation = this.#conversation;
    if (!conversation) return;
    const name = conversation.nameFor(this.#userId);
    this.title.textContent = name;
    this.subtitle.textContent = this.#about(conversation);
    const face = avatar(name, conversation.conversation_id, conversation.channel);
    this.face.replaceWith(face);
    this.face = face;
    this.#drawMessages(conversation);
  }

  replyTo(message) {
    this.#reply = message;
    this.#drawExtras();
    this.text.focus();
  }

  jump(messageId) {
    const node = this.#bubbles.get(messageId)?.node;
    node?.scrollIntoView({ block: "center", behavior: "smooth" });
    node?.classList.add("flash");
    setTimeout(() => node?.classList.remove("flash"), 1500);
  }

  #about(conversation) {
    const others = conversation.members.filter((member) => member.id !== this.#userId);
    if (others.length === 1) return others[0].kind === "contact" ? `${channelName(others[0].channel)} · ${others[0].id.replace(/^[^:]+:/, "")}` : "On Chat4All";
    return others.length ? `You, ${others.map((member) => member.name || member.id).join(", ")}` : "Only you";
  }

  #drawMessages(conversation) {
    const heightBefore = this.log.scrollHeight;
    const topBefore = this.log.scrollTop;
    const firstBefore = this.log.querySelector("[data-message-id]")?.dataset.messageId;
    const messages = conversation.ordered;
    const nodes = [this.sentinel];
    messages.forEach((message, index) => {
      const day = dayKey(message.accepted_at);
      const before = messages[index - 1];
      if (!before || dayKey(before.accepted_at) !== day) nodes.push(this.#day(day, message.accepted_at));
      nodes.push(this.#bubble(conversation, message, before, messages[index + 1]));
    });
    if (!messages.length) nodes.push(this.#day("none", null));
    place(this.items, nodes);
    const grewAbove = firstBefore && this.log.querySelector("[data-message-id]")?.dataset.messageId !== firstBefore;
    if (grewAbove) this.log.scrollTop = topBefore + this.log.scrollHeight - heightBefore;
    else if (this.#pinned) this.#toBottom();
    this.latest.hidden = this.#pinned;
    if (conversation.older !== this.#cursor) observeAnew(this.#start, this.sentinel); // a page may leave the start in sight
    this.#cursor = conversation.older;
  }

  #day(key, iso) {
    const text = iso ? dayName(iso) : this.#conversation.older === undefined ? "Loading…" : "No messages yet. Say hello!";
    const known = this.#days.get(key);
    if (known?.textContent === text) return known;
    const node = el("div", { class: "day", role: "separator" }, el("span", {}, text));
    this.#days.set(key, node);
    return node;
  }

  #bubble(conversation, message, before, after) {
    const id = message.message_id ?? message.key;
    const mine = message.sender_id === this.#userId;
    const starts = !continues(before, message);
    const ends = !after || !continues(message, after);
    const name = conversation.nameOf(message.sender_id, this.#userId);
    const author = mine || conversation.members.length < 3 ? null : { name, hue: hue(message.sender_id) };
    const quoted = this.#quoted(conversation, message.reply_to);
    const signature = JSON.stringify([message.status, message.content, message.file_id, message.accepted_at, message.failure, starts, ends, author, quoted]);
    const known = this.#bubbles.get(id);
    if (known?.signature === signature) return known.node;
    const node = bubble(message, { mine, author, starts, ends, quoted, actions: this.#actions });
    if (known) this.#unwatch(known.node);
    this.#bubbles.set(id, { signature, node });
    if (!mine && isUnread(message, this.#userId)) this.#watch(node);
    return node;
  }

  #quoted(conversation, id) {
    const message = id && conversation.messages.get(id);
    return message ? { message_id: id, author: conversation.nameOf(message.sender_id, this.#userId), text: excerpt(message) } : null;
  }

  // --- reading

  #watch(node) {
    for (const each of this.#seen) observeAnew(each, node);
  }

  #unwatch(node) {
    for (const each of this.#seen) each.unobserve(node);
  }

  #visible(entries) {
    if (document.hidden || !document.hasFocus()) return;
    for (const { target, isIntersecting } of entries) {
      const message = isIntersecting && this.#conversation?.messages.get(target.dataset.messageId);
      if (!message || !isUnread(message, this.#userId)) continue;
      this.#unwatch(target);
      this.#actions.read(message);
    }
  }

  /** Somebody came back to the page: what is in sight counts as seen now. */
  #lookAgain() {
    if (!this.#conversation) return;
    for (const message of this.#conversation.messages.values()) {
      const node = isUnread(message, this.#userId) && this.#bubbles.get(message.message_id)?.node;
      if (node) this.#watch(node);
    }
  }

  async #older() {
    const conversation = this.#conversation;
    if (!conversation?.older || this.#fetching.has(conversation)) return;
    this.#fetching.add(conversation);
    try {
      await this.#actions.older(conversation);
    } catch (error) {
      toast(error.message, "bad");
    } finally {
      this.#fetching.delete(conversation);
    }
  }

  #nearBottom() {
    return this.log.scrollHeight - this.log.scrollTop - this.log.clientHeight < NEAR_BOTTOM_PX;
  }

  #toBottom(behavior = "instant") {
    this.log.scrollTo({ top: this.log.scrollHeight, behavior });
  }

  #scrolled() {
    this.#pinned = this.#nearBottom();
    this.latest.hidden = this.#pinned;
  }

  // --- writing

  #typed() {
    this.text.style.setProperty("height", "auto");
    this.text.style.setProperty("height", `${Math.min(this.text.scrollHeight, 180)}px`);
    this.button.disabled = !this.text.value.trim() && !this.#file;
  }

  #keys(event) {
    if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
      event.preventDefault();
      this.composer.requestSubmit();
    } else if (event.key === "Escape" && (this.#reply || this.#file)) {
      event.stopPropagation();
      this.#clearExtras();
    }
  }

  #pasted(event) {
    const [file] = event.clipboardData.files;
    if (file) {
      event.preventDefault();
      this.#choose(file);
    }
  }

  #dropped(event) {
    event.preventDefault();
    if (event.dataTransfer.files[0]) this.#choose(event.dataTransfer.files[0]);
  }

  #choose(file) {
    this.picker.value = ""; // so that the same file may be chosen again
    if (!file) return;
    if (file.size > this.maxFileBytes || !file.size) {
      toast(file.size ? `A file may have up to ${fileSize(this.maxFileBytes)}.` : "The file is empty.", "bad");
      return;
    }
    this.#file = file;
    this.#drawExtras();
    this.#typed();
    this.text.focus();
  }

  #clearExtras() {
    this.#reply = null;
    this.#file = null;
    this.#drawExtras();
    this.#typed();
  }

  #drawExtras() {
    const cancel = (label) => el("button", { type: "button", class: "icon-button small", "aria-label": label, onclick: () => this.#clearExtras() }, icon("close"));
    place(this.extras, [
      this.#reply && el("div", { class: "extra" }, icon("reply"), el("span", {}, el("b", {}, this.#conversation.nameOf(this.#reply.sender_id, this.#userId)), el("span", {}, excerpt(this.#reply))), cancel("Do not reply")),
      this.#file && el("div", { class: "extra" }, icon("file"), el("span", {}, el("b", {}, this.#file.name), el("span", {}, fileSize(this.#file.size))), cancel("Do not attach")),
    ].filter(Boolean));
  }

  #submit(event) {
    event.preventDefault();
    const content = this.text.value.trim();
    if (!content && !this.#file) return;
    const draft = { content, file: this.#file, replyTo: this.#reply?.message_id ?? null };
    this.text.value = "";
    this.#clearExtras();
    this.#pinned = true;
    this.#actions.send(this.#conversation, draft);
    this.#toBottom();
  }
}

/** The same author, the same day, and not long after: drawn as one group. */
function continues(before, message) {
  if (!before || before.sender_id !== message.sender_id) return false;
  return dayKey(before.accepted_at) === dayKey(message.accepted_at) && new Date(message.accepted_at) - new Date(before.accepted_at) < GROUP_MS;
}

const excerpt = (message) => (message.content || "File").slice(0, 140);
