// The console: sign in, then conversations on the left and the open one on the right.

import { Api } from "./api.js";
import { el, icon, toast } from "./dom.js";
import { ConversationList, avatar } from "./list.js";
import { Live } from "./live.js";
import { details } from "./message.js";
import { composeDialog } from "./compose.js";
import { signInView } from "./signin.js";
import { Store } from "./store.js";
import { Thread } from "./thread.js";

const PAGE = 50;
const LIST_PAGE = 30;
const PREVIEWS_AT_ONCE = 3;
const AGAIN_AFTER_MS = 3_000;
const MAX_PREVIEW_BYTES = 20 * 1024 * 1024;

const NOT_LIVE = "Messages are sent, and arrive once we are connected again";
const STATES = {
  live: { text: "Live", title: "Messages arrive as they happen" },
  connecting: { text: "Connecting…", title: NOT_LIVE },
  offline: { text: "Reconnecting…", title: NOT_LIVE },
  paused: { text: "Paused: open elsewhere", title: "Chat4All is open in many other places. Messages are sent, and arrive once you come back to this page" },
};

const app = document.getElementById("app");
const { gatewayUrl, maxFileBytes } = document.body.dataset;
const api = new Api();

class Console {
  #store = new Store();
  #me = { user_id: api.userId, username: "", display_name: "" };
  #open = null;
  #cursor = undefined; // of the list: undefined before the first page, null after the last
  #listing = null; // the page of the list that is under way
  #files = new Map();
  #reads = new Set();
  #readQueue = Promise.resolve();
  #previews = new Set();
  #fetchingPreviews = 0;

