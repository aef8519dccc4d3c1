// The conversations, the most recently active first.

import { el, icon, observeAnew, place } from "./dom.js";
import { channelName, hue, initials, listTime } from "./format.js";
import { tick } from "./message.js";

export function avatar(name, id, channel = null) {
  return el("span", { class: `avatar hue-${hue(id)}`, "aria-hidden": "true" }, initials(name),
    channel && el("span", { class: `badge channel-${channel}`, title: channelName(channel) }));
}

export class ConversationList {
  #store;
  #userId;
  #rows = new Map();
  #filter = "";
  #onOpen;
  #onSearch;
  #isWhole;
  #end;
  openId = null;

  /** onMore(): the end is in sight; isWhole(): the store holds all conversations there are. */
  constructor({ store, userId, onOpen, onCompose, onSearch, onMore, isWhole }) {
    this.#store = store;
    this.#userId = userId;
    this.#onOpen = onOpen;
    this.#onSearch = onSearch;
    this.#isWhole = isWhole;
    this.search = el("input", { type: "search", placeholder: "Search", "aria-label": "Search conversations", oninput: () => this.#search() });
    this.rows = el("ul", { class: "rows", "aria-label": "Conversations", onkeydown: (event) => this.#keys(event) });
    this.empty = el("div", { class: "empty-list" });
    this.sentinel = el("div", { class: "sentinel" });
    this.root = el("div", { class: "list" },
      el("div", { class: "list-tools" },
        el("label", { class: "search" }, icon("search"), this.search),
        el("button", { class: "icon-button accent", type: "button", title: "New conversation", "aria-label": "New conversation", onclick: onCompose }, icon("compose"))),
      el("nav", { class: "scroll", "aria-label": "Conversations" }, this.rows, this.empty, this.sentinel));
    this.#end = new IntersectionObserver((seen) => seen.at(-1).isIntersecting && onMore(), { rootMargin: "200px" });
    this.lookAgain();
  }

  /** Ask for more if the end is in sight, or still is: of a page few may match what is searched for. */
  lookAgain() {
    observeAnew(this.#end, this.sentinel);
  }

  #search() {
    this.#filter = this.search.value.trim().toLowerCase();
    this.draw();
    this.#onSearch();
  }

  /** Whether it is among those that are searched for. */
  shows(conversation) {
    return this.#matches(conversation);
  }

  draw() {
    const all = this.#store.byActivity;
    const shown = all.filter((each) => this.#matches(each));
    place(this.rows, shown.map((each) => this.#row(each)));
    this.empty.textContent = shown.length ? "" : this.#nothing(all);
  }

  #nothing(all) {
    if (!this.#isWhole()) return all.length ? "Still looking…" : "Loading…";
    return all.length ? "Nothing found." : "No conversations yet.";
  }

  #matches(conversation) {
    const text = `${conversation.nameFor(this.#userId)} ${conversation.conversation_id} ${conversation.members.map((each) => each.id).join(" ")}`;
    return text.toLowerCase().includes(this.#filter);
  }

  #row(conversation) {
    const last = conversation.last;
    const unread = conversation.unreadBy(this.#userId);
    const open = conversation.conversation_id === this.openId;
    const name = conversation.nameFor(this.#userId);
    const signature = JSON.stringify([name, last?.content, last?.file_id, last?.status, unread, open, conversation.last_activity_at, conversation.channel]);
    const known = this.#rows.get(conversation.conversation_id);
    if (known?.signature === signature) return known.node;
    const node = known?.node ?? el("li");
    const button = node.firstChild ?? el("button", { type: "button", class: "row", onclick: () => this.#onOpen(conversation.conversation_id) });
    button.classList.toggle("unread", unread > 0);
    button.setAttribute("aria-current", open ? "true" : "false");
    place(button, [
      avatar(name, conversation.conversation_id, conversation.channel),
      el("span", { class: "row-name" }, name),
      el("time", { class: "row-time" }, conversation.last_activity_at ? listTime(conversation.last_activity_at) : ""),
      el("span", { class: "row-preview" }, ...this.#preview(conversation, last)),
      unread ? el("span", { class: "count", "aria-label": `${unread} unread` }, unread > 99 ? "99+" : unread) : el("span"),
    ]);
    if (!node.firstChild) node.append(button);
    this.#rows.set(conversation.conversation_id, { signature, node });
    return node;
  }

  #preview(conversation, last) {
    if (!last) return [""];
    const mine = last.sender_id === this.#userId;
    const who = !mine && conversation.members.length > 2 ? `${conversation.nameOf(last.sender_id, this.#userId)}: ` : "";
    return [mine && tick(last), last.file_id && icon("attach"), `${who}${last.content || (last.file_id ? "File" : "")}`].filter(Boolean);
  }

  #keys(event) {
    const step = { ArrowDown: 1, ArrowUp: -1 }[event.key];
    if (!step) return;
    event.preventDefault();
    const buttons = [...this.rows.querySelectorAll("button")];
    buttons[buttons.indexOf(document.activeElement) + step]?.focus();
  }
}
