// The page to try the server on, in a real browser: node demo.js FOLDER-FOR-SCREENSHOTS [without-presence]
'use strict';
const assert = require('node:assert/strict');
const puppeteer = require('puppeteer-core');
const { look, looks } = require('./look.js');

const { URL: url, TOKEN: token, USER_ID: ada, CHROMIUM: executablePath } = process.env;
const [folder, mode] = process.argv.slice(2);

// A tab in the background draws nothing, so the time and not the frames must say when to look.
const until = (tab, holds, ...values) => tab.waitForFunction(holds, { polling: 50 }, ...values);
const text = (tab, selector) => tab.$eval(selector, element => element.textContent);
const has = (tab, selector, text) => until(tab, (selector, text) =>
  document.querySelector(selector)?.textContent.includes(text), selector, text);
const shows = (tab, text) => has(tab, '#messages', text);
const hides = (tab, text) => until(tab, text => !document.querySelector('#messages').textContent.includes(text), text);
const lines = tab => tab.$$eval('#messages .message .text', all => all.map(({ textContent }) => textContent));
const notes = tab => tab.$$eval('#messages .note', all => all.map(({ textContent }) => textContent));
const isLive = tab => until(tab, () => document.querySelector('#state').textContent === 'connected');
const focused = tab => tab.evaluate(() => document.activeElement.id || document.activeElement.textContent);

async function request(route, body, method = 'POST') {
  const headers = { 'Content-Type': 'application/json', Authorization: `Bearer ${token}` };
  const answer = await fetch(`${url}/api/${route}`, { method, headers, body: body && JSON.stringify(body) });
  assert.ok(answer.ok, `${route}: ${answer.status}`);
  return answer.json();
}
const sayAsAda = (room, content) => request('chat/message', { room, sender: ada, content });

async function say(tab, text) {
  await tab.bringToFront();
  await tab.focus('#content');
  await tab.keyboard.type(text);
  await tab.keyboard.press('Enter');
}

async function choose(tab, name) {
  await tab.bringToFront();
  await until(tab, name => [...document.querySelectorAll('#rooms .name')].some(room => room.textContent === name), name);
  await tab.evaluate(name => [...document.querySelectorAll('#rooms .name')]
    .find(room => room.textContent === name).closest('button').click(), name);
  await until(tab, () => chat.room(location.hash.slice(1)).messages && !document.querySelector('#content').disabled);
}

// Presses a button of the message with this text, by keyboard only.
async function press(tab, button, text) {
  await tab.bringToFront();
  await shows(tab, text);
  await tab.evaluate((button, text) => [...document.querySelectorAll('#messages .message')]
    .find(item => item.textContent.includes(text)).querySelector(button).focus(), button, text);
  await tab.keyboard.press('Enter');
}

async function retype(tab, text) {
  await tab.keyboard.down('Control');
  await tab.keyboard.press('a');
  await tab.keyboard.up('Control');
  await tab.keyboard.type(text);
}

// The connection comes back after what happens meanwhile, also if that takes longer than 5 s.
async function cut(tab, meanwhile) {
  await tab.bringToFront();
  await tab.evaluate(() => {
    window.isOver = false;
    chat.connect = () => { window.isOver = true; };
    document.querySelector('#cut').click();
  });
  await has(tab, '#state', 'cut by you');
  await meanwhile();
  await until(tab, () => window.isOver);
  await tab.evaluate(() => { delete chat.connect; chat.connect(); });
  await isLive(tab);
}

// A tab in which somebody new has registered, by keyboard.
async function enter(browser, name) {
  const tab = await browser.newPage();
  tab.errors = [];
  tab.on('pageerror', error => tab.errors.push(error.message));
  tab.on('dialog', dialog => dialog.accept());
  await tab.setViewport({ width: 1280, height: 800 });
  await tab.goto(`${url}/demo`);
  await tab.bringToFront();
  await tab.focus('#username');
  await tab.keyboard.type(name);
  await tab.keyboard.press('Tab');
  await tab.keyboard.type('correct horse');
  for (let presses = 0; presses < 2; presses += 1) await tab.keyboard.press('Tab');
  await tab.keyboard.press('Enter');
  await isLive(tab);
  return tab;
}

