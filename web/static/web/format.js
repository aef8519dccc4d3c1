// Times, names and sizes as people read them.

const TIME = new Intl.DateTimeFormat(undefined, { hour: "2-digit", minute: "2-digit" });
const EXACT = new Intl.DateTimeFormat(undefined, { hour: "2-digit", minute: "2-digit", second: "2-digit" });
const WEEKDAY = new Intl.DateTimeFormat(undefined, { weekday: "long" });
const DATE = new Intl.DateTimeFormat(undefined, { day: "numeric", month: "long", year: "numeric" });
const SHORT_DATE = new Intl.DateTimeFormat(undefined, { day: "2-digit", month: "2-digit", year: "2-digit" });
const DAY_MS = 86_400_000;

export const CHANNELS = {
  whatsapp: "WhatsApp", instagram: "Instagram", telegram: "Telegram", sms: "SMS", webhook: "Webhook",
};

export const channelName = (channel) => CHANNELS[channel] ?? channel;
export const timeOfDay = (iso) => TIME.format(new Date(iso));
export const exactTime = (iso) => EXACT.format(new Date(iso));
export const dayKey = (iso) => new Date(iso).toDateString();

function daysAgo(iso) {
  const midnight = (date) => new Date(date.getFullYear(), date.getMonth(), date.getDate());
  return Math.round((midnight(new Date()) - midnight(new Date(iso))) / DAY_MS);
}

export function dayName(iso) {
  const days = daysAgo(iso);
  if (days === 0) return "Today";
  if (days === 1) return "Yesterday";
  return days > 0 && days < 7 ? WEEKDAY.format(new Date(iso)) : DATE.format(new Date(iso));
}

export function listTime(iso) {
  const days = daysAgo(iso);
  if (days <= 0) return timeOfDay(iso);
  if (days === 1) return "Yesterday";
  return days < 7 ? WEEKDAY.format(new Date(iso)) : SHORT_DATE.format(new Date(iso));
}

export function initials(name) {
  if (!/\p{L}/u.test(name)) return name.replace(/\P{N}/gu, "").slice(-2) || "#"; // a number: its end tells it apart
  const words = name.replace(/[^\p{L}\p{N}\s._-]/gu, "").split(/[\s._-]+/u).filter(Boolean);
  const letters = words.length > 1 ? [words[0], words.at(-1)].map((word) => [...word][0]) : [...words[0]].slice(0, 2);
  return letters.join("").toUpperCase();
}

/** One of twelve colours, always the same for the same id. */
export function hue(text) {
  let hash = 0;
  for (const char of text) hash = (hash * 31 + char.codePointAt(0)) >>> 0;
  return hash % 12;
}

export function fileSize(bytes) {
  const units = ["B", "KB", "MB", "GB"];
  let value = bytes;
  let unit = 0;
  while (value >= 1000 && unit < units.length - 1) {
    value /= 1024;
    unit += 1;
  }
  return `${unit && value < 10 ? value.toFixed(1) : Math.round(value)} ${units[unit]}`;
}

/** Split text into plain strings and the http(s) links in it. */
export function withLinks(text) {
  const parts = [];
  let from = 0;
  for (const match of text.matchAll(/https?:\/\/[^\s<>"']+[^\s<>"'.,;:!?)\]}]/gu)) {
    parts.push(text.slice(from, match.index), { href: match[0] });
    from = match.index + match[0].length;
  }
  parts.push(text.slice(from));
  return parts.filter((part) => part !== "");
}

/** One to three emoji and nothing else: shown large. */
export function isEmojiOnly(text) {
  const clusters = [...new Intl.Segmenter().segment(text.trim())].map((each) => each.segment);
  return clusters.length > 0 && clusters.length <= 3 && clusters.every((each) => /^\p{Extended_Pictographic}/u.test(each));
}
