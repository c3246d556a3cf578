// Runs the JavaScript of the pages: node snippets.mjs REPOSITORY FOLDER-WITH-PACKAGES
import assert from 'node:assert/strict';
import fs from 'node:fs';
import path from 'node:path';
import { createRequire } from 'node:module';
import { setTimeout as sleep } from 'node:timers/promises';
import { pathToFileURL } from 'node:url';

const [repository, packages] = process.argv.slice(2);
const { URL: server, TOKEN, USER_ID, ROOM } = process.env;
const require = createRequire(path.join(packages, 'here.js'));

// Every block of JavaScript, of frames too, by page and heading.
const examples = ['docs/client.md', 'docs/realtime.md', 'docs/migrating.md'].flatMap(page => {
  const found = [];
  let [heading, block, fence] = ['', null, ''];
  for (const line of fs.readFileSync(path.join(repository, page), 'utf8').split('\n')) {
    const text = line.trimStart();
    if (text.startsWith('```')) {
      if (block) found.push(block);
      fence = line.slice(0, line.length - text.length);
      block = block ? null : { page, heading, language: text.slice(3), lines: [], used: false };
    } else if (block) {
      block.lines.push(line.startsWith(fence) ? line.slice(fence.length) : line);
    } else if (/^#+ /.test(line)) {
      heading = line.replace(/^#+ /, '');
    }
  }
  return found;
});

function code(page, heading, language = 'js') {
  const blocks = examples.filter(block => block.page === page && block.heading === heading && block.language === language);
  assert.ok(blocks.length > 0, `${page} has no ${language} below ${heading}`);
  for (const block of blocks) block.used = true;
  return blocks.map(block => block.lines.join('\n')).join('\n');
}

// Imports an example as a module, which can import packages, and exports these names of it.
const folder = fs.mkdtempSync(path.join(packages, 'run-'));
let modules = 0;
async function run(text, ...names) {
  return import(pathToFileURL(write(`${text}\nexport { ${names.join(', ')} };\n`)));
}
function write(text) {
  const file = path.join(folder, `${modules += 1}.mjs`);
  fs.writeFileSync(file, text);
  return file;
}

const realtime = (heading, language) => code('docs/realtime.md', heading, language);

async function until(what, holds) {
  for (const end = Date.now() + 30_000; !await holds(); await sleep(20)) {
    assert.ok(Date.now() < end, `not in time: ${what}`);
  }
}

const headers = { 'Content-Type': 'application/json', Authorization: `Bearer ${TOKEN}` };
async function post(route, body) {
  const answer = await fetch(`${server}/api/chat/${route}`, { method: 'POST', headers, body: JSON.stringify(body) });
  assert.equal(answer.status, 201);
  return answer.json();
}
let rooms = 0;
const newRoom = async () => (await post('room', { name: `room ${rooms += 1}` })).room._id;
const say = (room, content) => post('message', { room, sender: USER_ID, content });

// What the page calls the reader's own.
let logins = 0;
Object.assign(globalThis, {
  url: server,
  localStorage: { token: TOKEN },
  logInAgain: async () => { logins += 1; localStorage.token = TOKEN; },
});

// A room whose messages are recorded: each as `render` is given it, and which are shown in the end.
async function scene() {
  const [rendered, shown] = [[], new Map()];
  globalThis.room = await newRoom();
  globalThis.render = message => { rendered.push(message.content); shown.set(message._id, message.content); };
  globalThis.remove = id => shown.delete(id);
  return { room: globalThis.room, rendered, shown };
}
const shows = (rendered, ...contents) => until(`${contents}, not ${rendered}`, () => rendered.length >= contents.length)
  .then(() => assert.deepEqual([...rendered].sort(), [...contents].sort()));
const away = async (socket, meanwhile) => {
  socket.io.engine.close();
  await until('away', () => !socket.connected);
  await meanwhile();
  await until('back', () => socket.connected);
};

// What other examples use: a new token by a refresh, or, without a refresh token, by a login.
async function renewing() {
  const names = ['logIn', 'renew', 'logOut', 'refresh', 'stayAuthenticated'];
  const { logIn, renew, logOut, refresh, stayAuthenticated } = await run(realtime('Stay logged in'), ...names);
  globalThis.renew = renew;
  const credentials = { username: 'carl', password: 'correct horse' };
  await fetch(`${server}/api/auth/register`, {
    method: 'POST',
    headers: { 'Content-Type': 'application/json' },
    body: JSON.stringify(credentials),
  });
  await assert.rejects(logIn('carl', 'wrong'), /Invalid credentials/);
  await logIn('carl', credentials.password);
  const first = { ...localStorage };
  const results = await Promise.all([refresh(), refresh(), renew()]);
  assert.deepEqual(results.slice(0, 2), [true, true]);
  assert.notEqual(localStorage.refreshToken, first.refreshToken);

  // A session that takes the next token in time, and one that comes back with it.
  const { io } = require('socket.io-client');
  const refused = [];
  const socket = io(server, { auth: callback => callback({ token: localStorage.token }), forceNew: true });
  socket.on('connect_error', error => refused.push(error.data.code));
  await until('connected', () => socket.connected);
  const before = localStorage.token;
  const stop = stayAuthenticated(socket, 1500);
  const newer = async () => localStorage.token !== before;
  await until('a newer token', newer);
  stop();
  await sleep(200);
  assert.equal(socket.connected, true);
  assert.deepEqual(refused, []);

  // All tokens of the login end, and the socket is refused when it comes back by itself.
  const { token } = localStorage;
  await logOut();
  assert.deepEqual([localStorage.token, localStorage.refreshToken], [undefined, undefined]);
  localStorage.token = token;
  await until('refused', () => refused.length > 0);
  assert.deepEqual(refused, ['token_revoked']);
  socket.close();
  logins = 0;
  await renew();
  assert.equal(logins, 1, 'without a refresh token, the user logs in');
}

async function socketIo() {
  const { room, rendered, shown } = await scene();
  await say(room, 'before');
  localStorage.token = 'expired';
  logins = 0;
  const names = ['socket', 'follow', 'history'];
  const { socket, follow, history } = await run(realtime('Socket.IO'), ...names);
  Object.assign(globalThis, { socket, follow, history });
  await shows(rendered, 'before');
  assert.equal(logins, 1, 'it logs in again after a refusal');

  const { send } = await run(realtime('Send a message'), 'send');
  const sent = await send(room, 'sent');
  assert.equal(sent.sender, USER_ID);
  await shows(rendered, 'before', 'sent');

  // A short loss: the server gives what was missed.
  await away(socket, () => say(room, 'missed'));
  assert.equal(socket.recovered, true);
  await shows(rendered, 'before', 'sent', 'missed');

  // An answer that is lost: sent again, and stored once.
  const again = send(room, 'again');
  socket.io.engine.close();
  assert.equal((await again).content, 'again');
  await shows(rendered, 'before', 'sent', 'missed', 'again');

  // A resync: the history has what was missed.
  await socket.emitWithAck('leaveRoom', room);
  await say(room, 'unheard');
  const rejoined = await socket.emitWithAck('joinRoom', { room, since: '1.1' });
  assert.equal(rejoined.recovered, false);
  await shows(rendered, 'before', 'sent', 'missed', 'again', 'unheard');

  await edits(room, shown);

  // A join whose answer was lost is repeated.
  const other = await newRoom();
  await say(other, 'of another room');
  const heard = [];
  const stop = follow(socket, other, message => heard.push(message.content));
  socket.io.engine.close();
  await shows(heard, 'of another room');
  stop();
  await socket.emitWithAck('leaveRoom', other);
  await say(other, 'unheard');
  await sleep(200);
  assert.deepEqual(heard, ['of another room']);

  const said = [];
  const { log } = console;
  console.log = text => said.push(text);
  await run(realtime('Tokens'));
  await until('authenticated', () => said.length === 1);
  console.log = log;
  assert.match(said[0], /^valid until /);
}

// Of a message that is live, of one while the client is away, and of one that only the history tells.
async function edits(room, shown) {
  const { edit, deleteMessage } = await run(realtime('Edit or delete a message'), 'edit', 'deleteMessage');
  const messages = [];
  for (const content of ['one', 'two', 'three', 'four', 'five', 'six']) messages.push((await say(room, content)).message);
  const [one, two, three, four, five, six] = messages;
  const change = (message, content) => fetch(`${server}/api/chat/message/${message._id}`, {
    method: content ? 'PATCH' : 'DELETE',
    headers,
    body: content && JSON.stringify({ content }),
  });
  const edited = await edit(one, 'one, edited');
  assert.equal(edited.__v, 1);
  await assert.rejects(edit(one, 'of a version that is gone'), /has changed/);
  await deleteMessage(two);
  const are = (...contents) => until(`${contents}, not ${[...shown.values()]}`, () =>
    contents.every(content => [...shown.values()].includes(content))
    && messages.filter(({ _id }) => shown.has(_id)).length === contents.length);
  await are('one, edited', 'three', 'four', 'five', 'six');
  await away(socket, async () => { await change(three, 'three, edited'); await change(four); });
  assert.equal(socket.recovered, true);
  await are('one, edited', 'three, edited', 'five', 'six');
  await socket.emitWithAck('leaveRoom', room);
  await change(five, 'five, edited');
  await change(six);
  await socket.emitWithAck('joinRoom', { room, since: '1.1' });
  await are('one, edited', 'three, edited', 'five, edited');
}

// A private room as its owner and as another member see it, and a conversation of the two.
async function privateRooms() {
  const heading = 'Private rooms and direct messages';
  const names = ['ask', 'privateRoom', 'conversationWith', 'followRooms'];
  const { ask, privateRoom, conversationWith, followRooms } = await run(realtime(heading), ...names);
  const bob = { username: 'bob', password: 'correct horse' };
  const auth = route => fetch(`${server}/api/auth/${route}`, {
    method: 'POST',
    headers: { 'Content-Type': 'application/json' },
    body: JSON.stringify(bob),
  });
  await auth('register');
  const { token, userId } = await (await auth('login')).json();
  const received = { ann: [], bob: [] };
  const open = async (user, token) => {
    const ws = new Native(`${server.replace('http', 'ws')}/ws?token=${token}`);
    ws.onmessage = ({ data }) => received[user].push(JSON.parse(data));
    await until('open', () => ws.readyState === Native.OPEN);
    return ws;
  };
  let mine = [];
  const stop = followRooms(socket, rooms => { mine = rooms; });
  const membersOf = room => mine.find(({ _id }) => _id === room)?.members.length;

  const { _id: room, members } = await privateRoom('attic');
  assert.deepEqual(members.map(({ _id }) => _id), [USER_ID]);
  await until('the new room', () => membersOf(room) === 1);
  const sockets = [await open('ann', TOKEN), await open('bob', token)];
  sockets[0].send(JSON.stringify({ event: 'joinRoom', data: room, id: 1 }));
  await until('joined', () => received.ann.length === 1);
  received.ann.length = 0;
  await socket.emitWithAck('joinRoom', room);
  await ask('POST', `room/${room}/members`, { user: userId });
  await until('the new member', () => membersOf(room) === 2);
  await ask('PATCH', `room/${room}`, { name: 'cellar' });
  await until('the new name', () => mine.some(({ name }) => name === 'cellar'));
  await ask('DELETE', `room/${room}/members/${userId}`);
  await until('the removal', () => membersOf(room) === 1);

  // Positions are others each time.
  const shape = frame => ({ ...frame, position: typeof frame.position });
  const frames = realtime(heading, 'text').split('\n').filter(line => line).map(line => JSON.parse(line.slice(2)
    .replaceAll('676d2c41b1e8a27d9c0f4a15', room)
    .replaceAll('676d2c34b1e8a27d9c0f4a11', USER_ID)
    .replaceAll('676d2c34b1e8a27d9c0f4a12', userId)));
  await until('the frames', () => received.ann.length === 3 && received.bob.length === 2);
  assert.deepEqual([...received.ann, ...received.bob].map(shape), frames.map(shape));

  const conversation = await conversationWith(userId);
  assert.equal((await conversationWith(userId))._id, conversation._id);
  await until('the conversation', () => membersOf(conversation._id) === 2);
  await ask('DELETE', `room/${room}`);
  await until('the end of the room', () => mine.length === 1);
  await away(socket, () => ask('DELETE', `room/${conversation._id}/members/${USER_ID}`));
  await until('what happened while away', () => mine.length === 0);
  assert.equal(await ask('GET', `room/${conversation._id}`), null);
  await assert.rejects(ask('POST', 'direct', { user: 'bob' }), /must be an id/);
  stop();
  for (const ws of sockets) ws.close();
}

// What another user reads and types, and when that one is there, as this page says it.
async function signals() {
  const { markAsRead, followReading } = await run(realtime('What is read'), 'markAsRead', 'followReading');
  const typing = realtime('Who types').split('input.addEventListener');
  const { followTyping } = await run(typing[0], 'followTyping');
  const { watchUsers } = await run(realtime('Who is there'), 'watchUsers');
  const cat = { username: 'cat', password: 'correct horse' };
  const auth = route => fetch(`${server}/api/auth/${route}`, {
    method: 'POST',
    headers: { 'Content-Type': 'application/json' },
    body: JSON.stringify(cat),
  });
  await auth('register');
  const { token, userId } = await (await auth('login')).json();
  const room = await newRoom();
  const { message: { _id: message } } = await say(room, 'read me');

  const frames = [];
  const ws = new Native(`${server.replace('http', 'ws')}/ws?token=${TOKEN}`);
  ws.onmessage = ({ data }) => frames.push(JSON.parse(data));
  await until('open', () => ws.readyState === Native.OPEN);
  ws.send(JSON.stringify({ event: 'joinRoom', data: room, id: 0 }));
  await until('joined', () => frames.length === 1);
  await socket.emitWithAck('joinRoom', room);
  frames.length = 0;
  const [seen, read, typists] = [[], [], []];
  const stops = [
    watchUsers(socket, [userId], (user, online, lastSeen) => seen.push([user, online, lastSeen])),
    followReading(socket, room, (user, id) => read.push([user, id])),
    followTyping(socket, room, names => typists.push(names.join())),
  ];
  await until('watched', () => seen.length === 1);
  ws.send(JSON.stringify({ event: 'watchUsers', data: [userId], id: 1 }));
  await until('watched, too', () => frames.length === 1);

  const { io } = require('socket.io-client');
  const other = io(server, { auth: { token }, forceNew: true });
  await until('there', () => other.connected);
  await until('online', () => seen.length === 2);
  await other.emitWithAck('joinRoom', room);
  // The lines of the page, with an input of its own.
  globalThis.room = room;
  const before = globalThis.socket;
  globalThis.socket = other;
  globalThis.input = new EventTarget();
  await run(typing.slice(1).map(line => `input.addEventListener${line}`).join(''));
  for (let n = 0; n < 3; n += 1) input.dispatchEvent(new Event('input'));
  await until('typing', () => typists.length === 1);
  input.dispatchEvent(new Event('blur'));
  await until('stopped', () => typists.length === 2);
  globalThis.socket = before;
  assert.deepEqual(typists, ['cat', '']);
  markAsRead(other, room, message);
  await until('read', () => read.length === 1);
  assert.deepEqual(read, [[userId, message]]);
  other.disconnect();
  await until('offline', () => seen.length === 3);
  assert.deepEqual(seen.map(([user, online]) => [user, online]), [[userId, false], [userId, true], [userId, false]]);
  assert.ok(Date.now() - new Date(seen[2][2]) < 60_000, 'it was seen a moment ago');
  await until('the frames', () => frames.length === 6);

  const shape = frame => JSON.parse(JSON.stringify(frame), (key, value) =>
    ['lastSeen', 'position'].includes(key) ? typeof value : value);
  const expected = realtime('Who is there', 'text').split('\n').filter(line => line.startsWith('←'))
    .map(line => JSON.parse(line.slice(2)
      .replaceAll('676d2c41b1e8a27d9c0f4a15', room)
      .replaceAll('676d2c34b1e8a27d9c0f4a12', userId)
      .replaceAll('676d2c5fb1e8a27d9c0f4a1b', message)
      .replaceAll('"bob"', '"cat"')));
  assert.deepEqual(frames.map(shape), expected.map(shape));
  for (const stop of stops) stop();
  ws.close();
}

async function historyInPages() {
  const room = await newRoom();
  const contents = Array.from({ length: 120 }, (_, index) => `message ${index}`);
  for (const content of contents) await say(room, content);
  const { catchUp } = await run(realtime('History'), 'catchUp');
  const [known, shown] = [new Set(), []];
  const show = message => { known.add(message._id); shown.push(message.content); };
  await catchUp(room, known, show);
  await shows(shown, ...contents);
  await say(room, 'new');
  await catchUp(room, known, show);
  await shows(shown, ...contents, 'new');
}

// The connection that was opened last.
let opened;
const Native = WebSocket;
globalThis.WebSocket = class extends Native {
  constructor(...all) { super(...all); opened = this; }
};
const cut = async meanwhile => {
  const before = opened;
  before.close();
  await meanwhile();
  await until('back', () => opened !== before && opened.readyState === Native.OPEN);
};

// `update`, `forget` and `history` as `follow` has them; what they were given.
function recorded() {
  const { history } = globalThis;
  const given = { updated: [], forgotten: [], histories: 0, end: () => Object.assign(globalThis, { history }) };
  const known = new Map();
  globalThis.update = message => {
    if (message.deletedAt) return globalThis.forget({ message: message._id });
    if (known.get(message._id) >= message.__v) return;
    known.set(message._id, message.__v);
    given.updated.push(message.content);
  };
  globalThis.forget = ({ message }) => given.forgotten.push(message);
  globalThis.history = room => { given.histories += 1; return history(room); };
  return given;
}

async function webSocket() {
  const room = globalThis.room = await newRoom();
  const given = recorded();
  const { message } = await say(room, 'before');
  localStorage.token = 'expired';
  logins = 0;
  await run(realtime('WebSocket'));
  await shows(given.updated, 'before');
  assert.equal(logins, 1);
  await say(room, 'live');
  await shows(given.updated, 'before', 'live');
  const change = (method, body) => fetch(`${server}/api/chat/message/${message._id}`, { method, headers, body });
  await cut(async () => { await say(room, 'missed'); await change('PATCH', '{"content":"edited"}'); });
  await shows(given.updated, 'before', 'live', 'missed', 'edited');
  await change('DELETE');
  await until('deleted', () => given.forgotten.length === 1);
  assert.deepEqual(given.forgotten, [message._id]);
  await cut(() => say(room, 'last'));
  await shows(given.updated, 'before', 'live', 'missed', 'edited', 'last');
  assert.deepEqual(given.forgotten, [message._id], 'a deletion has a position, too');
  assert.equal(given.histories, 1, 'what was missed came from the server');
  given.end();
}

// The client of this server, in Node and in React.
async function client() {
  const module = JSON.stringify(pathToFileURL(path.join(repository, 'src/client/chat.js')));
  const id = globalThis.id = await newRoom();
  const said = [];
  const { log } = console;
  console.log = text => said.push(text);
  const text = code('docs/client.md', 'In Node, with a bundler, with types').replace("'realtime-chat-client'", module);
  const { chat, room } = await run(text, 'chat', 'room');
  await until('shown', () => said.includes('hello'));
  console.log = log;
  room.close();

  const { useMessages } = await import(pathToFileURL(write(code('docs/client.md', 'React'))));
  const { createElement, StrictMode } = require('react');
  const { act, create } = require('react-test-renderer');
  globalThis.IS_REACT_ACT_ENVIRONMENT = true;
  let shown;
  const Room = ({ id }) => {
    shown = useMessages(chat, id).map(({ content }) => content).join();
    return null;
  };
  const element = id => createElement(StrictMode, null, createElement(Room, { id }));
  const shows = expected => until(`${expected}, not ${shown}`, async () => { await act(() => sleep(50)); return shown === expected; });
  let tree;
  await act(async () => { tree = create(element(id)); });
  await shows('hello');
  await say(id, 'live');
  await shows('hello,live');
  const other = await newRoom();
  await say(other, 'of another room');
  await act(async () => tree.update(element(other)));
  await shows('of another room');
  await act(async () => tree.unmount());
  assert.equal(chat.room(other).isOpen, false);
  chat.disconnect();
}

// The frames of the page, with the ids of here.
async function frames() {
  const room = await newRoom();
  const lines = realtime('WebSocket', 'text').split('\n').map(line => line
    .replaceAll('676d2c41b1e8a27d9c0f4a15', room)
    .replaceAll('676d2c34b1e8a27d9c0f4a11', USER_ID));
  let message = '676d2c5fb1e8a27d9c0f4a1b';
  const ws = new Native(`${server.replace('http', 'ws')}/ws?token=${TOKEN}`);
  const received = [];
  ws.onmessage = ({ data }) => received.push(JSON.parse(data));
  await until('open', () => ws.readyState === Native.OPEN);
  const kind = frame => frame.event ?? JSON.stringify(frame.ack);
  // Ids, times and positions are others each time.
  const shape = frame => JSON.parse(JSON.stringify(frame), (key, value) =>
    ['_id', 'createdAt', 'updatedAt', 'editedAt', 'deletedAt', 'position'].includes(key) ? typeof value : value);
  for (const text of lines) {
    const line = text.replaceAll('676d2c5fb1e8a27d9c0f4a1b', message);
    if (line.startsWith('→ ')) { ws.send(line.slice(2)); continue; }
    assert.ok(line.startsWith('← '), line);
    const expected = JSON.parse(line.slice(2));
    await until(line, () => received.some(frame => kind(frame) === kind(expected)));
    const frame = received.find(frame => kind(frame) === kind(expected));
    assert.equal(JSON.stringify(shape(frame)), JSON.stringify(shape(expected)));
    if (frame.event === 'receiveMessage') message = frame.data._id;
  }
  assert.equal(received.length, lines.filter(line => line.startsWith('←')).length);
  ws.close();
}

async function react() {
  const { useMessages } = await run(realtime('React'), 'useMessages');
  const { createElement, StrictMode } = require('react');
  const { act, create } = require('react-test-renderer');
  globalThis.IS_REACT_ACT_ENVIRONMENT = true;
  const rooms = [await newRoom(), await newRoom()];
  for (const room of rooms) await say(room, `before in ${room}`);
  let shown;
  const Room = ({ room }) => {
    shown = useMessages(socket, room).map(message => message.content).sort();
    return null;
  };
  const element = room => createElement(StrictMode, null, createElement(Room, { room }));
  let tree;
  const handlers = () => socket.listeners('receiveMessage').length;
  const before = handlers();
  // Strict mode runs the effect twice.
  await act(async () => { tree = create(element(rooms[0])); });
  const settled = (...contents) => until(`${contents}, not ${shown}`, async () => {
    await act(() => sleep(50));
    return shown.length >= contents.length;
  }).then(() => assert.deepEqual(shown, contents));
  await settled(`before in ${rooms[0]}`);
  const { message } = await say(rooms[0], 'live');
  await settled(`before in ${rooms[0]}`, 'live');
  await fetch(`${server}/api/chat/message/${message._id}`, { method: 'DELETE', headers });
  await until('removed', async () => { await act(() => sleep(50)); return shown.length === 1; });
  assert.deepEqual(shown, [`before in ${rooms[0]}`]);
  await act(async () => tree.update(element(rooms[1])));
  await say(rooms[0], 'of a room that is not shown');
  await settled(`before in ${rooms[1]}`);
  await act(async () => tree.unmount());
  assert.equal(handlers(), before);
}

async function angular() {
  const { changesOf } = await run(realtime('Angular and RxJS'), 'changesOf');
  const room = await newRoom();
  await say(room, 'before');
  const changes = [];
  const subscription = changesOf(socket, room).subscribe(({ message, removed }) => changes.push(message?.content ?? removed));
  await shows(changes, 'before');
  const { message } = await say(room, 'live');
  await shows(changes, 'before', 'live');
  await fetch(`${server}/api/chat/message/${message._id}`, { method: 'DELETE', headers });
  await shows(changes, 'before', 'live', message._id);
  subscription.unsubscribe();
  await socket.emitWithAck('leaveRoom', room);
  await say(room, 'unheard');
  await sleep(200);
  assert.equal(changes.length, 3);
}

async function vue() {
  const { useMessages } = await run(realtime('Vue'), 'useMessages');
  const { effectScope } = require('vue');
  const room = await newRoom();
  await say(room, 'before');
  const scope = effectScope();
  const messages = scope.run(() => useMessages(socket, room));
  const shown = () => [...messages.values()].map(message => message.content);
  await until('before', () => shown().length === 1);
  const { message } = await say(room, 'live');
  await until('live', () => shown().length === 2);
  assert.deepEqual(shown(), ['before', 'live']);
  await fetch(`${server}/api/chat/message/${message._id}`, { method: 'DELETE', headers });
  await until('removed', () => shown().length === 1);
  scope.stop();
  await socket.emitWithAck('leaveRoom', room);
  await say(room, 'unheard');
  await sleep(200);
  assert.deepEqual(shown(), ['before']);
}

async function olderClient() {
  const { io } = require('older-client');
  const room = globalThis.room = await newRoom();
  const given = recorded();
  const current = globalThis.socket;
  const auth = callback => callback({ token: TOKEN });
  globalThis.socket = io(server, { auth, forceNew: true, autoConnect: false });
  await run(realtime('Older Socket.IO clients'));
  // Once the handlers are there.
  globalThis.socket.connect();
  await until('joined', () => given.histories === 1);
  const { message } = await say(room, 'live');
  await shows(given.updated, 'live');
  // What comes behind the message is there before the answer to this.
  await new Promise(done => globalThis.socket.emit('leaveRoom', '0123456789abcdef01234567', done));
  await away(globalThis.socket, async () => {
    await say(room, 'missed');
    await fetch(`${server}/api/chat/message/${message._id}`, { method: 'DELETE', headers });
  });
  await shows(given.updated, 'live', 'missed');
  await until('deleted', () => given.forgotten.length === 1);
  assert.equal(given.histories, 1);
  globalThis.socket.disconnect();
  globalThis.socket = current;
  given.end();
}

async function argon2() {
  const hashes = [await require('argon2').hash('correct horse'), await require('bcryptjs').hash('correct horse', 4)];
  globalThis.require = require;
  globalThis.bcrypt = require('bcryptjs');
  const { verify } = await run(code('docs/migrating.md', 'Back to Node when bcrypt was forgotten'), 'verify');
  for (const hash of hashes) {
    assert.equal(await verify('correct horse', hash), true);
    assert.equal(await verify('another', hash), false);
  }
}

const scenarios = { renewing, socketIo, privateRooms, signals, historyInPages, webSocket, frames, client, react, angular, vue, olderClient, argon2 };
try {
  for (const [name, scenario] of Object.entries(scenarios)) {
    console.error(name);
    await scenario();
  }
  const runnable = examples.filter(({ page, language }) => page === 'docs/realtime.md' && language !== 'python');
  assert.deepEqual(runnable.filter(({ used }) => !used).map(({ heading }) => heading), []);
  console.log('done');
} catch (error) {
  console.error(error);
  process.exitCode = 1;
} finally {
  fs.rmSync(folder, { recursive: true });
  process.exit();
}
