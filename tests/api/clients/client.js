// One client's whole life: node client.js MODULE TRANSPORTS RECOVERY
// RECOVERY is what `auth` has beside the token: `default` is nothing, else `true` or `false`.
'use strict';
const assert = require('node:assert/strict');
const readline = require('node:readline');

const [name, transports, mode] = process.argv.slice(2);
const { URL: url, TOKEN: token, USER_ID: user, ROOM: room } = process.env;
const { io } = require(name);
const recovery = { default: {}, true: { recovery: true }, false: { recovery: false } }[mode];
const recoversByItself = ['client-4.6', 'client-4.8'].includes(name) && mode !== 'false';

const answers = readline.createInterface({ input: process.stdin });
const restarted = () => new Promise(done => answers.once('line', done));
const within = (what, promise) => Promise.race([
  promise,
  new Promise((_, reject) => setTimeout(() => reject(new Error(`not in time: ${typeof what === 'function' ? what() : what}`)), 30_000).unref()),
]);
const event = (emitter, name) => within(name, new Promise(done => emitter.once(name, done)));
const ask = (socket, name, data) =>
  within(`ack of ${name}`, new Promise(done => socket.emit(name, data, done)));
const options = { transports: transports.split(','), protocols: ['chat.v1', 'chat.v0'], forceNew: true, reconnectionDelay: 100, reconnectionDelayMax: 400 };

async function main() {
  // Refused without a token, in the words of REST.
  const stranger = io(url, { ...options, reconnection: false });
  const refusal = await event(stranger, 'connect_error');
  assert.equal(refusal.message, 'Access denied. No token provided.');
  assert.equal(refusal.data.code, 'token_missing');
  stranger.close();

  // Let in with one, which is asked for anew at every connection.
  const received = [];
  let position;
  const socket = io(url, { ...options, auth: callback => callback({ token, ...recovery }) });
  socket.on('receiveMessage', (message, ...more) => {
    assert.deepEqual(Object.keys(message), ['room', 'sender', 'content', '_id', 'createdAt', 'updatedAt', '__v']);
    received.push(message.content);
    assert.equal(more.length, mode === 'true' ? 1 : 0);
    [position] = mode === 'true' ? more : [position];
  });
  socket.on('position', (offset, ...more) => {
    assert.equal(mode, 'default');
    assert.deepEqual(more, []);
    position = offset;
  });
  socket.on('resync', () => assert.fail('a resync that was not needed'));
  await event(socket, 'connect');
  assert.match(socket.id, /^[A-Za-z0-9_-]{20}$/);

  const joined = await ask(socket, 'joinRoom', room);
  assert.equal(joined.room, room);
  assert.equal(joined.recovered, false);
  assert.match(joined.position, /^\d+\.\d+$/);
  const arrived = count => within(() => `${count} messages, ${received.length} came`, (async () => {
    while (received.length < count) await new Promise(done => setTimeout(done, 10));
  })());

  // With ack and without; errors in both.
  const sent = await ask(socket, 'sendMessage', { room, content: 'with ack' });
  assert.equal(sent.message.sender, user);
  socket.emit('sendMessage', { room, content: 'without ack' });
  await arrived(2);
  const error = event(socket, 'error');
  socket.emit('sendMessage', { room: 'nowhere', content: 'x' });
  assert.equal((await error).event, 'sendMessage');
  const refused = await ask(socket, 'joinRoom', '0123456789abcdef01234567');
  assert.equal(refused.code, 'room_not_found');

  // Anything that can be said, of any length.
  const odd = ['¡ünïcödé! 密码 🔑 \u2028 "quoted" \\ \u0000 \u001e', 'x'.repeat(60 * 1024)];
  for (const content of odd) socket.emit('sendMessage', { room, content });
  await arrived(4);
  assert.deepEqual(received.splice(0), ['with ack', 'without ack', ...odd]);

  // A burst arrives whole and in order.
  const burst = Array.from({ length: 500 }, (_, index) => `burst ${index}`);
  for (const content of burst) socket.emit('sendMessage', { room, content });
  await arrived(burst.length);
  assert.deepEqual(received.splice(0), burst);
  // What comes behind the last message is there before the answer to this.
  await ask(socket, 'leaveRoom', '0123456789abcdef01234567');
  assert.equal(position !== undefined, mode !== 'false');

  // The server is replaced; what another client says meanwhile is not lost.
  const id = socket.id;
  const since = position;
  const disconnected = event(socket, 'disconnect');
  const back = new Promise(done => disconnected.then(() => socket.once('connect', done)));
  // While this client is away, somebody else speaks: it must have a gap to recover.
  socket.io.opts.reconnectionDelay = 100;
  console.log('restart');
  await within('disconnect', disconnected);
  await within('restart', restarted());
  const rest = await fetch(`${url}/api/chat/message`, {
    method: 'POST',
    headers: { 'Content-Type': 'application/json', Authorization: `Bearer ${token}` },
    body: JSON.stringify({ room, sender: user, content: 'meanwhile' }),
  });
  assert.equal(rest.status, 201);
  await within('reconnection', back);
  if (recoversByItself) {
    assert.equal(socket.recovered, true);
    assert.equal(socket.id, id);
  } else if (since === undefined) {
    assert.ok(!socket.recovered);
    assert.equal((await ask(socket, 'joinRoom', room)).recovered, false);
  } else {
    const rejoined = await ask(socket, 'joinRoom', { room, since });
    assert.equal(rejoined.recovered, true);
    assert.equal(rejoined.position, since);
  }
  socket.emit('sendMessage', { room, content: 'afterwards' });
  await within('the last message', (async () => {
    while (received.at(-1) !== 'afterwards') await new Promise(done => setTimeout(done, 10));
  })());
  const heard = received.splice(0);
  // A join without a position can be ahead of the change stream, which then brings both.
  if (since === undefined && heard.length === 2) assert.equal(heard.shift(), 'meanwhile');
  assert.deepEqual(heard, since === undefined ? ['afterwards'] : ['meanwhile', 'afterwards']);

  // Out of the room, and out.
  assert.deepEqual(await ask(socket, 'leaveRoom', room), { room });
  await ask(socket, 'sendMessage', { room, content: 'unheard' });
  await new Promise(done => setTimeout(done, 200));
  assert.deepEqual(received, []);
  const farewell = event(socket, 'disconnect');
  socket.disconnect();
  assert.equal(await farewell, 'io client disconnect');
  console.log('done');
}

main().then(() => process.exit(0), error => { console.error(error); process.exit(1); });