  constructor() {
    this.list = new ConversationList({
      store: this.#store, userId: api.userId,
      onOpen: (id) => this.open(id), onCompose: () => this.#compose(),
      onSearch: () => this.#preview(), onMore: () => this.#goOn(), isWhole: () => this.#cursor === null,
    });
    this.thread = new Thread({
      userId: api.userId, maxFileBytes: Number(maxFileBytes),
      actions: {
        older: (conversation) => this.#older(conversation),
        send: (conversation, draft) => this.#send(conversation, draft),
        retry: (message) => this.#retry(message),
        read: (message) => this.#read(message),
        back: () => this.close(),
        details: (message, anchor) => this.#details(message, anchor),
        reply: (message) => this.thread.replyTo(message),
        jump: (id) => this.thread.jump(id),
        file: (id) => this.#file(id),
        open: (id) => this.#download(id),
      },
    });
    this.state = el("span", { class: "state", role: "status" });
    this.self = el("div", { class: "self" });
    this.popover = el("div", { class: "popover", popover: "auto", role: "dialog", "aria-label": "Delivery details" });
    this.placeholder = el("section", { class: "placeholder" }, el("span", { class: "mark large" }, icon("ticks")), el("h2", {}, "Pick a conversation"), el("p", {}, "Messages from every channel arrive here as they happen."));
    this.root = el("main", { class: "console" }, el("aside", {}, this.#header(), this.list.root), this.placeholder, this.thread.root, this.popover);
    this.thread.root.hidden = true;
    this.#store.addEventListener("change", () => this.#draw());
    this.live = new Live(api, gatewayUrl, {
      frame: (frame) => this.#frame(frame), resync: () => this.#resync(), state: (state) => this.#showState(state),
    });
    this.onKey = (event) => this.#keys(event);
    document.addEventListener("keydown", this.onKey);
    api.onToken = () => this.live.renew();
  }

  async start() {
    app.replaceChildren(this.root);
    this.#showState("connecting");
    this.live.connect();
    await Promise.all([this.#whoAmI(), this.#resync()]);
    const wanted = decodeURIComponent(location.hash.slice(1));
    if (wanted && this.#store.get(wanted)) this.open(wanted);
  }

  stop() {
    this.live.stop();
    document.removeEventListener("keydown", this.onKey);
  }

  // --- what is shown

  #header() {
    return el("header", {}, this.self, this.state,
      el("button", { type: "button", class: "icon-button", title: "Sign out", "aria-label": "Sign out", onclick: () => api.signOut() }, icon("leave")));
  }

  async #whoAmI() {
    this.#me = await api.get("/v1/users/me").catch(() => this.#me);
    const name = this.#me.display_name || this.#me.username || "You";
    this.self.replaceChildren(avatar(name, api.userId), el("span", { class: "self-name" }, el("b", {}, name), el("small", {}, this.#me.username ? `@${this.#me.username}` : "")));
  }

  #showState(state) {
    const { text, title } = STATES[state];
    this.state.className = `state ${state}`;
    this.state.textContent = text;
    this.state.title = title;
  }

  #draw() {
    this.list.draw();
    this.thread.draw();
    const unread = [...this.#store.conversations.values()].reduce((sum, each) => sum + each.unreadBy(api.userId), 0);
    document.title = unread ? `(${unread}) Chat4All` : "Chat4All";
  }

  open(id) {
    const conversation = this.#store.get(id);
    this.#open = conversation;
    this.list.openId = id;
    history.replaceState(null, "", `#${encodeURIComponent(id)}`);
    this.root.classList.add("reading");
    this.placeholder.hidden = true;
    this.thread.root.hidden = false;
    this.thread.open(conversation);
    this.list.draw();
    if (!conversation.isWhole) this.#latest(conversation).catch((error) => toast(error.message, "bad"));
  }

  close() {
    this.root.classList.remove("reading");
    history.replaceState(null, "", location.pathname);
    this.list.rows.querySelector("[aria-current=true]")?.focus();
  }

  #keys(event) {
    if ((event.ctrlKey || event.metaKey) && event.key.toLowerCase() === "k") {
      event.preventDefault();
      this.close();
      this.list.search.focus();
    } else if (event.key === "Escape" && this.root.classList.contains("reading") && !document.querySelector("dialog[open], :popover-open")) {
      this.close();
    }
  }

  // --- what comes in

  #frame(frame) {
    if (frame.type === "message") this.#arrived(frame.message ?? frame);
    else if (frame.type === "status") this.#statusChanged(frame);
    else if (frame.type === "conversation") this.#store.put(frame.conversation ?? frame);
    this.#store.changed();
  }

  #arrived(message) {
    const known = this.#store.get(message.conversation_id);
    const conversation = known ?? this.#store.put({ conversation_id: message.conversation_id, last_activity_at: message.accepted_at });
    if (!known) this.#refetch(conversation).catch(() => {});
    if (message.sender_id === api.userId && !conversation.messages.has(message.message_id)) conversation.settle(message);
    conversation.add(message);
  }

  #statusChanged(frame) {
    this.#store.get(frame.conversation_id)?.apply(frame);
  }

  /** A conversation that we heard of before we were told who is in it. */
  async #refetch(conversation) {
    const page = await api.get(`/v1/conversations?limit=${LIST_PAGE}`);
    for (const fields of page.items) this.#store.put(fields);
    if (conversation.older === undefined) await this.#latest(conversation);
  }

