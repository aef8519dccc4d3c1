// What is known: conversations and their messages, merged from REST pages, frames and what was just typed.
// Everything may arrive twice and in any order; merging is by id, and statuses only move forward.

const RANK = { SENDING: -2, ACCEPTED: -1, SENT: 0, FAILED: 1, DELIVERED: 1000, READ: 2000 };

export const isOpen = (status) => status === "SENDING" || status === "ACCEPTED";

function furtherStatus(before, after) {
  if (!before || RANK[after.status] > RANK[before.status]) return after;
  // A failed send that was tried again: news of the same attempt never goes from FAILED to SENT.
  const retried = before.status === "FAILED" && after.status === "SENT" && (after.at ?? "") > (before.at ?? "");
  return retried ? after : before;
}

function mergedStatuses(before = [], after = []) {
  const byRecipient = new Map(before.map((each) => [each.recipient_id, each]));
  for (const each of after) byRecipient.set(each.recipient_id, furtherStatus(byRecipient.get(each.recipient_id), each));
  return [...byRecipient.values()];
}

/** The message as a whole shows the lowest of its recipients. */
function lowest(statuses, fallback) {
  if (!statuses.length) return fallback;
  return statuses.reduce((low, each) => (RANK[each.status] < RANK[low.status] ? each : low)).status;
}

function merged(before, after) {
  if (!before) return { ...after, statuses: after.statuses ?? [] };
  const statuses = mergedStatuses(before.statuses, after.statuses);
  const newer = RANK[after.status] > RANK[before.status] ? after.status : before.status;
  return { ...before, ...after, statuses, status: lowest(statuses, newer) };
}

export class Conversation {
  messages = new Map();
  pending = new Map(); // typed here, not yet acknowledged: by Idempotency-Key
  older = undefined; // the cursor for older pages; null: history is complete; undefined: nothing loaded
  missed = null; // something may have been since a resync: the newest message that was known then, see Console.#latest
  #waiting = new Map(); // statuses that came before their message

  constructor(fields) {
    this.update(fields);
  }

  update(fields) {
    const known = this.last_activity_at ?? "";
    Object.assign(this, { title: "", members: [] }, this.#known(), fields);
    if (this.last_activity_at < known) this.last_activity_at = known; // what comes last may be older
  }

  #known() {
    const { title, members, last_activity_at } = this;
    return Object.fromEntries(Object.entries({ title, members, last_activity_at }).filter(([, value]) => value));
  }

  /** What was missed lies behind the newest message of the first resync that was not made good. */
  mayHaveMissed() {
    this.missed = { since: this.missed?.since ?? this.newestId };
  }

  /** "" when nothing is known. */
  get newestId() {
    return [...this.messages.keys()].sort().at(-1) ?? "";
  }

  get isWhole() {
    return this.older !== undefined && !this.missed;
  }

  /** In the order of history: by message id, which sorts by time. What is still being sent comes last. */
  get ordered() {
    const known = [...this.messages.values()].sort((a, b) => (a.message_id < b.message_id ? -1 : 1));
    return [...known, ...this.pending.values()];
  }

  get last() {
    return this.ordered.at(-1);
  }

  add(message) {
    const waiting = this.#waiting.get(message.message_id) ?? [];
    this.#waiting.delete(message.message_id);
    const whole = waiting.reduce(merged, merged(this.messages.get(message.message_id), message));
    this.messages.set(message.message_id, whole);
    if (!this.last_activity_at || message.accepted_at > this.last_activity_at) this.last_activity_at = message.accepted_at;
  }

  /** One recipient's news, from a frame. */
  apply({ message_id, recipient_id, status, at, reason }) {
    const news = { status, statuses: [{ recipient_id, status, at, reason }] };
    const message = this.messages.get(message_id);
    if (message) this.messages.set(message_id, merged(message, { ...news, status: message.statuses.length ? message.status : status }));
    else this.#waiting.set(message_id, [...(this.#waiting.get(message_id) ?? []), news]);
  }

  /** The frame of what this page is sending right now may come before the answer to the POST. */
  settle(message) {
    for (const [key, draft] of this.pending) {
      const same = draft.content === (message.content ?? "") && (draft.file_id ?? null) === (message.file_id ?? null);
      if (!same || draft.status !== "SENDING") continue;
      this.pending.delete(key);
      return;
    }
  }

  unreadBy(userId) {
    return [...this.messages.values()].filter((message) => isUnread(message, userId)).length;
  }

  nameOf(partyId, userId) {
    if (partyId === userId) return "You";
    return this.members.find((member) => member.id === partyId)?.name || partyId;
  }

  /** What the list calls it: its title, or the others in it. */
  nameFor(userId) {
    const others = this.members.filter((member) => member.id !== userId);
    return this.title || others.map((member) => member.name || member.id).join(", ") || "Notes to myself";
  }

  /** The one external channel that it uses, if any. */
  get channel() {
    return this.members.find((member) => member.kind === "contact")?.channel ?? null;
  }
}

/** Pages and frames bring a message with a status for each recipient: whoever has none, it was not sent to. */
export function isUnread(message, userId) {
  if (message.sender_id === userId || !message.message_id) return false;
  return message.statuses.some((each) => each.recipient_id === userId && each.status !== "READ");
}

export class Store extends EventTarget {
  conversations = new Map();
  #queued = false;

  get(id) {
    return this.conversations.get(id);
  }

  put(fields) {
    const known = this.conversations.get(fields.conversation_id);
    if (known) known.update(fields);
    else this.conversations.set(fields.conversation_id, new Conversation(fields));
    this.changed();
    return this.conversations.get(fields.conversation_id);
  }

  drop(conversation) {
    const id = conversation.conversation_id;
    if (this.get(id) === conversation) this.conversations.delete(id);
    this.changed();
  }

  get byActivity() {
    const when = (each) => each.last_activity_at ?? each.created_at ?? "";
    return [...this.conversations.values()].sort((a, b) => (when(a) < when(b) ? 1 : -1));
  }

  /** Draw once per frame, however much arrived. */
  changed() {
    if (this.#queued) return;
    this.#queued = true;
    queueMicrotask(() => {
      this.#queued = false;
      this.dispatchEvent(new Event("change"));
    });
  }
}
