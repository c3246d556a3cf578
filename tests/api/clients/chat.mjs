// The client that the server has for front ends, in Node: node chat.mjs MODULE FOLDER-WITH-PACKAGES SCENARIOS
import assert from 'node:assert/strict';
import path from 'node:path';
import readline from 'node:readline';
import { createRequire } from 'node:module';
import { setTimeout as sleep } from 'node:timers/promises';
import { pathToFileURL } from 'node:url';

const [module, packages, ...wanted] = process.argv.slice(2);
const { URL: url, TOKEN: token, USER_ID: ada, ROOM: lounge } = process.env;
const { Chat, ChatError } = await import(pathToFileURL(module));
const { WebSocket } = createRequire(path.join(packages, 'here.js'))('ws');
const answers = readline.createInterface({ input: process.stdin });

async function until(what, holds) {
  for (const end = Date.now() + 30_000; ; await sleep(20)) {
    if (await holds()) return;
    assert.ok(Date.now() < end, `not in time: ${typeof what === 'function' ? what() : what}`);
  }
}

// What a browser keeps for all tabs of a page.
class Storage {
  items = new Map();
  get length() { return this.items.size; }
  key(index) { return [...this.items.keys()][index] ?? null; }
  getItem(key) { return this.items.get(key) ?? null; }
  setItem(key, value) { this.items.set(key, value); }
  removeItem(key) { this.items.delete(key); }
}

// A network that a test can cut, and whose frames it can change or swallow.
function network() {
  const net = { isUp: true, sockets: new Set(), sent: frame => frame, received: frame => frame };
  net.Socket = class extends WebSocket {
    constructor(address) {
      super(net.isUp ? address : 'ws://127.0.0.1:1/');
      net.sockets.add(this);
      super.on('close', () => net.sockets.delete(this));
    }
    send(text) {
      const frame = net.sent(JSON.parse(text));
      if (frame) super.send(JSON.stringify(frame));
    }
    // A frame that the server did not send.
    inject(frame) { super.onmessage({ data: JSON.stringify(frame) }); }
    set onmessage(listener) {
      super.onmessage = listener && (({ data }) => {
        const frame = net.received(JSON.parse(data));
        if (frame) listener({ data: JSON.stringify(frame) });
      });
    }
  };
  net.cut = () => { net.isUp = false; for (const socket of net.sockets) socket.terminate(); };
  net.mend = () => { net.isUp = true; };
  return net;
}

let users = 0;
const errors = [];
async function someone(storage = new Storage()) {
  const net = network();
  const chat = new Chat({ url, WebSocket: net.Socket, storage });
  const states = [];
  chat.on('state', ({ state }) => { if (states.at(-1) !== state) states.push(state); });
  chat.on('error', error => errors.push(error));
  const name = `user ${users += 1}`;
  const user = await chat.register(name, 'correct horse');
  assert.equal(user.username, name);
  await until('live', () => chat.state.state === 'live');
  return { chat, net, name, states, storage, id: user._id };
}

const post = async (route, body, method = 'POST') => {
  const headers = { 'Content-Type': 'application/json', Authorization: `Bearer ${token}` };
  const answer = await fetch(`${url}/api/chat/${route}`, { method, headers, body: body && JSON.stringify(body) });
  assert.ok(answer.ok, `${route}: ${answer.status}`);
  return answer.json();
};
let rooms = 0;
const newRoom = async () => (await post('room', { name: `chat room ${rooms += 1}` })).room._id;
const say = async (room, content) => (await post('message', { room, sender: ada, content })).message;
const sayAll = async (room, contents) => {
  const said = [];
  for (const content of contents) said.push(await say(room, content));
  return said;
};
const numbers = (count, text) => Array.from({ length: count }, (_, index) => `${text} ${index}`);
const stored = async room => (await (await fetch(`${url}/api/chat/messages/${room}`, {
  headers: { Authorization: `Bearer ${token}` },
})).json()).map(({ content }) => content);
const contents = room => room.messages.map(({ content }) => content);
const shows = (room, ...expected) => until(() => `${expected}, not ${contents(room)}`,
  () => contents(room).join() === expected.join());
