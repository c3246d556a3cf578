// Two tabs of a real browser with socket.io-client: node browser.js
'use strict';
const assert = require('node:assert/strict');
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

main().then(() => process.exit(0), error => { console.error(error); process.exit(1); });
