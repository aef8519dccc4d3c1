// Start a conversation with a user, or with somebody on a channel.

import { el, icon } from "./dom.js";

const ADDRESS = /^[a-z][a-z0-9_-]*:\S.*$/;

export function composeDialog(api, onCreated) {
  const alert = el("p", { class: "form-error", role: "alert" });
  const people = el("input", { name: "people", required: true, autocomplete: "off", autocapitalize: "none", spellcheck: "false", placeholder: "bob, whatsapp:+5511999998888" });
  const title = el("input", { name: "title", maxlength: 200, autocomplete: "off" });
  const submit = el("button", { type: "submit", class: "primary" }, "Start");
  const form = el("form", { method: "dialog", onsubmit: start },
    el("header", {}, el("h2", { id: "compose-title" }, "New conversation"),
      el("button", { type: "button", class: "icon-button", "aria-label": "Close", onclick: () => dialog.close() }, icon("close"))),
    el("label", { class: "field" }, el("span", {}, "With"), people, el("small", {}, "A username, or an address such as whatsapp:+55… or instagram:…; several with commas.")),
    el("label", { class: "field" }, el("span", {}, "Title", el("small", {}, "optional")), title),
    alert,
    el("footer", {}, el("button", { type: "button", class: "plain", onclick: () => dialog.close() }, "Cancel"), submit));
  const dialog = el("dialog", { class: "card", "aria-labelledby": "compose-title", onclose: () => dialog.remove() }, form);
  document.body.append(dialog);
  dialog.showModal();
  people.focus();

  async function start(event) {
    event.preventDefault();
    submit.disabled = true;
    alert.textContent = "";
    try {
      const names = people.value.split(",").map((name) => name.trim()).filter(Boolean);
      if (!names.length) throw new Error("Who is it with?");
      const members = await Promise.all(names.map(resolve));
      const created = await api.post("/v1/conversations", { members, ...(title.value.trim() && { title: title.value.trim() }) });
      dialog.close();
      onCreated(created);
    } catch (error) {
      alert.textContent = error.message;
      people.focus();
    } finally {
      submit.disabled = false;
    }
  }

  async function resolve(name) {
    if (ADDRESS.test(name)) return /^(whatsapp|sms):/.test(name) ? name.replace(/[\s()-]/g, "") : name;
    const username = name.replace(/^@/, "");
    const { items } = await api.get(`/v1/users?username=${encodeURIComponent(username)}`);
    if (!items.length) throw new Error(`There is no user called ${username}.`);
    return items[0].user_id;
  }
}
