// What wraps socket.io-client hands over a message, not a list: node wrappers.js MODULE
'use strict';
const assert = require('node:assert/strict');
const { setTimeout: sleep } = require('node:timers/promises');
const { fromEvent } = require('rxjs');
const Vue = require('vue');
const VueSocketIO = require('vue-socket.io');

const [name] = process.argv.slice(2);
const { URL: url, TOKEN: token, USER_ID: user, ROOM: room } = process.env;
const { io } = require(name);

const until = async (what, holds) => {
  const deadline = Date.now() + 30_000;
  while (!holds()) {
    assert.ok(Date.now() < deadline, `not in time: ${what}`);
    await sleep(10);
  }
};
const ask = (socket, name, data) => socket.timeout(30_000).emitWithAck(name, data);
const say = async content => {
  const answer = await fetch(`${url}/api/chat/message`, {
    method: 'POST',
    headers: { 'Content-Type': 'application/json', Authorization: `Bearer ${token}` },
    body: JSON.stringify({ room, sender: user, content }),
  });
  assert.equal(answer.status, 201);
};

// Each gives the events of a socket to a function.
const wrappers = {
  rxjs: socket => (name, heard) => fromEvent(socket, name).subscribe(heard),
  vue: socket => {
    const { emitter } = new VueSocketIO({ connection: socket });
    const component = new Vue();
    return (name, heard) => emitter.addListener(name, heard, component);
  },
};

async function live(wrapper, recovery) {
  const auth = { token, ...recovery };
  const socket = io(url, { auth, forceNew: true, reconnectionDelay: 300, reconnectionDelayMax: 300 });
  const [heard, offsets] = [[], []];
  const subscribe = wrappers[wrapper](socket);
  subscribe('receiveMessage', value => heard.push(value));
  subscribe('position', value => offsets.push(value));
  await until('connected', () => socket.connected);
  assert.equal((await ask(socket, 'joinRoom', room)).error, undefined);
  await say('live');
  await until('live', () => heard.length === 1);
  // What comes behind the message is there before the answer to this.
  await ask(socket, 'leaveRoom', '0123456789abcdef01234567');

  socket.io.engine.close();
  await until('away', () => !socket.connected);
  await say('missed');
  await until('back', () => socket.connected);
  let expected = ['live'];
  if (recovery.recovery !== false) {
    // vue-socket.io keeps events from socket.io-client, which has no offset then: what came since
    // the join comes again.
    expected = wrapper === 'vue' ? ['live', 'live', 'missed'] : ['live', 'missed'];
  }
  assert.equal(Boolean(socket.recovered), expected.length > 1);
  await until('missed', () => heard.length === expected.length);
  await ask(socket, 'leaveRoom', '0123456789abcdef01234567');
  socket.disconnect();

  const messages = heard.map(value => {
    assert.equal(Array.isArray(value), recovery.recovery === true);
    return Array.isArray(value) ? value[0] : value;
  });
  assert.deepEqual(messages.map(message => message.content), expected);
  assert.equal(offsets.length > 0, recovery.recovery === undefined);
  assert.ok(offsets.every(offset => typeof offset === 'string'), `${offsets}`);
}

async function main() {
  for (const wrapper of Object.keys(wrappers)) {
    for (const recovery of [{}, { recovery: true }, { recovery: false }]) await live(wrapper, recovery);
  }
  console.log('done');
}

main().then(() => process.exit(0), error => { console.error(error); process.exit(1); });
