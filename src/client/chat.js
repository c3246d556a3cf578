// A client for browsers and Node. `chat.d.ts` says what each call does, and what holds.

/** Messages of a page; pages that are read at once. */
const PAGE = 100;
const MOST_PAGES = 10;
/** Messages of a room; what waits; bytes of a request; rooms whose `unread` is live. */
const MOST_KEPT = 5000;
const MOST_WAITING = 1000;
const MOST_BYTES = 120_000;
const MOST_FOLLOWED = 100;
/** The server knows a `clientId` for a day. */
const REPEATABLE = 23 * 3600_000;
const TYPING = 6000;
/** Refusals after which the same request can be made again. */
const AGAIN = new Set(['unavailable', 'busy', 'rate_limited', 'idempotency_unavailable']);
/** A room that nobody has, to test the connection. */
const NOWHERE = '0'.repeat(24);

export class ChatError extends Error {
  constructor(code, message, status) {
    super(message);
    this.name = 'ChatError';
    this.code = code;
    this.status = status;
  }
}

const loggedOut = () => new ChatError('logged_out', 'Log in first');
const tooMany = () => new ChatError('too_many_waiting', 'Too much waits for the connection');
const discarded = () => new ChatError('discarded', 'The message was given up');
const sleep = time => new Promise(done => setTimeout(done, time));
const nothing = () => {};

function call(listener, value) {
  try {
    listener(value);
  } catch (error) {
    (globalThis.reportError ?? console.error)(error);
  }
}

async function repeat(work, holds = () => true) {
  for (let pause = 500; ; pause = Math.min(pause * 2, 10_000)) {
    try {
      return await work();
    } catch (error) {
      if (!AGAIN.has(error.code) || !holds()) throw error;
    }
    await sleep(pause * (0.5 + Math.random() / 2));
  }
}

/** Without https there is no `randomUUID()`. */
function newId() {
  const bytes = crypto.getRandomValues(new Uint8Array(16));
  return [...bytes].map(byte => byte.toString(16).padStart(2, '0')).join('');
}

/** Sorts as the server does: ids of other kinds come first. */
const rank = id => (/^[0-9a-f]{24}$/.test(id) ? '1' : '0') + id;

function behind(id) {
  if (rank(id)[0] === '0') return id;
  return (BigInt(`0x${id}`) + 1n).toString(16).padStart(24, '0').slice(-24);
}

class Emitter {
  #listeners = new Map();

  on(name, listener) {
    const listeners = this.#listeners.get(name) ?? new Set();
    this.#listeners.set(name, listeners.add(listener));
    return () => { listeners.delete(listener); };
  }

