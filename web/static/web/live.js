// The socket: frames in, acknowledgements out, and back again after every loss without missing a frame.

const FIRST_WAIT_MS = 500;
const LONGEST_WAIT_MS = 20_000;
const ACK_AFTER_MS = 50;
const CONFIRM_AFTER_MS = 1_000; // one ping for all acks of a second: who says more than 50 things in one is cut off
const ANSWER_WITHIN_MS = 5_000;
const SILENT = 4000; // our own close code
const TOKEN_REFUSED = 4401;
const TOO_MANY_SOCKETS = 4409; // this user has opened newer ones: coming back would close one of those

export class Live {
  #api;
  #url;
  #handlers;
  #socket = null;
  #position = null; // the last frame seen: {epoch, seq}
  #confirmed = null; // the last one whose acknowledgement is kept: what is behind it has to come again
  #heard = null; // the last one on this socket
  #attempt = 0;
  #timer = 0;
  #ackTimer = 0;
  #confirmTimer = 0;
  #heartbeat = 0;
  #lastHeard = 0;
  #pings = []; // without an answer yet, oldest first: the timer that ends the wait for it, if any
  #stopped = false;

  /** handlers: frame(frame), resync() — history has to be fetched again —, state("live" | "connecting" | "offline" | "paused"). */
  constructor(api, url, handlers) {
    this.#api = api;
    this.#url = url;
    this.#handlers = handlers;
    this.wake = this.wake.bind(this);
    addEventListener("online", this.wake);
    document.addEventListener("visibilitychange", this.wake);
  }

  async connect() {
    if (this.#stopped || this.#socket) return;
    this.#handlers.state("connecting");
    let token;
    try {
      token = await this.#api.token();
    } catch {
      if (this.#api.signedIn) this.#later();
      return;
    }
    if (this.#stopped || this.#socket) return;
    const resume = this.#confirmed ? `?epoch=${encodeURIComponent(this.#confirmed.epoch)}&since=${this.#confirmed.seq}` : "";
    // The token travels as a subprotocol: addresses end up in logs.
    const socket = new WebSocket(`${this.#url}${resume}`, ["chat4all", `bearer.${token}`]);
    this.#socket = socket;
    socket.onmessage = (event) => socket === this.#socket && this.#receive(JSON.parse(event.data));
    socket.onclose = (event) => this.#closed(socket, event.code);
  }

  /** A new token for a socket that is open: its time is extended without a reconnect. */
  async renew() {
    if (this.#socket?.readyState === WebSocket.OPEN) this.#send({ type: "auth", token: await this.#api.token() });
  }

  /** Do not wait for the timers: the network is back, or somebody looks at the page again. A socket may have died
   * meanwhile without a word. */
  wake() {
    if (this.#stopped || document.hidden) return;
    if (this.#socket) {
      this.#ping(ANSWER_WITHIN_MS);
      return;
    }
    clearTimeout(this.#timer);
    this.#attempt = 0;
    this.connect();
  }

  stop() {
    this.#stopped = true;
    clearTimeout(this.#timer);
    this.#quiet();
    removeEventListener("online", this.wake);
    document.removeEventListener("visibilitychange", this.wake);
    this.#socket?.close(1000);
  }

  #receive(frame) {
    this.#lastHeard = Date.now();
    switch (frame.type) {
      case "hello":
        this.#greeted(frame);
        break;
      case "resync":
        this.#beginAt(frame);
        break;
      case "pong":
        this.#answered(frame);
        break;
      case "token_expiring":
        this.#api.refresh().catch(() => {});
        break;
      default:
        if (Number.isInteger(frame.seq)) this.#take(frame);
    }
  }

  #greeted(frame) {
    this.#attempt = 0;
    this.#handlers.state("live");
    clearInterval(this.#heartbeat);
    const everyMs = (frame.heartbeat_s || 25) * 1000;
    this.#heartbeat = setInterval(() => this.#beat(everyMs), everyMs);
    const setBack = this.#position?.epoch === frame.epoch && this.#position.seq > frame.seq; // to an older copy
    if (!this.#position || setBack) this.#beginAt(frame); // else what was missed follows, or a resync
  }

  #beginAt({ epoch, seq }) {
    this.#position = this.#confirmed = { epoch, seq };
    clearTimeout(this.#ackTimer); // of what came before
    this.#ackTimer = 0;
    this.#handlers.resync();
  }

  #take(frame) {
    const { epoch, seq } = frame;
    this.#heard = { epoch, seq };
    if (this.#position?.epoch !== epoch || this.#position.seq < seq) {
      this.#position = this.#heard;
      this.#handlers.frame(frame);
    }
    this.#ackTimer ||= setTimeout(() => this.#acknowledge(), ACK_AFTER_MS);
  }

  #acknowledge() {
    this.#ackTimer = 0;
    this.#send({ type: "ack", ...this.#heard });
    this.#confirmTimer ||= setTimeout(() => {
      this.#confirmTimer = 0;
      this.#ping();
    }, CONFIRM_AFTER_MS);
  }

  #answered({ epoch, acked }) {
    clearTimeout(this.#pings.shift());
    if (epoch === this.#confirmed?.epoch && acked > this.#confirmed.seq) this.#confirmed = { epoch, seq: acked };
  }

  #beat(everyMs) {
    if (Date.now() - this.#lastHeard > 2.5 * everyMs) this.#giveUp();
    else this.#ping();
  }

  /** withinMs: without an answer until then the socket is given up. */
  #ping(withinMs) {
    if (this.#socket.readyState !== WebSocket.OPEN) return;
    this.#send({ type: "ping" });
    this.#pings.push(withinMs && setTimeout(() => this.#giveUp(), withinMs));
  }

  /** At once: a dead line does not answer a close either, and a browser waits for that. */
  #giveUp() {
    const socket = this.#socket;
    this.#closed(socket, SILENT);
    socket.close(SILENT, "silent");
  }

  #send(message) {
    if (this.#socket?.readyState === WebSocket.OPEN) this.#socket.send(JSON.stringify(message));
  }

  async #closed(socket, code) {
    if (socket !== this.#socket) return;
    this.#socket = null;
    this.#quiet();
    if (this.#stopped) return;
    this.#handlers.state(code === TOO_MANY_SOCKETS ? "paused" : "offline");
    if (code === TOO_MANY_SOCKETS) return; // until somebody looks at this page again
    if (code === TOKEN_REFUSED) await this.#api.refresh().catch(() => {});
    if (this.#api.signedIn) this.#later();
  }

  /** What is about to be said on a socket ends with it. */
  #quiet() {
    clearInterval(this.#heartbeat);
    for (const timer of [this.#ackTimer, this.#confirmTimer, ...this.#pings]) clearTimeout(timer);
    this.#ackTimer = this.#confirmTimer = 0;
    this.#pings = [];
  }

  #later() {
    const longest = Math.min(LONGEST_WAIT_MS, FIRST_WAIT_MS * 2 ** this.#attempt);
    this.#attempt += 1;
    clearTimeout(this.#timer);
    this.#timer = setTimeout(() => this.connect(), longest * (0.5 + Math.random() / 2));
  }
}