async function main() {
  const browser = await puppeteer.launch({ executablePath, headless: true, args: ['--no-sandbox', '--disable-gpu'] });
  try {
    if (mode === 'without-presence') {
      await withoutPresence(browser);
      console.log('done');
      return;
    }
    const first = await browser.newPage();
    await first.goto(`${url}/demo`);
    await lookAt(first, 'login');
    const height = await first.$eval('#username', field => field.offsetHeight);
    assert.ok(height < 60, `the field for the name is ${height} pixels high`);
    await first.close();
    const [one, two] = [await enter(browser, 'first tab'), await enter(browser, 'second tab')];
    await rooms(one, two);
    await away(one, two);
    await changes(one, two);
    await resync(one, two);
    await reading(one, two);
    await people(one, two);
    await allLooks(two);
    for (const tab of [one, two]) assert.deepEqual(tab.errors, []);
    await account(browser);
  } finally {
    await browser.close();
  }
  console.log('done');
}

// A server with PRESENCE=false refuses to say who is there. That is no problem of the user.
async function withoutPresence(browser) {
  const [one, two] = [await enter(browser, 'first tab'), await enter(browser, 'second tab')];
  await two.type('#person', 'first tab');
  await two.keyboard.press('Enter');
  await has(two, '#chat-title', 'first tab');
  await say(two, 'only for you');
  await choose(one, 'second tab');
  await shows(one, 'only for you');
  for (const tab of [one, two]) {
    await until(tab, () => document.querySelector('#log').textContent.includes('watchUsers'));
    await new Promise(done => setTimeout(done, 500));
    assert.equal(await text(tab, '#problem'), '');
  }
}

// A room shows where it was not made, and who adds it a second time is in it.
async function rooms(one, two) {
  await one.bringToFront();
  await one.type('#room-name', 'demo room');
  await one.keyboard.press('Enter');
  await has(one, '#chat-title', 'demo room');
  await until(one, () => document.activeElement.id === 'content');
  await two.bringToFront();
  await has(two, '#rooms', 'demo room');
  await two.type('#room-name', 'demo room');
  await two.keyboard.press('Enter');
  await has(two, '#chat-title', 'demo room');
  assert.equal(await text(two, '#problem'), '');
  await say(one, 'hello from the first tab');
  await shows(two, 'hello from the first tab');
  await has(two, '#messages .who', 'first tab');
  assert.deepEqual(await two.$$eval('#messages .mine', all => all.length), 0);
  assert.deepEqual(await one.$$eval('#messages .mine', all => all.length), 1);
  assert.equal((await notes(one)).length, 1, 'the day');
  await say(two, 'see https://example.com/a?b=c, and <b>this</b>');
  await shows(one, '<b>this</b>');
  assert.equal(await one.$eval('#messages .text a', link => link.href), 'https://example.com/a?b=c');
  await say(two, '🎉');
  await until(one, () => document.querySelector('#messages .big')?.textContent === '🎉');
}

// Cut off: what is written is shown, what is missed comes, and the chat itself says so.
async function away(one, two) {
  await cut(two, async () => {
    await say(two, 'written while away');
    await shows(two, 'written while away');
    await shows(two, 'sending …');
    assert.match(await text(two, '#state'), /^(cut by you, 1 waiting, back in \d s|offline, 1 waiting)$/);
    await say(one, 'missed, one');
    await say(one, 'missed, two');
    await two.bringToFront();
  });
  await shows(two, 'missed, two');
  await hides(two, 'sending …');
  await has(two, '#recovered', 'yes: 2 missed messages');
  assert.ok((await notes(two)).includes('2 missed messages recovered'), await notes(two));
  await shows(one, 'written while away');
  for (const tab of [one, two]) {
    assert.deepEqual((await lines(tab)).slice(-3), ['missed, one', 'missed, two', 'written while away']);
  }
  // A reload stays logged in, in the same room, with what is being typed.
  await two.type('#content', 'half a sen');
  await two.reload();
  await isLive(two);
  await shows(two, 'missed, two');
  assert.equal(await two.$eval('#content', ({ value }) => value), 'half a sen');
  await two.focus('#content');
  await retype(two, 'a whole sentence');
  await two.keyboard.press('Enter');
  await shows(one, 'a whole sentence');
}