  emit(name, value) {
    for (const listener of [...this.#listeners.get(name) ?? []]) call(listener, value);
  }
}

class Account {
  current = null;

  constructor(base, storage) {
    [this.base, this.key] = [base, `chat ${base}`];
    try {
      this.storage = storage ?? globalThis.localStorage;
    } catch { /* The user allows none: nothing is kept. */ }
  }

  get token() { return this.current?.token; }
  get user() { return this.current && { _id: this.current.userId, username: this.current.username }; }
  get isDue() { return this.current && Date.now() > this.current.renewAt; }

  async register(username, password) {
    try {
      await this.request('POST', 'auth/register', { username, password });
    } catch (error) {
      // The Node server says no more when a name is taken.
      const isTaken = error.message === 'Server error' && username && password;
      throw isTaken ? new ChatError('username_taken', 'Username is taken') : error;
    }
  }

  async login(username, password) {
    this.keep(await this.request('POST', 'auth/login', { username, password, refresh: true }), username);
  }

  resume() {
    this.current = this.read('login');
    if (this.current) this.listen();
    return this.current;
  }

  async logout(route) {
    const { userId } = this.current ?? {};
    try {
      if (userId) await this.rest('POST', route);
    } finally {
      for (const key of this.keys(`outbox ${userId} `)) this.write(key);
      this.end('logged_out', 'Logged out');
    }
  }

  changePassword(password, newPassword) {
    const { username } = this.current ?? {};
    this.changing = this.rest('POST', 'auth/change-password', { password, newPassword })
      .then(answer => this.keep(answer, username));
    return this.changing;
  }

  async rest(method, path, body) {
    const used = this.token;
    if (!used) throw loggedOut();
    try {
      return await this.request(method, path, body, used);
    } catch (error) {
      if (error.status !== 401 || error.code === 'invalid_credentials') throw error;
    }
    await this.renew(used);
    return this.request(method, path, body, this.token);
  }

  async request(method, path, body, token) {
    const headers = { 'Content-Type': 'application/json' };
    if (token) headers.Authorization = `Bearer ${token}`;
    let answer, json;
    try {
      answer = await fetch(`${this.base}api/${path}`, {
        method, headers, cache: 'no-cache', body: body && JSON.stringify(body), signal: AbortSignal.timeout(15_000),
      });
      json = await answer.json();
    } catch (error) {
      throw new ChatError('unavailable', `The server does not answer: ${error.message}`);
    }
    const { ok, status } = answer;
    if (ok) return json;
    const code = json.code ?? {
      'Room already exists': 'room_exists',
      'Invalid credentials': 'invalid_credentials',
      'User not found': 'invalid_credentials',
    }[json.error] ?? { 401: 'token_invalid', 429: 'rate_limited', 502: 'unavailable', 503: 'unavailable' }[status];
    throw new ChatError(code ?? 'refused', json.error, status);
  }

  renew(used) {
    return this.renewing ??= this.renewAlone(used).finally(() => { this.renewing = undefined; });
  }

  /** One tab for all. */
  async renewAlone(used) {
    await this.changing?.catch(nothing);
    let entered = false;
    const exchange = () => { entered = true; return this.exchange(used); };
    const { locks } = globalThis.navigator ?? {};
    if (!locks) return exchange();
    try {
      return await locks.request(this.key, { signal: AbortSignal.timeout(10_000) }, exchange);
    } catch (error) {
      if (entered) throw error;
      // The server allows a second use for 10 s.
      return exchange();
    }
  }

  async exchange(used, isLast) {
    let login = this.isUnsaved ? this.current : this.read('login');
    // Of another user, who logged in meanwhile.
    if (login && login.userId !== this.current?.userId) login = this.current;
    if (!login) return this.end('logged_out', 'Logged out in another tab');
    if (login.token !== used) return this.take(login);
    const { refreshToken, username } = login;
    // An older server has none.
    if (!refreshToken) return this.end('token_invalid', 'The login has ended');
    try {
      this.keep(await this.request('POST', 'auth/refresh-token', { refreshToken }), username);
    } catch (error) {
      if (error.status !== 401) throw error;
      if (isLast) return this.end(error.code, error.message, refreshToken);
      // Another tab may just be setting a new password.
      await sleep(1000);
      return this.exchange(used, true);
    }
  }

  keep({ token, refreshToken, userId }, username) {
    const before = this.current?.userId === userId ? this.current.refreshToken : undefined;
    let lifetime = 3600;
    try {
      const { iat, exp } = JSON.parse(atob(token.split('.')[1].replace(/-/g, '+').replace(/_/g, '/')));
      lifetime = exp - iat;
    } catch { /* It is renewed when it is refused. */ }
    // From now, since the clocks can differ.
    const renewAt = Date.now() + lifetime * 800;
    const login = { token, refreshToken: refreshToken ?? before, userId, username, renewAt };
    this.isUnsaved = !this.write('login', login);
    this.take(login);
    this.listen();
    if (before) this.channel?.postMessage({ before, login });
  }

  take(login) {
    this.current = login;
    this.renewed();
  }

  listen() {
    if (this.channel || !globalThis.document) return;
    this.channel = new BroadcastChannel(this.key);
    this.channel.onmessage = ({ data: { before, login } }) => {
      if (this.current?.refreshToken !== before) return;
      this.write('login', login);
      this.take(login);
    };
  }

  /** A login that another tab has renewed or replaced stays. */
  end(code, message, refreshToken) {
    const saved = this.read('login');
    if (saved?.userId === this.current?.userId && (refreshToken ?? saved?.refreshToken) === saved?.refreshToken) this.write('login');
    this.current = null;
    this.channel?.close();
    this.channel = undefined;
    this.ended(code, message);
  }

  keys(start) {
    const names = Array.from({ length: this.storage?.length ?? 0 }, (_, index) => this.storage.key(index));
    const prefix = `${this.key} `;
    return names.filter(name => name.startsWith(prefix + start)).map(name => name.slice(prefix.length));
  }

  read(name) {
    try {
      return JSON.parse(this.storage.getItem(`${this.key} ${name}`));
    } catch {
      return null;
    }
  }

  write(name, value) {
    try {
      if (value) this.storage?.setItem(`${this.key} ${name}`, JSON.stringify(value));
      else this.storage?.removeItem(`${this.key} ${name}`);
      return Boolean(this.storage);
    } catch (error) {
      this.failed(new ChatError('storage_full', `It will be gone after a reload: ${error.message}`));
      return false;
    }
  }
}

class Wire {
  requests = new Map();
  lastId = 0;
  attempts = 0;
  ticked = 0;
  heard = 0;
  waiting = [];

  live = false;
  generation = 0;
  held = true;

  constructor(url, WebSocket, account, handlers) {
    [this.url, this.WebSocket, this.account] = [url, WebSocket, account];
    this.tell = handlers;
  }

  open() {
    this.held = false;
    this.tick ??= setInterval(() => this.beat(), 5000);
    this.ticked = Date.now();
    if (!this.socket) this.connect();
  }

  close(reason) {
    this.held = true;
    clearInterval(this.tick);
    clearTimeout(this.timer);
    this.tick = undefined;
    this.drop();
    if (!reason) return;
    for (const { failed } of this.waiting.splice(0)) failed(reason);
  }

  wake() {
    if (this.held) return;
    if (this.live) this.sendProbe();
    else if (!this.socket) this.connect();
  }

  connect() {
    clearTimeout(this.timer);
    this.tell.state({ state: 'connecting' });
    const socket = this.socket = new this.WebSocket(this.url);
    const token = this.used = this.account.token;
    this.timer = setTimeout(() => this.lost(socket, 1006, 'no answer'), 10_000);
    socket.onerror = nothing;
    socket.onclose = ({ code, reason }) => this.lost(socket, code, reason);
    socket.onmessage = ({ data }) => this.receive(JSON.parse(data));
    // Not in the address, which can be in a log.
    socket.onopen = () => this.put('authenticate', { token }, () => this.opened(), nothing);
  }

  opened() {
    clearTimeout(this.timer);
    this.attempts = 0;
    this.live = true;
    this.generation += 1;
    for (const { done } of this.waiting.splice(0)) done();
    this.tell.opened();
    if (this.used !== this.account.token) this.authenticate();
  }

  authenticate() {
    const { token } = this.account;
    if (!this.live || token === this.used) return;
    this.used = token;
    this.ask('authenticate', { token }).catch(nothing);
  }

  drop() {
    const socket = this.socket;
    this.socket = undefined;
    this.live = false;
    clearTimeout(this.probe);
    this.probe = undefined;
    if (socket) {
      socket.onopen = socket.onmessage = socket.onclose = null;
      socket.close();
    }
    const error = new ChatError('unavailable', 'The connection was lost');
    for (const { failed } of this.requests.values()) failed(error);
    this.requests.clear();
  }

  async lost(socket, code, reason) {
    if (socket !== this.socket) return;
    clearTimeout(this.timer);
    const used = this.used;
    this.drop();
    this.tell.frame({ closed: code, reason });
    if (code === 4401) {
      this.tell.state({ state: 'connecting' });
      try {
        await this.account.renew(used);
        if (!this.held && !this.socket && this.attempts === 0) {
          this.attempts = 1;
          return this.connect();
        }
      } catch { /* It is tried again, or the login has ended. */ }
    }
    if (this.held || this.socket) return;
    const pause = Math.min(500 * 2 ** this.attempts, 10_000) * (0.5 + Math.random() / 2);
    this.attempts += 1;
    this.timer = setTimeout(() => this.connect(), pause);
    this.tell.state({ state: 'offline', retryAt: Date.now() + pause });
  }

  receive({ ack, event, data, position }) {
    this.heard = Date.now();
    this.tell.frame({ event: event ?? 'ack', data, position });
    if (ack === undefined) return this.tell.event(event, data, position);
    const request = this.requests.get(ack);
    if (!this.requests.delete(ack)) return;
    if (data.error) request.failed(new ChatError(data.code, data.error));
    else request.done(data);
  }

  put(event, data, done, failed) {
    const id = this.lastId += 1;
    this.requests.set(id, { done, failed });
    this.socket.send(JSON.stringify({ event, data, id }));
    this.tell.frame({ sent: event, data: event === 'authenticate' ? undefined : data });
  }

  /** `taken` gets the answer before the next event comes. */
  ask(event, data, taken = nothing) {
    return new Promise((done, failed) => {
      if (!this.live) return failed(new ChatError('unavailable', 'There is no connection'));
      if (this.requests.size >= MOST_WAITING) return failed(tooMany());
      if (new Blob([JSON.stringify(data)]).size > MOST_BYTES) return failed(new ChatError('body_too_large', 'It is too long'));
      this.put(event, data, answer => { taken(answer); done(answer); }, failed);
    });
  }

  reliably(event, data) {
    if (this.waiting.length >= MOST_WAITING) return Promise.reject(tooMany());
    return repeat(async () => {
      if (!this.account.user) throw loggedOut();
      if (!this.live) await new Promise((done, failed) => this.waiting.push({ done, failed }));
      return this.ask(event, data());
    });
  }

  beat() {
    const now = Date.now();
    const late = now - this.ticked > 15_000;
    this.ticked = now;
    if (late && !this.live) this.wake();
    if (this.live && (late || now - this.heard > 25_000)) this.sendProbe();
    this.tell.beat(now);
  }

  sendProbe() {
    if (this.probe) return;
    const socket = this.socket, asked = Date.now();
    this.ask('leaveRoom', NOWHERE).catch(nothing);
    this.probe = setTimeout(() => {
      this.probe = undefined;
      if (this.heard < asked) this.lost(socket, 1006, 'no answer');
    }, 5000);
  }
}

export class Room extends Emitter {
  #parts;
  #records = new Map();
  #gaps = [];
  #read = new Map();
  #typists = new Map();
  #list;
  #notice;
  #joined = -1;
  #isListed = false;
  #isOpen = false;
  #isShown = false;
  #options = {};
  #opened = {};
  #stop;
  /** Whether the history must be read again. */
  #isStale = true;
  #syncing;
  #syncAgain = false;
  #expectsResync = false;
  #returning;
  #reads = 0;
  #early = new Map();
  #clock = 0;
  #isSending = false;
  #typed = 0;
  #mark = '';
  #marked = '';
  #markTimer;

  /** All from here on is shown, but for gaps. */
  #low = '2';
  position;

  constructor(parts, id, handle) {
    super();
    [this.#parts, this.id] = [parts, id];
    Object.assign(handle, {
      connected: () => this.#connected(),
      receive: (...all) => this.#receive(...all),
      list: isListed => this.#setListed(isListed),
      named: user => this.#named(user),
      restored: () => { this.#changed(); this.#sendAll(); },
    });
  }

  get isOpen() { return this.#isOpen; }
  get hasOlder() { return this.#isShown && this.#low > ''; }
  get typists() { return [...this.#typists.values()].map(({ user }) => user); }
  get #me() { return this.#parts.account.user?._id; }

  open(show = nothing, { limit = 50, deleted = false } = {}) {
    this.close();
    this.#isOpen = this.#isStale = true;
    this.#options = { limit, deleted };
    this.#stop = this.on('messages', show);
    const opened = new Promise((done, failed) => { this.#opened = { done, failed }; });
    opened.catch(nothing);
    if (this.#parts.wire.live) this.#connected();
    return opened;
  }

  close() {
    if (!this.#isOpen) return;
    this.#isOpen = this.#isShown = false;
    this.#low = '2';
    this.#stop();
    this.#opened.failed(new ChatError('closed', 'The room was closed'));
    clearTimeout(this.#notice);
    for (const { timer } of this.#typists.values()) clearTimeout(timer);
    for (const all of [this.#records, this.#read, this.#typists, this.#early]) all.clear();
    this.#gaps = [];
    this.#list = this.#notice = this.#syncing = undefined;
    this.#mark = this.#marked = '';
    this.#leave();
  }

  get messages() {
    return this.#list ??= [...this.#stored(), ...this.#waiting().map(entry => this.#itemOf(entry))];
  }

  async older() {
    const [oldest] = this.#sorted();
    if (this.hasOlder && oldest) await this.#readBefore(oldest.item._id, this.#options.limit);
    return this.hasOlder;
  }

  async fill({ _id }) {
    const gap = this.#gaps.findLast(({ before }) => rank(before) <= rank(_id));
    if (gap) await this.#readBefore(gap.before, PAGE);
  }

  // What the user does

  send(content) {
    let settle;
    const stored = new Promise((done, failed) => { settle = { done, failed }; });
    stored.catch(nothing);
    if (!this.#me) settle.failed(loggedOut());
    else if (this.#parts.outbox.size >= MOST_WAITING) {
      settle.failed(tooMany());
      this.#parts.failed(tooMany());
    }
    // Each time is another one, for the order after a reload.
    else this.#enqueue({ content: `${content}`, at: Date.now() + this.#parts.outbox.size / 1000 }, settle);
    return stored;
  }

  retry({ clientId }) {
    const entry = this.#parts.outbox.get(clientId);
    if (!entry?.error) return;
    this.#forget(entry);
    // With another `clientId`: this one was refused or forgotten.
    this.#enqueue({ content: entry.content, at: entry.at }, entry.settle);
  }

  discard({ clientId }) {
    const entry = this.#parts.outbox.get(clientId);
    if (!entry) return;
    this.#forget(entry);
    entry.settle?.failed(discarded());
  }

  edit({ _id, __v }, content) {
    return this.#change('editMessage', { message: _id, content, __v, clientId: newId() });
  }

  delete({ _id }) { return this.#change('deleteMessage', { message: _id }); }

  async #change(event, request) {
    const { message } = await this.#parts.wire.reliably(event, () => request);
    this.#take(message);
    return message;
  }

  typing() {
    if (Date.now() - this.#typed < 2000) return;
    this.#typed = Date.now();
    this.#parts.wire.ask('typing', this.id).catch(nothing);
  }

  stopTyping() {
    if (this.#typed) this.#parts.wire.ask('stopTyping', this.id).catch(nothing);
    this.#typed = 0;
  }

  markRead(message = this.#sorted().at(-1)?.item) {
    if (!message || rank(message._id) <= rank(this.#mark)) return;
    this.#mark = message._id;
    this.#parts.read(this.id, message._id);
    this.#sendMark();
  }

  async #sendMark() {
    const mark = this.#mark;
    if (this.#markTimer || mark === this.#marked || !this.#parts.wire.live) return;
    this.#markTimer = setTimeout(() => { this.#markTimer = undefined; this.#sendMark(); }, 1000);
    try {
      await this.#parts.wire.ask('markAsRead', { room: this.id, message: mark });
    } catch (error) {
      if (AGAIN.has(error.code)) return;
    }
    this.#marked = mark;
  }

  readers({ _id }) {
    return [...this.#read].filter(([, mark]) => mark >= rank(_id)).map(([user]) => user);
  }

  online() { return this.#rest('GET', '/online'); }
  info() { return this.#rest('GET'); }
  add(user) { return this.#rest('POST', '/members', { user }); }
  remove(user) { return this.#rest('DELETE', `/members/${user}`); }
  leave() { return this.remove(this.#me); }
  rename(name) { return this.#rest('PATCH', '', { name }); }
  end() { return this.#rest('DELETE'); }

  async #rest(method, path = '', body) {
    const { room, online } = await this.#parts.account.rest(method, `chat/room/${this.id}${path}`, body);
    return room ?? online;
  }

  // The outbox

  #waiting() { return [...this.#parts.outbox.values()].filter(({ room }) => room === this.id); }

  #enqueue(content, settle) {
    const newest = this.#sorted().at(-1)?.item._id;
    const entry = { ...content, clientId: newId(), user: this.#me, room: this.id, newest, settle };
    this.#parts.outbox.set(entry.clientId, entry);
    this.#parts.save(entry);
    this.#changed();
    this.#sendAll();
  }

  #forget(entry, message) {
    const { clientId, echo } = entry;
    this.#parts.outbox.delete(clientId);
    this.#parts.save(entry, true);
    if (message) this.#take(message, clientId);
    if (echo) this.#take(echo);
    this.#changed();
  }

  async #sendAll() {
    if (this.#isSending) return;
    this.#isSending = true;
    try {
      for (let entry; entry = this.#waiting().find(({ error }) => !error);) await this.#deliver(entry);
    } catch { /* The login has ended. */ }
    this.#isSending = false;
  }

  async #deliver(entry) {
    const { outbox, save, wire } = this.#parts;
    const { clientId, content, settle } = entry;
    try {
      const { message } = await wire.reliably('sendMessage', () => {
        if (!outbox.has(clientId)) throw discarded();
        entry.tried ??= Date.now();
        if (Date.now() - entry.tried > REPEATABLE) {
          throw new ChatError('expired', 'It is not known whether the message was stored');
        }
        // Before it may be stored.
        save(entry);
        return { room: this.id, content, clientId };
      });
      this.#forget(entry, message);
      settle?.done(message);
    } catch (error) {
      if (this.#me !== entry.user) throw error;
      if (!outbox.has(clientId)) return;
      entry.error = { code: error.code, message: error.message };
      save(entry);
      if (entry.echo) this.#take(entry.echo);
      this.#changed();
      settle?.failed(error);
      this.emit('failed', this.#itemOf(entry));
    }
  }

  #itemOf({ clientId, content, at, error }) {
    return {
      _id: clientId,
      key: clientId,
      clientId,
      room: this.id,
      sender: this.#parts.account.user,
      content,
      mine: true,
      createdAt: new Date(at).toISOString(),
      state: error ? 'failed' : 'pending',
      error,
    };
  }

  #entryOf({ _id, content }) {
    return this.#waiting().find(({ tried, error, echo, newest, content: text }) => tried && !error
      && (echo ? echo._id === _id : text === content && (!newest || rank(_id) > rank(newest))));
  }

  // The connection

  #setListed(isListed) {
    if (this.#isListed === isListed) return;
    this.#isListed = isListed;
    if (!isListed) this.#leave();
    else if (this.#parts.wire.live) this.#connected();
  }

  #leave() {
    if (this.#isOpen || this.#isListed) return;
    const { wire } = this.#parts;
    if (this.#joined === wire.generation) wire.ask('leaveRoom', this.id).catch(nothing);
    this.#joined = -1;
    this.position = undefined;
  }

  async #connected() {
    if (!this.#isOpen && !this.#isListed) return undefined;
    const { wire } = this.#parts, { generation } = wire;
    const since = this.position;
    let returning;
    if (this.#joined !== generation) {
      try {
        await repeat(() => wire.ask('joinRoom', { room: this.id, since }, ({ position, recovered }) => {
          this.#joined = generation;
          this.position = position ?? undefined;
          this.#expectsResync = Boolean(since) && !recovered;
          if (!recovered) this.#isStale = true;
          else if (!this.#isStale) this.#returning = returning = { state: 'recovered', missed: 0, gap: false };
        }), () => wire.generation === generation);
      } catch (error) {
        if (wire.live && wire.generation === generation) this.#removed(error);
        return undefined;
      }
      this.#sendMark();
    }
    if (this.#isOpen && this.#isStale) return this.#sync();
    if (!this.#isOpen || !returning) return undefined;
    // It comes at once, but nothing says where it ends.
    for (let before = -1, times = 0; before !== returning.missed && times < 8; times += 1) {
      before = returning.missed;
      await sleep(250);
    }
    this.#returning = undefined;
    return this.#tell(returning);
  }

  #tell(outcome) {
    this.emit(outcome.state, outcome);
    return outcome;
  }

  #removed(error) {
    this.#opened.failed?.(error);
    this.#joined = -1;
    this.emit('removed', error);
    this.close();
  }

  #receive(event, data, position) {
    if (position && event !== 'roomAdded') this.position = position;
    if (event === 'roomRemoved' || (event === 'memberRemoved' && data.user === this.#me)) {
      return this.#removed(new ChatError('room_not_found', 'You are not in this room any more'));
    }
    if (event === 'resync') {
      this.position = data.position ?? this.position;
      this.#isStale = true;
      if (this.#isOpen && !this.#expectsResync) this.#sync().then(outcome => this.#parts.returned([outcome]));
      this.#expectsResync = false;
    }
    if (!this.#isOpen) return;
    if (event === 'receiveMessage') {
      const { _id, sender } = data;
      if (this.#returning && sender !== this.#me && !this.#records.has(_id)) this.#returning.missed += 1;
      this.#endTyping(sender);
      this.#take(data);
    }
    const { user, message, deletedAt } = data;
    if (event === 'messageEdited') this.#update(data);
    if (event === 'messageDeleted') this.#update({ _id: message, content: '', deletedAt });
    if (event === 'messageRead') this.#noteRead(user, message);
    if (event === 'typing') this.#startTyping(user);
    if (event === 'stopTyping') this.#endTyping(user);
  }

  #startTyping(user) {
    clearTimeout(this.#typists.get(user._id)?.timer);
    this.#typists.set(user._id, { user, timer: setTimeout(() => this.#endTyping(user._id), TYPING) });
    this.emit('typing', this.typists);
  }

  #endTyping(user) {
    clearTimeout(this.#typists.get(user)?.timer);
    if (this.#typists.delete(user)) this.emit('typing', this.typists);
  }

  /** Who has written has read what was before, too. */
  #noteRead(user, message) {
    if (user === this.#me || rank(message) <= (this.#read.get(user) ?? '')) return;
    this.#read.set(user, rank(message));
    this.#changed();
  }

  // Messages

  #sorted() {
    return [...this.#records.values()].sort((one, other) => (one.rank < other.rank ? -1 : 1));
  }

  #stored() {
    const gaps = this.#gaps.map(({ before }) => rank(before));
    const isShown = ({ item }) => this.#options.deleted || !item.deletedAt;
    return this.#sorted().filter(isShown).map(({ item, rank: at }) => {
      const gapBefore = at >= gaps[0];
      while (at >= gaps[0]) gaps.shift();
      return gapBefore ? { ...item, gapBefore } : item;
    });
  }

  #take(message, key) {
    if (!this.#isOpen) return;
    this.#clock += 1;
    if (rank(message._id) >= this.#low) this.#apply(message, Infinity, key);
    this.#remember(message);
    if (this.#records.size > MOST_KEPT) this.#dropBelow(this.#sorted()[MOST_KEPT / 10].rank);
    this.#changed();
  }

  /** A message that is not known is older than what is shown, or is being read. */
  #update(change) {
    const entry = this.#waiting().find(({ echo }) => echo?._id === change._id);
    if (entry) entry.echo = { ...entry.echo, ...change };
    const known = this.#records.get(change._id);
    if (known) this.#take({ ...known.item, ...change });
    else this.#remember(change);
  }

  #remember(message) {
    if (this.#reads && !this.#early.get(message._id)?.deletedAt) this.#early.set(message._id, message);
    if (this.#early.size <= MOST_KEPT) return;
    this.#early.clear();
    this.#syncAgain = true;
  }

  #apply(message, began, newKey) {
    const { _id, deletedAt, __v: version = 0 } = message;
    const known = this.#records.get(_id);
    if (known?.item.deletedAt) return;
    const isOlder = known?.version > version || (known?.version === version && known.at > began);
    if (isOlder && !deletedAt) return;
    const sender = this.#parts.nameOf(message.sender ?? null);
    const mine = sender?._id === this.#me;
    const entry = !known && mine && this.#entryOf(message);
    if (entry) {
      entry.echo = message;
      return;
    }
    if (sender) this.#noteRead(sender._id, _id);
    const item = { ...message, sender, mine, key: known?.item.key ?? newKey ?? _id, state: 'stored' };
    this.#records.set(_id, { item, version, rank: rank(_id), at: this.#clock });
  }

  #named(user) {
    for (const record of this.#records.values()) {
      if (record.item.sender?._id === user._id) record.item = { ...record.item, sender: user };
    }
    this.#changed();
  }

  #changed() {
    this.#list = undefined;
    if (!this.#isShown) return;
    this.#notice ??= setTimeout(() => {
      this.#notice = undefined;
      this.emit('messages', this.messages);
    }, 10);
  }

  #dropBelow(least) {
    for (const [id, { rank: at }] of this.#records) if (at < least) this.#records.delete(id);
    this.#gaps = this.#gaps.filter(({ before }) => rank(before) > least);
    this.#low = least;
  }

  // The history

  #sync() {
    this.#isStale = true;
    this.#syncAgain = Boolean(this.#syncing);
    if (this.#syncing) return this.#syncing;
    const syncing = this.#syncWhole().finally(() => {
      if (this.#syncing === syncing) this.#syncing = undefined;
    });
    return this.#syncing = syncing;
  }

  async #syncWhole() {
    const opened = this.#opened;
    const known = new Set(this.#records.keys());
    const newest = this.#sorted().at(-1)?.rank ?? '';
    try {
      do {
        this.#syncAgain = false;
        await repeat(() => this.#catchUp(), () => opened === this.#opened && this.#isOpen);
      } while (this.#syncAgain);
    } catch (error) {
      if (error.code === 'closed') return undefined;
      opened.failed(error);
      this.#parts.failed(error);
      return undefined;
    }
    this.#isStale = false;
    if (!this.#isShown) {
      this.#isShown = true;
      this.emit('messages', this.messages);
      opened.done();
      return { state: 'live', missed: 0, gap: false };
    }
    const missed = this.#sorted().filter(({ item, rank: at }) =>
      at > newest && !known.has(item._id) && !item.mine && !item.deletedAt).length;
    return this.#tell({ state: 'resynced', missed, gap: this.#gaps.length > 0 });
  }

  /** Reads what is shown again, since it can have changed. */
  async #catchUp() {
    const sorted = this.#sorted();
    if (!this.#isShown || !sorted.length) {
      this.#low = '2';
      await this.#readBefore(undefined, this.#options.limit);
      return;
    }
    const [oldest, newest] = [sorted[0].rank, sorted.at(-1).item._id];
    let lowest = await this.#readPages(undefined, oldest, newest);
    if (lowest && rank(lowest) > rank(newest)) lowest = await this.#readPages(behind(newest), oldest);
    // What is older was not read again, and can be outdated.
    if (lowest && rank(lowest) > oldest) this.#dropBelow(rank(lowest));
  }

  async #readPages(from, oldest, newest) {
    let before = from;
    for (let pages = 0; pages < MOST_PAGES; pages += 1) {
      before = await this.#readBefore(before, PAGE, newest);
      if (!before || rank(before) <= oldest) break;
    }
    return before;
  }

  async #readBefore(before, limit, newest) {
    const [opened, began] = [this.#opened, this.#clock];
    this.#reads += 1;
    try {
      const query = `limit=${limit}&deleted=true${before ? `&before=${encodeURIComponent(before)}` : ''}`;
      const page = await this.#parts.account.rest('GET', `chat/messages/${this.id}?${query}`);
      if (opened !== this.#opened || !this.#isOpen) throw new ChatError('closed', 'The room was closed');
      const first = page.length < limit ? undefined : page[0]._id;
      const low = first ? rank(first) : '';
      this.#merge(page, low, before ? rank(before) : '2', began);
      if (low < this.#low) this.#low = low;
      if (newest && !before && low > rank(newest)) {
        this.#gaps.push({ after: rank(newest), before: first });
      }
      this.#changed();
      return first;
    } finally {
      this.#reads -= 1;
      if (!this.#reads) this.#early.clear();
    }
  }

  /** A page has everything from `low` up to before `high`. */
  #merge(page, low, high, began) {
    const all = new Map(page.map(message => [message._id, message]));
    for (const [id, { rank: at, at: told }] of this.#records) {
      if (at >= low && at < high && told <= began && !all.has(id)) this.#records.delete(id);
    }
    for (const message of page) this.#apply(message, began);
    for (const [id, early] of this.#early) {
      const at = rank(id), message = all.get(id);
      if (message || (early.sender && at >= low && at < high)) this.#apply({ ...message, ...early }, Infinity);
    }
    this.#gaps = this.#gaps.flatMap(gap => {
      if (high < rank(gap.before) || low >= rank(gap.before)) return [gap];
      return low <= gap.after || !page.length ? [] : [{ ...gap, before: page[0]._id }];
    });
  }
}

export class Chat extends Emitter {
  #account;
  #wire;
  #inner;
  #rooms = new Map();
  #user;
  #state = { state: 'offline' };
  #list;
  #watchers = 0;
  #refreshing;
  #refreshAgain = false;
  #refreshed = 0;
  #names = new Map();
  #asked = new Set();
  #presence = new Map();

  constructor({ url = new URL('.', import.meta.url), WebSocket = globalThis.WebSocket, storage } = {}) {
    super();
    const base = `${new URL(url).href.replace(/\/*$/, '')}/`;
    if (!/^http/.test(base)) throw new TypeError('Chat needs the url of the server');
    if (!WebSocket) throw new TypeError('Chat needs a WebSocket');
    const account = this.#account = new Account(base, storage);
    const failed = error => this.emit('error', error);
    const wire = this.#wire = new Wire(`${base.replace(/^http/, 'ws')}ws`, WebSocket, account, {
      state: state => this.#set(state),
      frame: frame => this.emit('frame', frame),
      event: (event, data, position) => this.#receive(event, data, position),
      opened: () => this.#opened(),
      beat: now => this.#beat(now),
      failed,
    });
    account.failed = failed;
    account.renewed = () => wire.authenticate();
    account.ended = (code, message) => this.#ended(code, message);
    this.#inner = {
      account, wire, failed,
      outbox: new Map(),
      save: (entry, isGone) => this.#save(entry, isGone),
      nameOf: sender => this.#nameOf(sender),
      read: (room, message) => this.#marked(room, message),
      returned: outcomes => this.#returned(outcomes),
    };
    globalThis.addEventListener?.('online', () => wire.wake());
    globalThis.document?.addEventListener('visibilitychange', () => {
      if (document.visibilityState !== 'visible') return;
      wire.wake();
      this.#refresh();
    });
  }

  get state() { return this.#state; }
  get user() { return this.#account.user; }
  get waiting() { return [...this.#inner.outbox.values()].filter(({ error }) => !error).length; }

  // The login

  async register(username, password) {
    await this.#account.register(username, password);
    return this.login(username, password);
  }

  async login(username, password) {
    await this.#account.login(username, password);
    return this.#begin();
  }

  resume() {
    return this.#account.resume() ? this.#begin() : null;
  }

  logout() { return this.#account.logout('auth/logout'); }
  logoutEverywhere() { return this.#account.logout('auth/logout-all'); }
  changePassword(password, newPassword) { return this.#account.changePassword(password, newPassword); }

  disconnect() {
    this.#wire.close();
    this.#set({ state: 'offline' });
  }

  connect() {
    if (!this.user) return;
    this.#wire.open();
    this.#wire.wake();
  }

  #begin() {
    const { _id } = this.user;
    this.#wire.close(new ChatError('logged_out', 'Another login'));
    if (this.#user && this.#user !== _id) {
      for (const { room, handle } of this.#rooms.values()) {
        room.close();
        handle.list(false);
      }
      this.#inner.outbox.clear();
      this.#list = undefined;
    }
    this.#user = _id;
    this.#names.set(_id, this.user);
    this.#restore();
    this.#wire.open();
    this.#refresh();
    return this.user;
  }

  #restore() {
    const { outbox } = this.#inner;
    const entries = this.#account.keys(`outbox ${this.#user} `).map(key => this.#account.read(key));
    entries.sort((one, other) => one?.at - other?.at);
    for (const entry of entries.slice(0, MOST_WAITING)) {
      if (!entry?.clientId || !entry.room || outbox.has(entry.clientId)) continue;
      outbox.set(entry.clientId, entry);
      this.room(entry.room);
    }
    for (const { handle } of this.#rooms.values()) handle.restored();
    this.emit('outbox', this.waiting);
  }

  #save({ settle, echo, ...entry }, isGone) {
    this.#account.write(`outbox ${entry.user} ${entry.clientId}`, isGone ? undefined : entry);
    queueMicrotask(() => this.emit('outbox', this.waiting));
  }

  #ended(code, message) {
    this.#wire.close(new ChatError(code, message));
    if (code === 'logged_out') {
      for (const { room } of this.#rooms.values()) room.close();
      this.#inner.outbox.clear();
    }
    this.#set({ state: 'refused', code, message });
  }

  // Rooms and users

  room(id) {
    if (!this.#rooms.has(id)) {
      const handle = {};
      this.#rooms.set(id, { handle, room: new Room(this.#inner, id, handle) });
    }
    return this.#rooms.get(id).room;
  }

  async rooms() {
    const lists = ['', '?mine=true'].map(query => this.#account.rest('GET', `chat/rooms${query}`));
    const all = (await Promise.all(lists)).flat();
    return [...new Map(all.map(room => [room._id, room])).values()];
  }

  watchRooms(show) {
    const off = this.on('rooms', show);
    this.#watchers += 1;
    if (this.#list) call(show, this.#list);
    this.#refresh();
    return () => {
      off();
      this.#watchers -= 1;
      if (!this.#watchers) for (const { handle } of this.#rooms.values()) handle.list(false);
    };
  }

  async createRoom(name, { private: isPrivate, members } = {}) {
    return this.#make('chat/room', isPrivate ? { name, private: true, members } : { name });
  }

  direct(user) { return this.#make('chat/direct', { user }); }

  async #make(route, body) {
    const { room } = await this.#account.rest('POST', route, body).finally(() => this.#refresh());
    return room;
  }

  findUsers(search) { return this.#account.rest('GET', `users?search=${encodeURIComponent(search)}`); }

  watchUsers(users, show) {
    const listener = ({ user, online, lastSeen }) => show(user, online, lastSeen);
    const added = users.filter(user => !this.#presence.has(user));
    for (const user of users) {
      const watched = this.#presence.get(user) ?? { listeners: new Set() };
      this.#presence.set(user, watched);
      watched.listeners.add(listener);
      if (watched.online !== undefined) call(listener, { user, ...watched });
    }
    if (this.#wire.live) this.#watch(added);
    return () => {
      const ended = users.filter(user => {
        const watched = this.#presence.get(user);
        watched?.listeners.delete(listener);
        return watched?.listeners.size === 0 && this.#presence.delete(user);
      });
      if (ended.length) this.#wire.ask('unwatchUsers', ended).catch(nothing);
    };
  }

  async #watch(users) {
    if (!users.length) return;
    try {
      const { online, lastSeen } = await this.#wire.ask('watchUsers', users);
      for (const user of users) this.#seen(user, online.includes(user), lastSeen[user]);
    } catch (error) {
      if (error.code !== 'unavailable') this.emit('error', error);
    }
  }

  #seen(user, online, lastSeen) {
    const watched = this.#presence.get(user);
    if (!watched) return;
    Object.assign(watched, { online, lastSeen });
    for (const listener of [...watched.listeners]) call(listener, { user, online, lastSeen });
  }

  #nameOf(sender) {
    if (!sender) return null;
    const id = sender._id ?? sender;
    const known = this.#names.get(id);
    if (known) return known;
    if (!sender._id) {
      if (this.#asked.size < 50 && !this.#asked.has(id)) this.#askName(id);
      return { _id: id };
    }
    if (this.#names.size < MOST_KEPT) this.#names.set(id, sender);
    return sender;
  }

  async #askName(id) {
    this.#asked.add(id);
    try {
      const { _id, username } = await repeat(() => this.#account.rest('GET', `users/${id}`));
      this.#names.set(_id, { _id, username });
      for (const { handle } of this.#rooms.values()) handle.named({ _id, username });
    } catch { /* A user who is gone has no name. */ } finally {
      this.#asked.delete(id);
    }
  }

  // The list of rooms

  async #refresh() {
    if (!this.#watchers || !this.user) return;
    if (this.#refreshing) { this.#refreshAgain = true; return; }
    this.#refreshing = true;
    this.#refreshed = Date.now();
    try {
      this.#list = await this.rooms();
      const followed = this.#list.filter(({ unread }) => unread !== undefined)
        .slice(0, MOST_FOLLOWED).map(({ _id }) => _id);
      for (const id of followed) this.room(id);
      for (const [id, { handle }] of this.#rooms) handle.list(this.#watchers > 0 && followed.includes(id));
      this.emit('rooms', this.#list);
    } catch (error) {
      if (!AGAIN.has(error.code) && this.user) this.emit('error', error);
    } finally {
      this.#refreshing = false;
    }
    if (!this.#refreshAgain) return;
    this.#refreshAgain = false;
    await sleep(1000);
    this.#refresh();
  }

  #change(id, changes) {
    if (!this.#list) return;
    this.#list = this.#list.map(room => (room._id === id ? { ...room, ...changes(room) } : room));
    this.emit('rooms', this.#list);
  }

  #marked(id, lastRead) {
    this.#change(id, ({ lastMessage, unread }) => {
      if (!unread) return {};
      if (lastMessage && rank(lastMessage._id) > rank(lastRead)) return void this.#refresh();
      return { unread: 0, lastRead };
    });
  }

  #count(message) {
    this.#change(message.room, ({ lastMessage, unread }) => {
      if (unread === undefined || rank(lastMessage?._id ?? '') >= rank(message._id)) return {};
      return { lastMessage: message, unread: message.sender === this.#user ? 0 : Math.min(unread + 1, 100) };
    });
  }

  // The connection

  #set(state) {
    this.#state = state;
    this.emit('state', state);
  }

  async #opened() {
    const { generation } = this.#wire;
    this.#refresh();
    this.#watch([...this.#presence.keys()]);
    const outcomes = await Promise.all([...this.#rooms.values()].map(({ handle }) => handle.connected()));
    if (generation === this.#wire.generation && this.#wire.live) this.#returned(outcomes, 'live');
  }

  #returned(outcomes, otherwise) {
    const all = outcomes.filter(Boolean);
    const has = wanted => all.some(({ state }) => state === wanted);
    const state = has('resynced') ? 'resynced' : has('recovered') ? 'recovered' : otherwise;
    const missed = all.reduce((sum, outcome) => sum + outcome.missed, 0);
    if (state) this.#set({ state, missed, gap: all.some(({ gap }) => gap) });
  }

  #beat(now) {
    if (this.#account.isDue) this.#account.renew(this.#account.token).catch(nothing);
    const isVisible = (globalThis.document?.visibilityState ?? 'visible') === 'visible';
    if (isVisible && now - this.#refreshed > 15_000) this.#refresh();
  }

  #receive(event, data, position) {
    if (event === 'error') return this.emit('error', new ChatError(data.code, data.error));
    if (event === 'userOnline' || event === 'userOffline') {
      return this.#seen(data.user, event === 'userOnline', data.lastSeen);
    }
    if (event === 'receiveMessage') this.#count(data);
    if (event === 'messageRead' && data.user === this.#user) this.#marked(data.room, data.message);
    if (/^(room|member)/.test(event) || event === 'messageDeleted') this.#refresh();
    this.#rooms.get(data?.room)?.handle.receive(event, data, position);
  }
}
