// Two tabs of a real browser: node browser.js FOLDER-FOR-SCREENSHOTS
'use strict';
const assert = require('node:assert/strict');
const path = require('node:path');
const readline = require('node:readline');
const puppeteer = require('puppeteer-core');

const { URL: url, TOKEN: token, ROOM: room, CHROMIUM: executablePath } = process.env;
const answers = readline.createInterface({ input: process.stdin });
const restarted = () => new Promise(done => answers.once('line', done));

// A tab in the background draws nothing, so the time and not the frames must say when to look.
const until = (tab, holds, ...values) => tab.waitForFunction(holds, { polling: 50 }, ...values);

async function main() {
  const browser = await puppeteer.launch({ executablePath, headless: true, args: ['--no-sandbox', '--disable-gpu'] });
  try {
    await socketIo(browser);
    await demo(browser);
    await account(browser);
  } finally {
    await browser.close();
  }
  console.log('done');
}

// A page with the client bundle that the server has, and no build step.
async function socketIo(browser) {
  const tabs = await Promise.all([browser.newPage(), browser.newPage()]);
  for (const tab of tabs) {
    await tab.goto(`${url}/healthz`);
    await tab.addScriptTag({ url: `${url}/socket.io/socket.io.js` });
    await tab.evaluate((token, room) => new Promise((done, failed) => {
      window.received = [];
      window.transports = [];
      window.socket = io({ auth: { token }, reconnectionDelay: 100, reconnectionDelayMax: 400 });
      socket.io.engine.on('upgrade', transport => transports.push(transport.name));
      transports.push(socket.io.engine.transport.name);
      socket.on('receiveMessage', message => received.push(message.content));
      socket.on('connect_error', failed);
      socket.once('connect', () => socket.emit('joinRoom', room, done));
    }), token, room);
    await until(tab, () => transports.length === 2);
    assert.deepEqual(await tab.evaluate(() => transports), ['polling', 'websocket']);
  }
  const say = (tab, content) => tab.evaluate((room, content) => socket.emit('sendMessage', { room, content }), room, content);
  const heard = (tab, count) => until(tab, count => received.length >= count, count);
  await say(tabs[0], 'one');
  await heard(tabs[1], 1);
  await say(tabs[1], 'two');
  await Promise.all(tabs.map(tab => heard(tab, 2)));

  await Promise.all(tabs.map(tab => tab.evaluate(() => {
    window.back = new Promise(done => socket.once('disconnect', () => socket.once('connect', done)));
  })));
  console.log('restart');
  await restarted();
  for (const tab of tabs) {
    await tab.evaluate(() => back);
    assert.equal(await tab.evaluate(() => socket.recovered), true);
  }
  await say(tabs[0], 'three');
  await Promise.all(tabs.map(tab => heard(tab, 3)));
  for (const tab of tabs) {
    assert.deepEqual(await tab.evaluate(() => received), ['one', 'two', 'three']);
    await tab.close();
  }
}

// The page to try the server with.
async function demo(browser) {
  const one = await enter(browser, 'first tab');
  await one.type('#room-name', 'demo room');
  await one.keyboard.press('Enter');
  await until(one, () => document.querySelector('#chat-title').textContent === 'demo room');
  const two = await enter(browser, 'second tab');
  const rooms = () => [...document.querySelectorAll('#rooms button')].map(room => room.textContent);
  assert.ok((await two.evaluate(rooms)).includes('demo room'));
  await two.evaluate(() => [...document.querySelectorAll('#rooms button')].find(room => room.textContent === 'demo room').click());
  await until(two, () => !document.querySelector('#content').disabled);

  const say = async (tab, text) => {
    await tab.bringToFront();
    await tab.type('#content', text);
    await tab.keyboard.press('Enter');
  };
  const shows = (tab, text) =>
    until(tab, text => document.querySelector('#messages').textContent.includes(text), text);
  await say(one, 'hello from the first tab');
  await shows(two, 'hello from the first tab');
  await shows(two, 'first tab, ');
  // Cut, spoken to meanwhile, and back with everything.
  await two.bringToFront();
  await two.click('#cut');
  await until(two, () => document.querySelector('#state').textContent === 'cut by you');
  await say(one, 'said while you were away');
  await shows(one, 'said while you were away');
  await two.bringToFront();
  await shows(two, 'said while you were away');
  await until(two, () => document.querySelector('#recovered').textContent.startsWith('yes'));
  await change(one, two, say, shows);
  const folder = process.argv[2];
  for (const scheme of ['light', 'dark']) {
    await two.emulateMediaFeatures([{ name: 'prefers-color-scheme', value: scheme }]);
    await two.setViewport({ width: 1100, height: 700 });
    await two.screenshot({ path: path.join(folder, `demo-${scheme}.png`) });
  }
  await two.setViewport({ width: 380, height: 800 });
  const overflow = await two.evaluate(() => document.documentElement.scrollWidth - innerWidth);
  assert.ok(overflow <= 0, `the page is ${overflow} pixels too wide for a phone`);
  await two.screenshot({ path: path.join(folder, 'demo-phone.png') });
  for (const tab of [one, two]) assert.deepEqual(tab.errors, []);
}