const away = async ({ chat, net }, meanwhile) => {
  net.cut();
  await until('offline', () => chat.state.state === 'offline');
  await meanwhile();
  net.mend();
  chat.connect();
  await until('back', () => !['offline', 'connecting'].includes(chat.state.state));
};
const rejects = (promise, code) => assert.rejects(promise, error => error instanceof ChatError && error.code === code);

async function account() {
  const { chat, name } = await someone();
  const stranger = new Chat({ url, WebSocket, storage: new Storage() });
  await rejects(stranger.login(name, 'wrong'), 'invalid_credentials');
  await rejects(stranger.login('nobody at all', 'wrong'), 'invalid_credentials');
  await rejects(stranger.register(name, 'another'), 'username_taken');
  assert.equal(stranger.user, null);
  assert.equal(stranger.resume(), null);
  await rejects(stranger.rooms(), 'logged_out');
  await stranger.login(name, 'correct horse');
  await until('live', () => stranger.state.state === 'live');

  await rejects(chat.changePassword('wrong', 'battery staple'), 'invalid_credentials');
  await chat.changePassword('correct horse', 'battery staple');
  // The new token takes the place of the old one, and the other login has ended.
  await until('refused', () => stranger.state.state === 'refused');
  assert.equal(stranger.user, null);
  await until('live', () => chat.state.state === 'live');
  assert.ok((await chat.rooms()).length > 0);
  await chat.logout();
  assert.deepEqual(chat.state, { state: 'refused', code: 'logged_out', message: 'Logged out' });
  assert.equal(chat.resume(), null);
}

async function history() {
  const { chat } = await someone();
  const id = await newRoom();
  const said = numbers(130, 'message');
  await sayAll(id, said);
  const room = chat.room(id);
  const shown = [];
  await room.open(messages => shown.push(messages.map(({ content }) => content)));
  assert.deepEqual(shown[0], said.slice(80), 'history first, the newest page of it');
  assert.equal(room.hasOlder, true);
  const [first] = room.messages;
  assert.deepEqual([first.mine, first.state, first.sender], [false, 'stored', { _id: ada, username: 'ada' }]);
  await say(id, 'live');
  await shows(room, ...said.slice(80), 'live');
  assert.deepEqual(room.messages.at(-1).sender, { _id: ada, username: 'ada' });
  assert.equal(await room.older(), true);
  await shows(room, ...said.slice(30), 'live');
  assert.equal(await room.older(), false);
  await shows(room, ...said, 'live');
  assert.equal(await room.older(), false);
  room.close();
  assert.deepEqual(room.messages, []);
  await say(id, 'while it was closed');
  await room.open(undefined, { limit: 2 });
  await shows(room, 'live', 'while it was closed');
  await rejects(chat.room('0123456789abcdef01234567').open(), 'room_not_found');
  chat.disconnect();
}

// A page can ask for its room before it logs in, and two users can log in one after the other.
async function otherUsers() {
  const id = await newRoom();
  const chat = new Chat({ url, WebSocket, storage: new Storage() });
  const room = chat.room(id);
  const opened = room.open();
  await chat.register('the first', 'correct horse');
  await opened;
  assert.equal(chat.room(id), room);
  room.send('of the first');
  await say(id, 'live');
  await until('both', () => contents(room).length === 2);
  await chat.register('the second', 'correct horse');
  assert.equal(room.isOpen, false);
  await room.open();
  room.send('of the second');
  await until('stored', () => room.messages.at(-1).state === 'stored');
  await say(id, 'live, too');
  await until('live', () => contents(room).length === 4);
  assert.deepEqual(room.messages.map(({ mine }) => mine), [false, false, true, false]);
  chat.disconnect();
}

