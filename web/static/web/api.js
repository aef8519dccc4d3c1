// The public API. Tokens live in sessionStorage: they end with the tab, and no other origin can read them.

const KEY = "chat4all.session";
const REFRESH_BEFORE_MS = 60_000;

export class ApiError extends Error {
  constructor(status, problem) {
    super(problem.errors?.[0]?.message || problem.detail || problem.title || `The server answered ${status}.`);
    this.status = status;
    this.code = problem.code ?? "unknown";
    this.errors = problem.errors ?? [];
  }
}

export class Api {
  #session = JSON.parse(sessionStorage.getItem(KEY) ?? "null");
  #refreshing = null;
  #timer = 0;
  onSignedOut = () => {};
  onToken = () => {};

  constructor() {
    this.#schedule();
  }

  get signedIn() {
    return this.#session !== null;
  }

  get userId() {
    return this.#session?.userId ?? "";
  }

  /** Without a workspace it is the default one. */
  async register({ workspace, username, password, displayName }) {
    await this.#fetch("POST", "/auth/register", { json: { workspace, username, password, ...(displayName && { display_name: displayName }) } });
    await this.signIn({ workspace, username, password });
  }

  async signIn({ workspace, username, password }) {
    this.#keep(await this.#fetch("POST", "/auth/token", { json: { workspace, username, password } }));
  }

  /** Here at once; the server is told, and what it answers changes nothing. */
  signOut() {
    const session = this.#session;
    sessionStorage.removeItem(KEY);
    clearTimeout(this.#timer);
    this.#session = null;
    if (session) {
      fetch("/auth/logout", {
        method: "POST",
        headers: { "Content-Type": "application/json" },
        body: JSON.stringify({ refresh_token: session.refresh }),
        credentials: "omit",
        keepalive: true, // the tab may be closed next
      }).catch(() => {});
    }
    this.onSignedOut();
  }

  /** A token that is good for another minute at least. */
  async token() {
    if (!this.#session) throw new ApiError(401, { code: "not_authenticated", title: "Signed out" });
    if (Date.now() > this.#session.expiresAt - REFRESH_BEFORE_MS) await this.refresh();
    return this.#session.access;
  }

  /** Several callers at once share one refresh: a refresh token works once. */
  refresh() {
    this.#refreshing ??= this.#refreshOnce().finally(() => (this.#refreshing = null));
    return this.#refreshing;
  }

  get = (path) => this.#authorized("GET", path);
  post = (path, json, headers = {}) => this.#authorized("POST", path, { json, headers });

  /** Upload with progress, which fetch cannot tell. */
  async upload(file, conversationId, onProgress) {
    const form = new FormData();
    form.append("conversation_id", conversationId);
    form.append("file", file, file.name || "file");
    const token = await this.token();
    return new Promise((resolve, reject) => {
      const request = new XMLHttpRequest();
      request.open("POST", "/v1/files");
      request.setRequestHeader("Authorization", `Bearer ${token}`);
      request.responseType = "json";
      request.upload.onprogress = (event) => onProgress(event.loaded / event.total);
      request.onload = () =>
        request.status === 201 ? resolve(request.response) : reject(new ApiError(request.status, request.response ?? {}));
      request.onerror = () => reject(new ApiError(0, { code: "network", title: "The upload was interrupted." }));
      request.send(form);
    });
  }

  async #authorized(method, path, options = {}) {
    const send = async () => this.#fetch(method, path, { ...options, token: await this.token() });
    try {
      return await send();
    } catch (error) {
      if (error.status !== 401 || !this.#session) throw error;
      await this.refresh();
      return send();
    }
  }

  async #refreshOnce() {
    const session = this.#session;
    try {
      const answer = await this.#fetch("POST", "/auth/token/refresh", { json: { refresh_token: session.refresh } });
      if (this.#session !== session) throw new ApiError(401, { code: "signed_out", title: "You have signed out." });
      this.#keep(answer);
      this.onToken();
    } catch (error) {
      if (this.#session !== session) throw error; // of somebody who has signed out meanwhile
      if (error.status >= 400 && error.status < 500 && error.status !== 429) this.signOut();
      throw error;
    }
  }

  #keep(answer) {
    this.#session = {
      access: answer.access_token,
      refresh: answer.refresh_token ?? this.#session?.refresh,
      userId: answer.user_id ?? this.#session?.userId,
      expiresAt: Date.now() + answer.expires_in * 1000,
    };
    sessionStorage.setItem(KEY, JSON.stringify(this.#session));
    this.#schedule();
  }

  #schedule() {
    clearTimeout(this.#timer);
    if (!this.#session) return;
    const wait = this.#session.expiresAt - Date.now() - 2 * REFRESH_BEFORE_MS;
    this.#timer = setTimeout(() => this.refresh().catch(() => {}), Math.max(wait, 1000));
  }

  async #fetch(method, path, { json, headers = {}, token } = {}) {
    const response = await fetch(path, {
      method,
      headers: {
        Accept: "application/json",
        ...(json && { "Content-Type": "application/json" }),
        ...(token && { Authorization: `Bearer ${token}` }),
        ...headers,
      },
      body: json && JSON.stringify(json),
      credentials: "omit",
    }).catch(() => {
      throw new ApiError(0, { code: "network", title: "The server cannot be reached." });
    });
    const body = await response.json().catch(() => ({}));
    if (!response.ok) throw new ApiError(response.status, body);
    return body;
  }
}