// Edits and deletes messages of the first tab; the second one sees them live, recovered and reread.
async function change(one, two, say, shows) {
  const press = async (tab, name, text) => {
    await tab.bringToFront();
    await shows(tab, text);
    await tab.evaluate((name, text) => {
      const item = [...document.querySelectorAll('#messages li')].find(item => item.textContent.includes(text));
      item.querySelector(name).focus();
    }, name, text);
    await tab.keyboard.press('Enter');
  };
  const hidesOf = (tab, text) => until(tab, text => !document.documentElement.textContent.includes(text), text);
  const buttons = tab => tab.$$eval('#messages .own', all => all.filter(own => !own.hidden).length);
  const typed = async (tab, text) => {
    await tab.keyboard.down('Control');
    await tab.keyboard.press('a');
    await tab.keyboard.up('Control');
    await tab.keyboard.type(text);
  };
  one.on('dialog', dialog => dialog.accept());
  assert.deepEqual([await buttons(one), await buttons(two)], [2, 0]);

  // Live, by keyboard only. Escape changes nothing, and the focus is where it was.
  await press(one, '.edit', 'hello from the first tab');
  await typed(one, 'never said');
  await one.keyboard.press('Escape');
  assert.equal(await one.evaluate(() => document.activeElement.textContent), 'Edit');
  await press(one, '.edit', 'hello from the first tab');
  await typed(one, 'hello, edited');
  await one.keyboard.press('Enter');
  for (const tab of [one, two]) {
    await shows(tab, 'hello, edited');
    await shows(tab, 'first tab, ');
    await shows(tab, ', edited');
    await hidesOf(tab, 'hello from the first tab');
  }
  assert.equal(await one.evaluate(() => document.activeElement.textContent), 'Edit');
  await say(one, 'a secret');
  await shows(two, 'a secret');
  await press(one, '.delete', 'a secret');
  for (const tab of [one, two]) {
    await shows(tab, 'This message was deleted.');
    await hidesOf(tab, 'a secret');
  }
  assert.equal(await one.evaluate(() => document.activeElement.id), 'content');

  // An edit of an older version keeps what was typed, and may replace the newer one.
  await press(one, '.edit', 'hello, edited');
  await typed(one, 'hello, at last');
  await one.evaluate(async () => {
    const [{ message }] = state.shown.values();
    await ask('editMessage', { message: message._id, content: 'hello, meanwhile' });
  });
  for (const tab of [one, two]) await shows(tab, 'hello, meanwhile');
  await one.keyboard.press('Enter');
  await until(one, () => document.querySelector('#problem').textContent.includes('__v'));
  await one.keyboard.press('Enter');
  for (const tab of [one, two]) await shows(tab, 'hello, at last');

  // While the second tab is away; once it comes back with a position, once with one that says nothing.
  for (const position of [null, 'nonsense']) {
    await say(one, 'to edit');
    await say(one, 'to delete');
    await shows(two, 'to delete');
    await two.bringToFront();
    await two.click('#cut');
    await until(two, () => document.querySelector('#state').textContent === 'cut by you');
    if (position) await two.evaluate(position => state.position = position, position);
    await press(one, '.edit', 'to edit');
    await typed(one, `edited with ${position}`);
    await one.keyboard.press('Enter');
    await press(one, '.delete', 'to delete');
    await say(one, `new with ${position}`);
    await two.bringToFront();
    await shows(two, `new with ${position}`);
    await shows(two, `edited with ${position}`);
    await hidesOf(two, 'to delete');
    const recovered = await two.evaluate(() => document.querySelector('#recovered').textContent);
    assert.ok(recovered.startsWith(position ? 'no' : 'yes'), recovered);
  }
  const lines = tab => tab.$$eval('#messages li', items => items.map(item => item.querySelector('p').textContent));
  assert.deepEqual(await lines(two), await lines(one));
  assert.deepEqual(await lines(two), [
    'hello, at last', 'said while you were away', 'This message was deleted.',
    'edited with null', 'This message was deleted.', 'new with null',
    'edited with nonsense', 'This message was deleted.', 'new with nonsense',
  ]);
  // A tab that comes later shows the same.
  const three = await enter(one.browser(), 'third tab');
  await three.evaluate(() => [...document.querySelectorAll('#rooms button')].find(room => room.textContent === 'demo room').click());
  await shows(three, 'new with nonsense');
  assert.deepEqual(await lines(three), await lines(one));
  await three.close();
}