// What happens while the history is on its way is newer than that, whatever comes first.
async function whileReading() {
  const one = await someone();
  const id = await newRoom();
  const [toEdit, toDelete] = await sayAll(id, ['to edit', 'to delete']);
  const { fetch } = globalThis;
  let read, release;
  const wasRead = new Promise(done => { read = done; });
  const gate = new Promise(done => { release = done; });
  globalThis.fetch = async (address, ...all) => {
    const answer = await fetch(address, ...all);
    if (!address.includes('deleted=true')) return answer;
    const text = await answer.text();
    read();
    await gate;
    return new Response(text, answer);
  };
  const room = one.chat.room(id);
  const opened = room.open();
  await wasRead;
  // The answer alone must be enough.
  one.net.received = frame => (frame.event === 'receiveMessage' ? null : frame);
  await room.send('sent meanwhile');
  one.net.received = frame => frame;
  await post(`message/${toEdit._id}`, { content: 'edited' }, 'PATCH');
  await post(`message/${toDelete._id}`, undefined, 'DELETE');
  await say(id, 'said meanwhile');
  await sleep(300);
  release();
  await opened;
  globalThis.fetch = fetch;
  await shows(room, 'edited', 'sent meanwhile', 'said meanwhile');
  one.chat.disconnect();
}

// An old message whose answer comes while the newest page is on its way is not shown alone.
async function oldWhileReading() {
  const one = await someone();
  const id = await newRoom();
  const room = one.chat.room(id);
  // It is stored, and the answer is lost.
  one.net.received = frame => (frame.ack !== undefined && frame.data.message ? null : frame);
  room.send('old');
  await until('stored', async () => (await stored(id)).length === 1);
  one.chat.disconnect();
  one.net.received = frame => frame;
  await sayAll(id, numbers(60, 'later'));
  const { fetch } = globalThis;
  globalThis.fetch = async (address, ...all) => {
    if (address.includes('deleted=true')) await until('answered', () => one.chat.waiting === 0);
    return fetch(address, ...all);
  };
  const opened = room.open(undefined, { limit: 5 });
  one.chat.connect();
  await opened;
  globalThis.fetch = fetch;
  assert.deepEqual(contents(room), numbers(60, 'later').slice(55));
  while (await room.older()) /* Next page. */;
  assert.deepEqual(contents(room), ['old', ...numbers(60, 'later')]);
  one.chat.disconnect();
}

// A message that is not shown any more is not shown alone when it is edited or deleted.
async function changedFromAfar() {
  const one = await someone();
  const id = await newRoom();
  const room = one.chat.room(id);
  await room.open();
  const mine = [await room.send('to edit'), await room.send('to delete')];
  await sayAll(id, numbers(60, 'later'));
  await room.open(undefined, { limit: 5 });
  await room.edit(mine[0], 'edited');
  await room.delete(mine[1]);
  assert.deepEqual(contents(room), numbers(60, 'later').slice(55));
  while (await room.older()) /* Next page. */;
  assert.deepEqual(contents(room), ['edited', ...numbers(60, 'later')]);
  one.chat.disconnect();
}

async function changes() {
  const { chat, id: user } = await someone();
  const other = await someone();
  const id = await newRoom();
  const [room, same] = [chat.room(id), other.chat.room(id)];
  await Promise.all([room.open(), same.open(undefined, { deleted: true })]);
  const message = await room.send('hello');
  await room.send('to delete');
  await shows(same, 'hello', 'to delete');
  assert.deepEqual(same.messages[0].sender, chat.user, 'a name that was asked for');
  const [shown, gone] = room.messages;
  assert.equal(shown.mine, true);
  assert.notEqual(shown.key, shown._id, 'the key of a pending message stays');
  const edited = await room.edit(shown, 'hello, all');
  assert.equal(edited.__v, 1);
  await rejects(room.edit(shown, 'of an older version'), 'edit_conflict');
  await rejects(same.edit(same.messages[0], 'of another'), 'not_the_sender');
  await shows(same, 'hello, all', 'to delete');
  await room.delete(gone);
  await shows(room, 'hello, all');
  // Where what is left of it is asked for, it is shown without its text.
  await shows(same, 'hello, all', '');
  assert.ok(same.messages[1].deletedAt);
  assert.equal(message.sender, user);
  for (const each of [chat, other.chat]) each.disconnect();
}