// Edits and deletes in place, live and while the other one is away.
async function changes(one, two) {
  await press(one, '.edit', 'hello from the first tab');
  await retype(one, 'never said');
  await one.keyboard.press('Escape');
  assert.equal(await focused(one), 'Edit');
  await press(one, '.edit', 'hello from the first tab');
  await retype(one, 'hello, edited');
  await one.keyboard.press('Enter');
  for (const tab of [one, two]) {
    await shows(tab, 'hello, edited');
    await hides(tab, 'hello from the first tab');
  }
  await has(two, '#messages .edited', 'edited');
  assert.equal(await focused(one), 'Edit');
  await say(one, 'a secret');
  await shows(two, 'a secret');
  await press(one, '.delete', 'a secret');
  for (const tab of [one, two]) {
    await shows(tab, 'This message was deleted.');
    await hides(tab, 'a secret');
  }
  assert.equal(await focused(one), 'content');

  // An edit of an older version keeps what was typed, and may replace the newer one.
  await press(one, '.edit', 'hello, edited');
  await retype(one, 'hello, at last');
  await one.evaluate(() => {
    const room = chat.room(location.hash.slice(1));
    return room.edit(room.messages[0], 'hello, meanwhile');
  });
  await shows(two, 'hello, meanwhile');
  await one.keyboard.press('Enter');
  await has(one, '#problem', '__v');
  await one.keyboard.press('Enter');
  for (const tab of [one, two]) await shows(tab, 'hello, at last');

  await say(one, 'to edit');
  await say(one, 'to delete');
  await shows(two, 'to delete');
  await cut(two, async () => {
    await press(one, '.edit', 'to edit');
    await retype(one, 'edited meanwhile');
    await one.keyboard.press('Enter');
    await press(one, '.delete', 'to delete');
    await hides(one, 'to delete');
    await two.bringToFront();
  });
  await shows(two, 'edited meanwhile');
  await hides(two, 'to delete');
  assert.deepEqual(await lines(two), await lines(one));

  // What the server refuses stays until it is given up.
  await two.evaluate(() => { chat.room(location.hash.slice(1)).send('x'.repeat(110_000)); });
  await shows(two, 'not sent: ');
  await press(two, '.discard', 'not sent: ');
  await hides(two, 'not sent: ');
}

// More was missed than is kept, and than fits on a page.
async function resync(one, two) {
  const room = await two.evaluate(() => location.hash.slice(1));
  await cut(two, async () => {
    await two.evaluate(room => { chat.room(room).position = 'nonsense'; }, room);
    for (let number = 0; number < 120; number += 1) await sayAsAda(room, `missed ${number}`);
  });
  await shows(two, 'missed 119');
  await until(two, () => [...document.querySelectorAll('.note')].some(note =>
    note.textContent === '120 missed messages read from the history'));
  assert.match(await text(two, '#recovered'), /^no, read from the history/);
  const missed = (await lines(two)).filter(line => line.startsWith('missed ') && !line.includes(','));
  assert.deepEqual(missed, Array.from({ length: 120 }, (_, number) => `missed ${number}`));
  await shows(one, 'missed 119');
}

// Who reads old messages stays there, and reads older ones by scrolling.
async function reading(one, two) {
  const room = await two.evaluate(() => location.hash.slice(1));
  await two.reload();
  await shows(two, 'missed 119');
  assert.ok((await lines(two)).length <= 50);
  await two.bringToFront();
  await two.evaluate(() => { document.querySelector('#messages').scrollTop = 600; });
  await until(two, () => !document.querySelector('#newer').hidden);
  const place = () => two.$eval('#messages', list => list.scrollTop);
  const before = await place();
  await sayAsAda(room, 'new below');
  await has(two, '#newer', '1 new');
  assert.equal(await place(), before);
  const top = await two.evaluate(() => {
    const list = document.querySelector('#messages');
    const first = document.querySelector('#messages .message');
    list.scrollTop = 0;
    return first.dataset.key;
  });
  await until(two, () => document.querySelectorAll('#messages .message').length > 60);
  const shift = await two.evaluate(key => document.querySelector(`[data-key="${key}"]`).getBoundingClientRect().top, top);
  assert.ok(shift > 0 && shift < 400, `what was on top is where it was: ${shift}`);
  await two.click('#newer');
  await until(two, () => document.querySelector('#newer').hidden);
}

