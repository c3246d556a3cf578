// The page to try events on. It speaks the protocol of /ws itself, so that every frame is shown.
import { copyable } from '/docs/page.js';

const at = id => document.getElementById(id);
const make = (name, props, ...children) => {
  const element = Object.assign(document.createElement(name), props);
  element.append(...children);
  return element;
};

const examples = await (await fetch('/docs/events.json')).json();

// The ids in the examples, and what this user has in their place.
const PLACES = {
  room: '676d2c41b1e8a27d9c0f4a15',
  user: '676d2c34b1e8a27d9c0f4a11',
  other: '676d2c34b1e8a27d9c0f4a12',
  message: '676d2c5fb1e8a27d9c0f4a1b',
  position: '1735208001.3',
  clientId: '6b1f6c1e-8a3e-4a55-9f0e-1d8f4b0a7c11',
  token: 'TOKEN',
};
const known = {};

function filled(data) {
  let text = JSON.stringify(data);
  for (const [place, example] of Object.entries(PLACES)) {
    const value = place === 'clientId' ? crypto.randomUUID?.() : known[place];
    if (value) text = text.replaceAll(example, value);
  }
  return text;
}

// Examples

const spaced = data => JSON.stringify(data, null, 1).replace(/\n\s*/g, ' ');

const WRITTEN = {
  'socket.io': {
    sent: ({ event, data }) => `socket.emit('${event}', ${spaced(data)}, answer => console.log(answer));`,
    received: ({ event, data }) => `socket.on('${event}', data => console.log(data));\n// ${spaced(data)}`,
  },
  ws: {
    sent: ({ event, data }) => JSON.stringify({ event, data, id: 1 }),
    received: ({ event, data, position }) =>
      event === 'position' ? '// not on /ws: each event has its position' : JSON.stringify({ event, data, position }),
  },
};

// The texts have code between backticks and nothing else.
const prose = text => make('p', {}, ...text.split('`').map((part, index) =>
  index % 2 ? make('code', { textContent: part }) : part));

function draw() {
  for (const side of ['sent', 'received']) {
    at(`${side}-examples`).replaceChildren(...examples[side].map(example => {
      const pre = make('pre', { textContent: WRITTEN[at('protocol').value][side](example) });
      const shown = make('section', {}, make('h4', {}, make('code', { textContent: example.event })), prose(example.about), pre);
      copyable(pre);
      if (side === 'sent') {
        const button = make('button', { type: 'button', textContent: 'Put into the box' });
        button.addEventListener('click', () => { choose(example); at('try').scrollIntoView(); at('data').focus(); });
        shown.append(button);
      }
      return shown;
    }));
  }
}

// What the box was filled with. Somebody who has edited it keeps the edited text.
let suggested;

function choose(example) {
  at('event').value = examples.sent.indexOf(example);
  at('data').value = suggested = filled(example.data);
}

function refill() {
  if (at('data').value === suggested) choose(examples.sent[at('event').value]);
}

at('event').append(...examples.sent.map(({ event, data }, index) =>
  make('option', { value: index, textContent: data.since ? `${event} with since` : event })));
at('event').addEventListener('change', () => choose(examples.sent[at('event').value]));
at('protocol').addEventListener('change', draw);
draw();
choose(examples.sent[0]);

// The login and the rooms

async function request(method, path, body) {
  const answer = await fetch(`/api/${path}`, {
    method,
    headers: { 'Content-Type': 'application/json', ...(known.token && { Authorization: `Bearer ${known.token}` }) },
    body: body && JSON.stringify(body),
  });
  const read = await answer.json();
  if (!answer.ok) throw new Error(read.error);
  return read;
}

// What a form does, with its refusal as a state.
const doing = work => async event => {
  event.preventDefault();
  try {
    await work();
  } catch (error) {
    tell(error.message, true);
  }
};

async function logIn() {
  const credentials = { username: at('username').value, password: at('password').value };
  delete known.token;
  const login = await request('POST', 'auth/login', credentials);
  [known.token, known.user, known.name] = [login.token, login.userId, credentials.username];
  // Without another user, who is online is shown of oneself.
  known.other ??= login.userId;
  await readRooms();
  at('create').disabled = at('room').disabled = false;
  connect();
}

at('login').addEventListener('submit', doing(logIn));
at('register').addEventListener('click', doing(async () => {
  if (!at('login').reportValidity()) return;
  await request('POST', 'auth/register', { username: at('username').value, password: at('password').value });
  await logIn();
}));

async function readRooms(chosen) {
  const rooms = await request('GET', 'chat/rooms');
  at('room').replaceChildren(...rooms.map(({ _id, name }) => make('option', { value: _id, textContent: name ?? _id })));
  if (!rooms.length) at('room').append(make('option', { value: '', textContent: 'none yet' }));
  if (chosen) at('room').value = chosen;
  takeRoom();
}

function takeRoom() {
  known.room = at('room').value;
  refill();
}

at('room').addEventListener('change', takeRoom);
at('rooms').addEventListener('submit', doing(async () => {
  const { room } = await request('POST', 'chat/room', { name: `events-${Date.now().toString(36)}` });
  await readRooms(room._id);
}));

// The connection

let socket;
let lastId = 0;

const connected = () => `Connected as ${known.name}`;

function tell(text, isBad = false) {
  at('state').textContent = text;
  at('state').className = isBad ? 'bad' : '';
}

function connect() {
  socket?.close();
  const opened = new WebSocket(`${location.origin.replace(/^http/, 'ws')}/ws?token=${encodeURIComponent(known.token)}`);
  socket = opened;
  tell('Connecting');
  opened.addEventListener('open', () => { tell(connected()); changed(true); });
  opened.addEventListener('message', ({ data }) => { note(data, 'received'); learn(JSON.parse(data)); });
  opened.addEventListener('close', ({ code, reason }) => {
    if (socket !== opened) return;
    tell(`Closed: ${code} ${reason}`.trim(), code !== 1005);
    changed(false);
  });
}

function changed(isOpen) {
  at('send').disabled = !isOpen;
  at('connection').disabled = false;
  at('connection').textContent = isOpen ? 'Disconnect' : 'Connect';
}

// The newest ids take the places of those in the examples.
function learn({ data, position }) {
  const message = data?.message?._id ?? data?._id ?? (typeof data?.message === 'string' ? data.message : undefined);
  if (message) known.message = message;
  if (position ?? data?.position) known.position = position ?? data.position;
  const user = data?.user?._id ?? data?.user ?? data?.sender;
  if (typeof user === 'string' && user !== known.user) known.other = user;
  refill();
}

// Only the last frames are kept.
const MOST_FRAMES = 200;

function note(text, direction) {
  const arrow = make('span', { className: direction, textContent: direction === 'sent' ? '→ ' : '← ' });
  at('frames').append(make('li', { title: direction }, arrow, text));
  while (at('frames').childElementCount > MOST_FRAMES) at('frames').firstChild.remove();
  at('frames').scrollTop = at('frames').scrollHeight;
}

at('connection').addEventListener('click', () => socket?.readyState === WebSocket.OPEN ? socket.close() : connect());
at('box').addEventListener('submit', doing(async () => {
  const { event } = examples.sent[at('event').value];
  let data;
  try {
    data = JSON.parse(at('data').value);
  } catch (error) {
    throw new Error(`The data is no JSON: ${error.message}`);
  }
  const frame = JSON.stringify({ event, data, id: ++lastId });
  socket.send(frame);
  note(frame, 'sent');
  tell(connected());
}));