async function recovery() {
  const one = await someone();
  const id = await newRoom();
  const room = one.chat.room(id);
  const outcomes = [];
  room.on('recovered', outcome => outcomes.push(outcome));
  await room.open();
  const [toEdit, toDelete] = await sayAll(id, ['to edit', 'to delete']);
  await shows(room, 'to edit', 'to delete');
  await away(one, async () => {
    room.send('mine, one');
    room.send('mine, two');
    await until('pending', () => room.messages.filter(({ state }) => state === 'pending').length === 2);
    assert.equal(one.chat.waiting, 2);
    assert.ok(one.chat.state.retryAt > 0);
    await post(`message/${toEdit._id}`, { content: 'edited' }, 'PATCH');
    await post(`message/${toDelete._id}`, undefined, 'DELETE');
    await sayAll(id, ['missed, one', 'missed, two']);
  });
  await shows(room, 'edited', 'missed, one', 'missed, two', 'mine, one', 'mine, two');
  assert.deepEqual(outcomes, [{ state: 'recovered', missed: 2, gap: false }]);
  assert.equal(one.chat.state.state, 'recovered');
  assert.equal(one.chat.state.missed, 2);
  assert.equal(one.chat.waiting, 0);
  assert.deepEqual(one.states.slice(0, 3), ['connecting', 'live', 'offline']);
  assert.equal(one.states.at(-1), 'recovered');
  assert.deepEqual(await stored(id), contents(room));
  one.chat.disconnect();
}

// Answers that are lost, and an echo that comes before its answer.
async function nothingIsDoubled() {
  const one = await someone();
  const id = await newRoom();
  const room = one.chat.room(id);
  const seen = [];
  await room.open(messages => seen.push(messages.filter(({ content }) => content === 'once').length));
  let swallowed = 0;
  one.net.received = frame => {
    if (!frame.data?.message || swallowed === 2) return frame;
    swallowed += 1;
    setTimeout(() => one.net.sockets.forEach(socket => socket.terminate()), 100);
    return null;
  };
  const message = await room.send('once');
  assert.equal(swallowed, 2);
  assert.equal(message.content, 'once');
  await shows(room, 'once');
  assert.deepEqual(await stored(id), ['once']);
  assert.ok(seen.every(count => count <= 1), `${seen}`);
  // The same text a second time is another message.
  await room.send('once');
  await shows(room, 'once', 'once');
  assert.equal(room.messages.filter(({ state }) => state === 'stored').length, 2);
  one.chat.disconnect();
}

async function reload() {
  const one = await someone();
  const id = await newRoom();
  const room = one.chat.room(id);
  await room.open();
  one.net.cut();
  await until('offline', () => one.chat.state.state === 'offline');
  for (const text of ['first', 'second', 'third']) room.send(text);
  await until('shown', () => contents(room).length === 3);
  // The page is gone. Two others of the same user begin with what it has left, at the same time.
  one.chat.disconnect();
  const tabs = [0, 1].map(() => new Chat({ url, WebSocket, storage: one.storage }));
  for (const tab of tabs) assert.deepEqual(tab.resume(), one.chat.user);
  const reopened = tabs.map(tab => tab.room(id));
  await Promise.all(reopened.map(room => room.open()));
  for (const room of reopened) {
    await shows(room, 'first', 'second', 'third');
    await until('stored', () => room.messages.every(({ state }) => state === 'stored'));
  }
  assert.deepEqual(await stored(id), ['first', 'second', 'third']);
  await until('nothing is left', () => [...one.storage.items.keys()].every(key => !key.includes('outbox')));
  for (const tab of tabs) tab.disconnect();
}