// A login stays over a reload, gets a new password, and ends on all tabs.
async function account(browser) {
  const tab = await enter(browser, 'fourth tab');
  const connected = tab => until(tab, () => document.querySelector('#state').textContent === 'connected');
  const saved = tab => tab.evaluate(() => JSON.parse(sessionStorage.getItem('chat-demo')));
  await tab.reload();
  await connected(tab);
  assert.match(await tab.$eval('#me', me => me.textContent), /^fourth tab /);
  // Its token is not valid any more, as after an hour.
  const before = await saved(tab);
  await tab.evaluate(() => {
    sessionStorage.setItem('chat-demo', JSON.stringify({ ...JSON.parse(sessionStorage.getItem('chat-demo')), token: 'expired' }));
  });
  await tab.reload();
  await connected(tab);
  assert.notEqual((await saved(tab)).refreshToken, before.refreshToken);

  // Another tab of the same login.
  const other = await browser.newPage();
  await other.goto(`${url}/demo`);
  await other.evaluate(login => sessionStorage.setItem('chat-demo', JSON.stringify(login)), await saved(tab));
  await other.reload();
  await connected(other);
  await tab.bringToFront();
  const token = (await saved(tab)).token;
  await tab.evaluate(() => document.querySelector('details').open = true);
  await tab.type('#old-password', 'correct horse');
  await tab.type('#new-password', 'battery staple');
  await tab.keyboard.press('Enter');
  await until(tab, token => JSON.parse(sessionStorage.getItem('chat-demo'))?.token !== token, token);
  await connected(tab);
  await until(tab, () => document.querySelector('#connections').textContent === '2');
  await tab.click('#log-out');
  for (const left of [tab, other]) {
    await left.bringToFront();
    await until(left, () => !document.querySelector('#enter').hidden && document.querySelector('#app').hidden);
    assert.equal(await saved(left), null);
  }
  assert.deepEqual(tab.errors, []);
}

// A tab with the page, in which somebody new has registered by keyboard.
async function enter(browser, name) {
  const tab = await browser.newPage();
  tab.errors = [];
  tab.on('pageerror', error => tab.errors.push(error.message));
  await tab.goto(`${url}/demo`);
  await tab.bringToFront();
  await tab.focus('#username');
  await tab.keyboard.type(name);
  await tab.keyboard.press('Tab');
  await tab.keyboard.type('correct horse');
  for (let presses = 0; presses < 2; presses += 1) await tab.keyboard.press('Tab');
  await tab.keyboard.press('Enter');
  await until(tab, () => document.querySelector('#state').textContent === 'connected');
  await until(tab, () => document.querySelectorAll('#rooms button').length > 0 || document.activeElement.id === 'room-name');
  return tab;
}

main().then(() => process.exit(0), error => { console.error(error); process.exit(1); });
