// A front end that was written with the client of the server, and is broken like every other one:
// node --experimental-websocket app.mjs URL NAME PASSWORD ROOM…
//
// It writes into its rooms until it reads `finish`, and answers `finished` when nothing waits any
// more. At the end of its input it prints what it shows, as JSON: by room, the text and the `__v`
// of each message by `_id`.
import { createInterface } from 'node:readline';
import { Chat } from '../../src/client/chat.js';

const [url, name, password, ...ids] = process.argv.slice(2);
const kept = new Map();
const storage = {
  get length() { return kept.size; },
  key: index => [...kept.keys()][index],
  getItem: key => kept.get(key) ?? null,
  setItem: (key, value) => { kept.set(key, value); },
  removeItem: key => { kept.delete(key); },
};
const pause = ms => new Promise(done => setTimeout(done, ms));
const pick = list => list[Math.floor(Math.random() * list.length)];
async function untilDone(work) {
  for (;;) {
    try {
      return await work();
    } catch (error) {
      console.error(error.code ?? error);
      await pause(500);
    }
  }
}

let isFinishing = false;
const input = createInterface({ input: process.stdin });
input.on('line', () => { isFinishing = true; });
const ended = new Promise(done => input.on('close', done));

const chat = new Chat({ url, storage });
chat.on('error', ({ code, message }) => console.error(name, code, message));
await untilDone(() => chat.login(name, password));
const rooms = ids.map(id => chat.room(id));
for (const room of rooms) {
  for (const event of ['recovered', 'resynced', 'removed']) {
    room.on(event, outcome => console.error(name, room.id, event, outcome.code ?? outcome.missed,
      `shows ${room.messages.length}${room.hasOlder ? ' and has older ones' : ''}`));
  }
}
for (const room of rooms) await untilDone(() => room.open());

let written = 0;
const changes = new Set();
// An edit or a deletion may be refused: the message may have been changed meanwhile.
function change(doing) {
  changes.add(doing);
  doing.catch(() => {}).then(() => changes.delete(doing));
}
while (!isFinishing) {
  const room = pick(rooms);
  const own = room.messages.filter(({ mine, state }) => mine && state === 'stored');
  const chance = Math.random();
  if (chance < 0.6 || !own.length) room.send(`${name} ${++written}`).catch(error => console.error(error.code));
  else if (chance < 0.85) change(room.edit(pick(own), `${name} ${++written}, edited`));
  else change(room.delete(pick(own)));
  await pause(100 + Math.random() * 400);
}
while (chat.waiting || changes.size) await pause(100);
console.log('finished');

await ended;
const isLive = () => ['live', 'recovered', 'resynced'].includes(chat.state.state);
// Live for so long that everything has come.
for (let live = 0; live < 3000; live += 100) {
  if (!isLive()) live = 0;
  await pause(100);
}
const shown = {};
for (const room of rooms) {
  for (let gap; (gap = room.messages.find(({ gapBefore }) => gapBefore));) await untilDone(() => room.fill(gap));
  while (room.hasOlder) await untilDone(() => room.older());
  shown[room.id] = Object.fromEntries(room.messages.map(({ _id, content, state, __v }) => [_id, { content, state, version: __v }]));
}
// All of it: what is not written yet is lost when a process ends itself.
process.stdout.write(`${JSON.stringify(shown)}\n`, () => process.exit(0));