// More than may wait is refused, and that is told.
async function tooMany() {
  const { chat, net } = await someone();
  const id = await newRoom();
  const room = chat.room(id);
  await room.open();
  net.cut();
  await until('offline', () => chat.state.state === 'offline');
  const sent = numbers(1000, 'waits').map(text => room.send(text));
  await rejects(room.send('one more'), 'too_many_waiting');
  assert.deepEqual(errors.splice(0).map(({ code }) => code), ['too_many_waiting']);
  assert.equal(room.messages.length, 1000);
  net.mend();
  chat.connect();
  await Promise.all(sent);
  assert.deepEqual(await stored(id), numbers(1000, 'waits'));
  chat.disconnect();
}

async function refusedMessages() {
  const one = await someone();
  const owner = await someone();
  const { _id: id } = await owner.chat.createRoom('cellar', { private: true, members: [one.id] });
  const room = one.chat.room(id);
  const failed = [];
  room.on('failed', message => failed.push(message));
  const removed = new Promise(done => room.on('removed', done));
  await room.open();
  // A frame that is much longer would end the connection each time.
  await rejects(room.send('x'.repeat(200_000)), 'body_too_large');
  room.discard(room.messages.at(-1));
  const long = 'x'.repeat(110_000);
  await rejects(room.send(long), 'body_too_large');
  await until('failed', () => room.messages.at(-1)?.state === 'failed');
  assert.equal(room.messages.at(-1).error.code, 'body_too_large');
  assert.equal(failed.length, 2);
  room.retry(room.messages.at(-1));
  await until('failed again', () => failed.length === 3);
  room.discard(room.messages.at(-1));
  await shows(room);
  // A message whose first attempt was a day ago may be forgotten by the server.
  const key = `chat ${url}/ outbox ${one.id} aaaa`;
  one.chat.disconnect();
  const old = { clientId: 'aaaa', user: one.id, room: id, content: 'of yesterday', at: 1, tried: Date.now() - 25 * 3600_000 };
  one.storage.setItem(key, JSON.stringify(old));
  one.storage.setItem(`${key}b`, 'not what this module has written');
  const next = new Chat({ url, WebSocket, storage: one.storage });
  next.resume();
  const again = next.room(id);
  await again.open();
  await until('not sent by itself', () => again.messages.at(-1)?.state === 'failed');
  assert.equal(again.messages.at(-1).error.code, 'expired');
  again.retry(again.messages.at(-1));
  await until('sent', () => again.messages.at(-1)?.state === 'stored');
  next.disconnect();
  one.chat.connect();
  await until('live', () => one.chat.state.state !== 'connecting' && one.chat.state.state !== 'offline');
  await owner.chat.room(id).remove(one.id);
  assert.equal((await removed).code, 'room_not_found');
  assert.equal(room.isOpen, false);
  owner.chat.disconnect();
  one.chat.disconnect();
}

// More was missed than is kept: the history is read until it meets what is shown.
async function resync() {
  const one = await someone();
  const id = await newRoom();
  const room = one.chat.room(id);
  const outcomes = [];
  room.on('resynced', outcome => outcomes.push(outcome));
  const before = await sayAll(id, ['kept', 'to edit', 'to delete']);
  await room.open();
  one.net.sent = frame => (frame.event === 'joinRoom' && frame.data.since
    ? { ...frame, data: { ...frame.data, since: '1.1' } } : frame);
  const missed = numbers(230, 'missed');
  await away(one, async () => {
    await post(`message/${before[1]._id}`, { content: 'edited' }, 'PATCH');
    await post(`message/${before[2]._id}`, undefined, 'DELETE');
    await sayAll(id, missed);
  });
  await shows(room, 'kept', 'edited', ...missed);
  assert.equal(one.chat.state.state, 'resynced');
  assert.deepEqual(outcomes, [{ state: 'resynced', missed: 230, gap: false }]);
  await say(id, 'live');
  await shows(room, 'kept', 'edited', ...missed, 'live');

  // Without positions, as on a standalone MongoDB, the history is read again, too.
  const last = numbers(120, 'last');
  one.net.sent = frame => (frame.event === 'joinRoom' ? { ...frame, data: { room: id } } : frame);
  one.net.received = frame => JSON.parse(JSON.stringify(frame, (name, value) => (name === 'position' ? null : value)));
  room.close();
  await room.open();
  assert.equal(room.position, undefined);
  const shown = contents(room);
  await away(one, () => sayAll(id, last));
  await until('read again', () => contents(room).slice(-170).join() === [...shown, ...last].join());
  one.chat.disconnect();
}

