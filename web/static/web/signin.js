// Sign in, or make an account.

import { el, icon, place } from "./dom.js";

const FIELDS = {
  username: { label: "Username", hint: "other workspaces: workspace/username", autocomplete: "username", minlength: 3, maxlength: 64 + 1 + 64, required: true, autocapitalize: "none", spellcheck: "false" },
  displayName: { label: "Your name", hint: "optional", autocomplete: "name", maxlength: 128 },
  password: { label: "Password", type: "password", maxlength: 1024, required: true },
};

export function signInView(api, onDone) {
  let registering = false;
  const alert = el("p", { class: "form-error", role: "alert" });
  const form = el("form", { class: "card", "aria-labelledby": "signin-title", novalidate: true });

  function draw() {
    const names = registering ? ["username", "displayName", "password"] : ["username", "password"];
    place(form, [
      brand(),
      el("h1", { id: "signin-title" }, registering ? "Create your account" : "Welcome back"),
      el("p", { class: "lead" }, "Every conversation, on every channel, in one place."),
      ...names.map(field),
      alert,
      el("button", { class: "primary wide", type: "submit" }, registering ? "Create account" : "Sign in"),
      el("p", { class: "switch" }, registering ? "Already have an account? " : "New here? ",
        el("button", { class: "link", type: "button", onclick: toggle }, registering ? "Sign in" : "Create an account")),
    ]);
    form.elements.username.focus();
  }

  function field(name) {
    const { label, hint, ...attributes } = FIELDS[name];
    const autocomplete = name === "password" ? (registering ? "new-password" : "current-password") : attributes.autocomplete;
    return el("label", { class: "field" },
      el("span", {}, label, hint && el("small", {}, hint), name === "password" && registering && el("small", {}, "10 characters or more")),
      el("input", { name, ...attributes, autocomplete }));
  }

  function toggle() {
    registering = !registering;
    alert.textContent = "";
    draw();
  }

  async function submit(event) {
    event.preventDefault();
    const typed = Object.fromEntries([...new FormData(form)].map(([name, value]) => [name, name === "password" ? value : value.trim()]));
    const values = { ...typed, ...splitLogin(typed.username) };
    const missing = ["username", "password"].find((name) => !values[name]);
    if (missing) {
      alert.textContent = "Please give your username and password.";
      form.elements[missing].focus();
      return;
    }
    const button = form.querySelector("[type=submit]");
    button.disabled = true;
    alert.textContent = "";
    try {
      await (registering ? api.register(values) : api.signIn(values));
      onDone();
    } catch (error) {
      alert.textContent = error.message;
      form.elements[error.errors?.[0]?.field]?.focus();
    } finally {
      button.disabled = false;
    }
  }

  form.addEventListener("submit", submit);
  draw();
  return el("main", { class: "signin" }, form);
}

/** As the admin does: `acme/bob` is bob of acme, and a name without a slash is of the default workspace. */
function splitLogin(login) {
  const slash = login.lastIndexOf("/");
  return { workspace: slash < 0 ? undefined : login.slice(0, slash), username: login.slice(slash + 1) };
}

function brand() {
  return el("div", { class: "brand" }, el("span", { class: "mark" }, icon("ticks")), el("span", {}, "Chat4All"));
}