// Unread messages, conversations, who is there, who types, and who has read.
async function people(one, two) {
  await two.bringToFront();
  await two.type('#person', 'first tab');
  await two.keyboard.press('Enter');
  await has(two, '#chat-title', 'first tab');
  await until(two, () => document.querySelector('#rooms .dot')?.classList.contains('on'));
  await say(two, 'only for you');
  await one.bringToFront();
  await until(one, () => [...document.querySelectorAll('#rooms button')].some(room =>
    room.textContent.includes('second tab') && room.querySelector('.count')?.textContent === '1'));
  await choose(one, 'second tab');
  await shows(one, 'only for you');
  await until(two, () => document.querySelector('#messages .ticks').textContent === '✓✓');
  await until(one, () => !document.querySelector('#rooms .count'));
  await one.type('#content', 'I am');
  await has(two, '#typists', 'first tab is typing');
  await one.evaluate(() => document.activeElement.blur());
  await until(two, () => document.querySelector('#typists').textContent === '');

  // A private room, and somebody who is added and leaves.
  await one.type('#room-name', 'cellar');
  await one.click('#private');
  await one.focus('#room-name');
  await one.keyboard.press('Enter');
  await has(one, '#chat-title', 'cellar');
  await until(one, () => !document.querySelector('#show-members').hidden);
  await one.click('#show-members');
  await one.type('#member', 'second tab');
  await one.keyboard.press('Enter');
  await has(one, '#members', 'second tab');
  await choose(two, 'cellar');
  await say(two, 'in the cellar');
  await shows(one, 'in the cellar');
  await two.click('#show-members');
  await two.click('#leave');
  await has(two, '#chat-title', 'Choose a room');
  await until(two, () => !document.querySelector('#rooms').textContent.includes('cellar'));
  await until(one, () => !document.querySelector('#members').textContent.includes('second tab'));
  await choose(two, 'demo room');
}

async function allLooks(tab) {
  await tab.bringToFront();
  await looks(tab, async (name, width) => {
    await lookAt(tab, name);
    if (width > 390) return;
    await tab.click('#show-wire');
    await lookAt(tab, `${name}-connection`);
    await tab.click('#show-wire');
    await tab.click('#back');
    await lookAt(tab, `${name}-rooms`);
    await choose(tab, 'demo room');
    await shows(tab, 'new below');
  });
}

const lookAt = (tab, name) => look(tab, folder, `demo-${name}`);

// A login stays over a reload and the end of its token, gets a new password, and ends on both tabs.
async function account(browser) {
  const tab = await enter(browser, 'third tab');
  const saved = tab => tab.evaluate(() => JSON.parse(sessionStorage.getItem(`chat ${location.origin}/ login`)));
  const keep = (tab, login) => tab.evaluate(login =>
    sessionStorage.setItem(`chat ${location.origin}/ login`, JSON.stringify(login)), login);
  const before = await saved(tab);
  await keep(tab, { ...before, token: 'expired' });
  await tab.reload();
  await isLive(tab);
  assert.match(await text(tab, '#me'), /^third tab /);
  assert.notEqual((await saved(tab)).refreshToken, before.refreshToken);

  // A copy of the tab, which has the same refresh token: it gets each next one.
  const copy = await browser.newPage();
  await copy.goto(`${url}/demo`);
  await keep(copy, await saved(tab));
  await copy.reload();
  await isLive(copy);
  await tab.bringToFront();
  const { token } = await saved(tab);
  await tab.evaluate(() => { document.querySelector('details').open = true; });
  await tab.type('#old-password', 'correct horse');
  await tab.type('#new-password', 'battery staple');
  await tab.keyboard.press('Enter');
  await until(tab, token => JSON.parse(sessionStorage.getItem(`chat ${location.origin}/ login`)).token !== token, token);
  await until(copy, token => JSON.parse(sessionStorage.getItem(`chat ${location.origin}/ login`)).token !== token, token);
  assert.deepEqual(await saved(copy), await saved(tab));
  for (const each of [tab, copy]) {
    await isLive(each);
    assert.ok(Array.isArray(await each.evaluate(() => chat.rooms())));
  }
  await tab.click('#log-out');
  for (const left of [tab, copy]) {
    await left.bringToFront();
    await until(left, () => !document.querySelector('#enter').hidden && document.querySelector('#app').hidden);
    assert.equal(await saved(left), null);
  }
  // Somebody else can log in on the same page.
  await tab.bringToFront();
  await tab.$eval('#username', field => { field.value = ''; });
  await tab.type('#username', 'first tab');
  await tab.type('#password', 'correct horse');
  await tab.keyboard.press('Enter');
  await isLive(tab);
  assert.match(await text(tab, '#me'), /^first tab /);
  assert.deepEqual(tab.errors, []);
}

main().then(() => process.exit(0), error => { console.error(error); process.exit(1); });