// There are no positions, so the server cannot say what was missed.
async function standalone() {
  const one = await someone();
  const id = await newRoom();
  const room = one.chat.room(id);
  const [toEdit, toDelete] = await sayAll(id, ['to edit', 'to delete']);
  await room.open();
  assert.equal(room.position, undefined);
  await say(id, 'live');
  await shows(room, 'to edit', 'to delete', 'live');
  await away(one, async () => {
    room.send('mine');
    await post(`message/${toEdit._id}`, { content: 'edited' }, 'PATCH');
    await post(`message/${toDelete._id}`, undefined, 'DELETE');
    await sayAll(id, numbers(120, 'missed'));
  });
  await shows(room, 'edited', 'live', ...numbers(120, 'missed'), 'mine');
  assert.equal(one.chat.state.state, 'resynced');
  one.chat.disconnect();
}

// Too much to read at once is a gap that can be opened.
async function gap() {
  const one = await someone();
  const id = await newRoom();
  const room = one.chat.room(id);
  const before = await sayAll(id, ['before', 'to edit']);
  await room.open();
  one.net.sent = frame => (frame.event === 'joinRoom' && frame.data.since
    ? { ...frame, data: { ...frame.data, since: '1.1' } } : frame);
  const missed = numbers(1150, 'missed');
  await away(one, async () => {
    await post(`message/${before[1]._id}`, { content: 'edited' }, 'PATCH');
    await sayAll(id, missed);
  });
  await shows(room, 'before', 'edited', ...missed.slice(150));
  const marked = () => room.messages.filter(({ gapBefore }) => gapBefore).map(({ content }) => content);
  assert.deepEqual(marked(), ['missed 150']);
  assert.equal(one.chat.state.gap, true);
  await room.fill(room.messages.find(({ gapBefore }) => gapBefore));
  await shows(room, 'before', 'edited', ...missed.slice(50));
  assert.deepEqual(marked(), ['missed 50']);
  await room.fill(room.messages.find(({ gapBefore }) => gapBefore));
  await shows(room, 'before', 'edited', ...missed);
  assert.deepEqual(marked(), []);
  one.chat.disconnect();
}