  /** History is the truth: fetch all that was loaded again, what is shown first. What fails stays marked until it is
   * shown, or the next resync. Pages that are under way may be from before it. */
  async #resync() {
    for (const each of this.#store.conversations.values()) each.mayHaveMissed();
    this.#cursor = undefined;
    this.#listing = null;
    await this.#more().catch((error) => {
      toast(error.message, "bad");
      this.#lookAgain();
    });
    if (this.#open && !this.#open.isWhole) await this.#latest(this.#open).catch(() => {});
    this.#preview();
  }

  /** The end of the list is in sight. Nothing else would try again: it stays there. */
  #goOn() {
    this.#more().catch(() => this.#lookAgain());
  }

  #lookAgain() {
    setTimeout(() => this.list.lookAgain(), AGAIN_AFTER_MS);
  }

  async #more() {
    if (this.#listing || this.#cursor === null) return;
    const listing = (this.#listing = {});
    try {
      const page = await api.get(`/v1/conversations?limit=${LIST_PAGE}${this.#cursor ? `&cursor=${encodeURIComponent(this.#cursor)}` : ""}`);
      for (const fields of page.items) this.#store.put(fields);
      if (listing === this.#listing) this.#cursor = page.next_cursor ?? null;
    } finally {
      if (listing === this.#listing) this.#listing = null;
    }
    this.#store.changed(); // also when there is nothing: the list says so
    if (this.#cursor !== null) this.list.lookAgain();
    this.#preview();
  }

  /** Fetch the newest page of each conversation that the list shows, a few at a time: it says how each one stands. */
  #preview() {
    for (const each of this.#store.conversations.values()) if (!each.isWhole) this.#previews.add(each);
    this.#fetchPreviews();
  }

  #fetchPreviews() {
    for (const conversation of this.#previews) {
      if (this.#fetchingPreviews >= PREVIEWS_AT_ONCE) return;
      this.#previews.delete(conversation);
      if (conversation.isWhole || !this.list.shows(conversation)) continue;
      this.#fetchingPreviews += 1;
      this.#latest(conversation).catch(() => {}).finally(() => {
        this.#fetchingPreviews -= 1;
        this.#fetchPreviews();
      });
    }
  }

  /** The newest page; further ones until it meets what is known already, so that a long absence leaves no hole. */
  async #latest(conversation) {
    const { missed } = conversation;
    const newestKnown = missed ? missed.since : conversation.newestId;
    const first = conversation.older === undefined;
    let cursor = "";
    let met = first || !newestKnown;
    do {
      const page = await this.#page(conversation, cursor);
      met ||= page.items.some((message) => message.message_id <= newestKnown);
      cursor = page.next_cursor ?? null;
    } while (cursor && !met);
    if (conversation.missed === missed) { // no later resync came meanwhile
      if (conversation.older === undefined) conversation.older = cursor;
      conversation.missed = null;
    }
    this.#store.changed();
  }

  async #older(conversation) {
    const page = await this.#page(conversation, conversation.older);
    conversation.older = page.next_cursor ?? null;
    this.#store.changed();
  }

  async #page(conversation, cursor) {
    const id = encodeURIComponent(conversation.conversation_id);
    const page = await api.get(`/v1/conversations/${id}/messages?limit=${PAGE}${cursor ? `&cursor=${encodeURIComponent(cursor)}` : ""}`).catch((error) => {
      if (error.code !== "conversation_not_found") throw error;
      this.#drop(conversation);
      return { items: [] };
    });
    for (const message of page.items) conversation.add(message);
    return page;
  }

  /** We were removed from it: nothing of it is ours to show any more. */
  #drop(conversation) {
    this.#store.drop(conversation);
    if (this.#open !== conversation) return;
    this.#open = this.list.openId = null;
    this.thread.root.hidden = true;
    this.placeholder.hidden = false;
    this.thread.open(null);
    this.close();
    toast(`You are not in “${conversation.nameFor(api.userId)}” any more.`);
  }

  // --- what goes out

  async #send(conversation, { content, file, replyTo }) {
    const key = crypto.randomUUID();
    const draft = { key, conversation_id: conversation.conversation_id, sender_id: api.userId, content, file, file_id: null, reply_to: replyTo, status: "SENDING", statuses: [], accepted_at: new Date().toISOString() };
    conversation.pending.set(key, draft);
    this.#store.changed();
    await this.#post(conversation, draft);
  }

  async #retry(draft) {
    const conversation = this.#store.get(draft.conversation_id);
    const again = { ...draft, status: "SENDING", failure: null };
    conversation.pending.set(draft.key, again);
    this.#store.changed();
    await this.#post(conversation, again);
  }

  /** The Idempotency-Key makes it safe to try again when we do not know whether the first one came through. */
  async #post(conversation, draft) {
    try {
      if (draft.file && !draft.file_id) {
        const stored = await this.#upload(conversation, draft);
        draft.file_id = stored.file_id;
        this.#remember(stored, draft.file);
        this.#store.changed();
      }
      const body = { conversation_id: conversation.conversation_id, ...(draft.content && { content: draft.content }), ...(draft.file_id && { file_id: draft.file_id }), ...(draft.reply_to && { reply_to: draft.reply_to }) };
      const receipt = await api.post("/v1/messages", body, { "Idempotency-Key": draft.key });
      conversation.pending.delete(draft.key);
      const { key, file, failure, ...message } = draft;
      conversation.add({ ...message, message_id: receipt.message_id, status: receipt.status, accepted_at: receipt.accepted_at });
    } catch (error) {
      if (conversation.pending.has(draft.key)) conversation.pending.set(draft.key, { ...draft, status: "FAILED", failure: error.message });
      toast(error.message, "bad");
    }
    this.#store.changed();
  }

  async #upload(conversation, draft) {
    const bar = el("progress", { max: 1, value: 0, "aria-label": `Uploading ${draft.file.name}` });
    const note = el("div", { class: "toast" }, `Uploading ${draft.file.name}`, bar);
    document.getElementById("toasts").append(note);
    try {
      return await api.upload(draft.file, conversation.conversation_id, (part) => (bar.value = part));
    } finally {
      note.remove();
    }
  }

  /** One after another, so that opening a long conversation is no burst. */
  #read(message) {
    const id = message.message_id;
    if (this.#reads.has(id)) return;
    this.#reads.add(id);
    this.#readQueue = this.#readQueue.then(async () => {
      try {
        await api.post(`/v1/messages/${id}/read`);
        this.#store.get(message.conversation_id)?.apply({ message_id: id, recipient_id: api.userId, status: "READ", at: new Date().toISOString() });
        this.#store.changed();
      } catch {
        this.#reads.delete(id);
      }
    });
  }

  #compose() {
    composeDialog(api, (fields) => {
      this.#store.put({ last_activity_at: new Date().toISOString(), ...fields });
      this.open(fields.conversation_id);
    });
  }

  // --- files and details

  #remember(description, blob) {
    const local = blob && description.content_type.startsWith("image/") ? URL.createObjectURL(blob) : null;
    this.#files.set(description.file_id, Promise.resolve({ ...description, preview: local }));
  }

  #file(id) {
    if (!this.#files.has(id)) {
      const found = this.#describe(id);
      found.catch(() => this.#files.delete(id));
      this.#files.set(id, found);
    }
    return this.#files.get(id);
  }

  async #describe(id) {
    const file = await api.get(`/v1/files/${id}`);
    const shows = file.content_type.startsWith("image/") && file.size <= MAX_PREVIEW_BYTES;
    return { ...file, preview: shows ? (await api.get(`/v1/files/${id}/download`)).download_url : null };
  }

  async #download(id) {
    const { download_url } = await api.get(`/v1/files/${id}/download`);
    const link = el("a", { href: download_url, download: "", rel: "noopener noreferrer" });
    link.click();
  }

  async #details(message, anchor) {
    const conversation = this.#store.get(message.conversation_id);
    const show = (known) => this.popover.replaceChildren(...details(known, (id) => conversation.nameOf(id, api.userId)));
    show({ history: [], ...message });
    this.popover.showPopover();
    const place = () => {
      const { right, top, bottom } = anchor.getBoundingClientRect();
      const { offsetHeight: height, offsetWidth: width } = this.popover;
      this.popover.style.setProperty("left", `${Math.max(8, Math.min(right - width, innerWidth - width - 8))}px`);
      this.popover.style.setProperty("top", `${top - height - 8 > 8 ? top - height - 8 : Math.min(bottom + 8, innerHeight - height - 8)}px`);
    };
    place();
    try {
      show({ history: [], ...(await api.get(`/v1/messages/${message.message_id}`)) });
      place();
    } catch (error) {
      toast(error.message, "bad");
    }
  }
}

let current = null;

function show() {
  current?.stop();
  current = null;
  if (!api.signedIn) {
    document.title = "Chat4All";
    app.replaceChildren(signInView(api, show));
    app.querySelector("input")?.focus();
    return;
  }
  current = new Console();
  current.start().catch((error) => toast(error.message, "bad"));
}

api.onSignedOut = show;
show();
