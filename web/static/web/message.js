// One message: its bubble, its ticks, its delivery details.

import { el, icon, toast } from "./dom.js";
import { channelName, dayName, exactTime, fileSize, isEmojiOnly, timeOfDay, withLinks } from "./format.js";

const TICKS = {
  SENDING: { icon: "clock", label: "Sending" },
  ACCEPTED: { icon: "clock", label: "Accepted" },
  SENT: { icon: "tick", label: "Sent" },
  DELIVERED: { icon: "ticks", label: "Delivered" },
  READ: { icon: "ticks", label: "Read" },
  FAILED: { icon: "alert", label: "Failed" },
};

export const statusLabel = (status) => TICKS[status]?.label ?? status;

export function tick(message) {
  const shown = TICKS[message.status] ?? TICKS.ACCEPTED;
  return el("span", { class: `tick ${message.status.toLowerCase()}`, role: "img", "aria-label": shown.label, "data-status": message.status }, icon(shown.icon));
}

function body(text) {
  return withLinks(text).map((part) =>
    typeof part === "string" ? part : el("a", { href: part.href, target: "_blank", rel: "noopener noreferrer" }, part.href));
}

/** The bubble of a message. `actions`: details(message, anchor), reply(message), retry(message), jump(id), file(id) → description, open(file). */
export function bubble(message, { mine, author, starts, ends, quoted, actions }) {
  const big = message.content && !message.file_id && isEmojiOnly(message.content);
  const node = el("article", {
    class: ["message", mine ? "mine" : "theirs", starts && "starts", ends && "ends", big && "emoji"].filter(Boolean).join(" "),
    "data-message-id": message.message_id ?? null,
    "data-status": message.status,
  });
  const foot = el("footer", {}, el("time", { datetime: message.accepted_at, title: exactTime(message.accepted_at) }, timeOfDay(message.accepted_at)), mine && ticks(message, actions));
  const content = el("div", { class: "bubble" },
    starts && author && el("div", { class: `author hue-${author.hue}` }, author.name),
    quoted && el("button", { type: "button", class: "quote", onclick: () => actions.jump(quoted.message_id) }, el("b", {}, quoted.author), el("span", {}, quoted.text)),
    message.file_id && attachment(message, actions),
    message.content && el("p", { dir: "auto" }, ...body(message.content)),
    foot);
  node.append(content);
  if (message.message_id) {
    node.append(el("button", { type: "button", class: "icon-button react", title: "Reply", "aria-label": `Reply to ${author?.name ?? "your message"}`, onclick: () => actions.reply(message) }, icon("reply")));
  } else if (message.failure) {
    node.append(el("button", { type: "button", class: "retry", onclick: () => actions.retry(message) }, icon("retry"), "Not sent. Try again"));
  }
  return node;
}

function ticks(message, actions) {
  if (!message.message_id) return tick(message);
  const button = el("button", { type: "button", class: "tick-button", title: "Delivery details", "aria-label": `${statusLabel(message.status)}: delivery details`, "aria-haspopup": "dialog" }, tick(message));
  button.addEventListener("click", () => actions.details(message, button));
  return button;
}

function attachment(message, actions) {
  const name = el("span", { class: "file-name" }, "File");
  const size = el("span", { class: "file-size" }, " ");
  const card = el("button", { type: "button", class: "file", "aria-label": "Download file", onclick: () => actions.open(message.file_id).catch((error) => toast(error.message, "bad")) },
    el("span", { class: "file-icon" }, icon("file")), el("span", { class: "file-text" }, name, size), icon("down", "file-down"));
  const box = el("div", { class: "attachment" }, card);
  actions.file(message.file_id).then((file) => {
    name.textContent = file.filename;
    size.textContent = fileSize(file.size);
    card.setAttribute("aria-label", `Download ${file.filename}, ${fileSize(file.size)}`);
    if (file.preview) box.prepend(el("img", { class: "preview", src: file.preview, alt: file.filename, loading: "lazy", onclick: () => card.click() }));
  }).catch(() => {
    name.textContent = "File not available";
    card.disabled = true;
  });
  return box;
}

/** The popover behind the ticks: each recipient's way, as it was reported. */
export function details(message, nameOf) {
  const byRecipient = new Map();
  for (const each of message.history) {
    if (!each.recipient_id) continue; // accepted: that was before recipients counted
    byRecipient.set(each.recipient_id, [...(byRecipient.get(each.recipient_id) ?? []), each]);
  }
  for (const each of message.statuses) if (!byRecipient.has(each.recipient_id)) byRecipient.set(each.recipient_id, [each]);
  return [
    el("h2", {}, "Delivery"),
    el("p", { class: "when" }, "Accepted ", el("time", { datetime: message.accepted_at }, `${dayName(message.accepted_at)}, ${exactTime(message.accepted_at)}`)),
    ...[...byRecipient].map(([recipient, steps]) => el("section", {},
      el("h3", {}, nameOf(recipient), channelOf(recipient)),
      el("ol", { class: "steps" }, ...steps.map(step)))),
    !byRecipient.size && el("p", { class: "muted" }, "Nothing reported yet."),
    el("p", { class: "id" }, message.message_id),
  ].filter(Boolean);
}

function channelOf(recipient) {
  const [, channel] = /^([a-z][a-z0-9_-]*):/.exec(recipient) ?? [];
  return channel ? el("small", {}, channelName(channel)) : null;
}

function step(each) {
  return el("li", { class: each.status.toLowerCase() }, tick({ status: each.status }), el("span", {}, statusLabel(each.status), each.reason && el("small", { class: "reason" }, each.reason)),
    el("time", { datetime: each.at }, each.at ? exactTime(each.at) : ""));
}