async function signals() {
  const [one, two] = [await someone(), await someone()];
  const id = await newRoom();
  const seen = [];
  const stop = one.chat.watchUsers([two.id], (user, online) => seen.push(online));
  await until('online', () => seen.at(-1) === true);
  const [room, same] = [one.chat.room(id), two.chat.room(id)];
  await Promise.all([room.open(), same.open()]);
  const typists = [];
  room.on('typing', users => typists.push(users.map(({ username }) => username).join()));
  for (let count = 0; count < 5; count += 1) same.typing();
  await until('typing', () => typists.at(-1) === two.name);
  same.stopTyping();
  await until('stopped', () => typists.at(-1) === '');
  // Without an end, which can get lost.
  one.net.received = frame => (frame.event === 'stopTyping' ? null : frame);
  await sleep(100);
  same.typing();
  await until('typing again', () => typists.at(-1) === two.name);
  const since = Date.now();
  await until('expired', () => typists.at(-1) === '');
  assert.ok(Date.now() - since < 8000);
  assert.deepEqual(await room.online().then(users => users.sort()), [one.id, two.id].sort());

  // Unread messages of a room that is not open, and read marks.
  const message = await room.send('read me');
  await shows(same, 'read me');
  same.markRead();
  await until('read', () => room.readers(message).includes(two.id));
  same.close();
  let list = [];
  const end = two.chat.watchRooms(rooms => { list = rooms; });
  const unread = () => list.find(({ _id }) => _id === id)?.unread;
  await until('listed', () => unread() === 0);
  await room.send('unread, one');
  await room.send('unread, two');
  await until('counted', () => unread() === 2);
  assert.equal(list.find(({ _id }) => _id === id).lastMessage.content, 'unread, two');
  await away(two, () => room.send('unread, three'));
  await until('counted', () => unread() === 3);
  await same.open();
  same.markRead();
  await until('read', () => unread() === 0);
  // What another user makes.
  const conversation = await one.chat.direct(two.id);
  await until('listed', () => list.some(({ _id }) => _id === conversation._id));
  assert.equal((await two.chat.direct(one.id))._id, conversation._id);
  assert.deepEqual((await two.chat.findUsers(one.name)).map(({ _id }) => _id), [one.id]);
  await one.chat.room(conversation._id).send('hello, you');
  await until('counted', () => list.find(({ _id }) => _id === conversation._id)?.unread === 1);
  const added = await one.chat.createRoom('a public room of one');
  await rejects(one.chat.createRoom('a public room of one'), 'room_exists');
  assert.ok((await two.chat.rooms()).some(({ _id }) => _id === added._id));
  end();
  stop();
  for (const { chat } of [one, two]) chat.disconnect();
}

// The token of all tabs is renewed once, before it ends, and after.
async function renewal() {
  const { fetch } = globalThis;
  let exchanges = 0;
  globalThis.fetch = (address, ...all) => {
    if (address.endsWith('refresh-token')) exchanges += 1;
    return fetch(address, ...all);
  };
  const one = await someone();
  const id = await newRoom();
  const key = `chat ${url}/ login`;
  const saved = () => JSON.parse(one.storage.getItem(key));
  const first = saved();
  assert.ok(first.renewAt > Date.now() + 40 * 60_000 && first.renewAt < Date.now() + 55 * 60_000);
  // After an hour: what is kept is not valid any more.
  one.chat.disconnect();
  one.storage.setItem(key, JSON.stringify({ ...first, token: 'expired' }));
  const tab = new Chat({ url, WebSocket, storage: one.storage });
  tab.resume();
  const room = tab.room(id);
  await room.open();
  assert.equal(exchanges, 1);
  assert.notEqual(saved().refreshToken, first.refreshToken);
  // In time: the connection goes on.
  const frames = [];
  tab.on('frame', ({ sent }) => frames.push(sent));
  one.storage.setItem(key, JSON.stringify({ ...saved(), renewAt: 0 }));
  const soon = new Chat({ url, WebSocket, storage: one.storage });
  soon.resume();
  const before = saved().token;
  await until('renewed', () => saved().token !== before);
  await soon.rooms();
  assert.equal(exchanges, 2);
  // The first tab takes the token of the other one where it is kept.
  const other = saved().token;
  await tab.rooms();
  globalThis.fetch = (address, request, ...all) => fetch(address, {
    ...request,
    headers: request.headers.Authorization?.includes(other) ? request.headers : { ...request.headers, Authorization: 'Bearer old' },
  }, ...all);
  await tab.rooms();
  globalThis.fetch = fetch;
  await until('authenticated', () => frames.includes('authenticate'));
  assert.ok(!frames.includes('joinRoom'), 'the same connection');
  await soon.logout();
  await until('all tabs', () => tab.state.state === 'refused');
  assert.match(tab.state.code, /^(logged_out|refresh_invalid)$/);
  assert.equal(saved(), null);
}

async function restart() {
  const one = await someone();
  const room = one.chat.room(lounge);
  await room.open();
  const before = contents(room);
  console.log('restart');
  await new Promise(done => answers.once('line', done));
  await until('recovered', () => one.chat.state.state === 'recovered');
  await room.send('after the restart');
  await shows(room, ...before, 'after the restart');
  one.chat.disconnect();
}

// A connection that is dead without a word, as after a sleep.
async function deadConnection() {
  const one = await someone();
  const id = await newRoom();
  const room = one.chat.room(id);
  await room.open();
  one.net.sent = () => null;
  one.net.received = () => null;
  const message = room.send('after the sleep');
  await sleep(100);
  [one.net.sent, one.net.received] = [frame => frame, frame => frame];
  const [socket] = one.net.sockets;
  socket.pause();
  // As the events of a browser do.
  one.chat.connect();
  assert.equal((await message).content, 'after the sleep');
  assert.deepEqual(await stored(id), ['after the sleep']);
  one.chat.disconnect();
}

// A server of the next version, with more events and more fields.
async function newer() {
  const { chat, net } = await someone();
  const more = value => (value?.constructor === Object ? { ...value, future: [1] } : value);
  net.received = frame => more({ ...frame, data: more(frame.data) });
  const id = await newRoom();
  const room = chat.room(id);
  await room.open();
  for (const socket of net.sockets) {
    socket.inject({ event: 'reactionAdded', data: { room: id, message: 'x' }, position: room.position });
    socket.inject({ event: 'statusChanged', data: 'away' });
    socket.inject({ event: 'maintenance' });
  }
  await room.send('one');
  await say(id, 'two');
  await shows(room, 'one', 'two');
  await away({ chat, net }, () => say(id, 'three'));
  await shows(room, 'one', 'two', 'three');
  assert.equal(chat.state.state, 'recovered');
  chat.disconnect();
}

// A server of the version before: it knows messages, and neither refresh tokens nor what else came
// later.
async function older() {
  const { fetch } = globalThis;
  globalThis.fetch = async (address, ...all) => {
    const answer = await fetch(address, ...all);
    if (!address.endsWith('auth/login')) return answer;
    const { refreshToken, ...login } = await answer.json();
    assert.ok(refreshToken);
    return Response.json(login, answer);
  };
  const { chat, net, storage } = await someone();
  net.sent = frame => {
    if (['authenticate', 'joinRoom', 'leaveRoom', 'sendMessage'].includes(frame.event)) return frame;
    const data = { error: 'Unknown event', code: 'unknown_event' };
    for (const socket of net.sockets) queueMicrotask(() => socket.inject({ ack: frame.id, data }));
    return null;
  };
  const id = await newRoom();
  const room = chat.room(id);
  await room.open();
  const message = await room.send('one');
  const stop = chat.watchUsers([ada], () => {});
  room.typing();
  room.markRead();
  await rejects(room.edit(message, 'other'), 'unknown_event');
  await rejects(room.delete(message), 'unknown_event');
  await away({ chat, net }, () => say(id, 'two'));
  await shows(room, 'one', 'two');
  stop();
  // At the end of the token, the user logs in again.
  const { token } = JSON.parse(storage.getItem(`chat ${url}/ login`));
  const ended = await fetch(`${url}/api/auth/logout-all`, { method: 'POST', headers: { Authorization: `Bearer ${token}` } });
  assert.ok(ended.ok);
  await until('refused', () => chat.state.state === 'refused');
  assert.equal(chat.user, null);
  globalThis.fetch = fetch;
  assert.deepEqual([...new Set(errors.splice(0).map(({ code }) => code))], ['unknown_event']);
}

const scenarios = {
  newer, older, tooMany,
  account, otherUsers, history, whileReading, changes, oldWhileReading, changedFromAfar, recovery, nothingIsDoubled, reload, refusedMessages, resync, standalone, gap, signals,
  renewal, deadConnection, restart,
};
for (const name of wanted) {
  console.error(name);
  await scenarios[name]();
  assert.deepEqual(errors, []);
}
console.log('done');
process.exit();
