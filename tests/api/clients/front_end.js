// The module in a browser: the pages of the documentation, and tabs that share a login.
// node front_end.js REPOSITORY
'use strict';
const assert = require('node:assert/strict');
const fs = require('node:fs');
const os = require('node:os');
const path = require('node:path');
const readline = require('node:readline');
const puppeteer = require('puppeteer-core');

const { URL: url, TOKEN: token, USER_ID: ada, ROOM: room, CHROMIUM: executablePath } = process.env;
const [repository] = process.argv.slice(2);
const answers = readline.createInterface({ input: process.stdin });
const restart = () => new Promise(done => { answers.once('line', done); console.log('restart'); });
const folder = fs.mkdtempSync(path.join(os.tmpdir(), 'front-end-'));

const until = (tab, holds, ...values) => tab.waitForFunction(holds, { polling: 50 }, ...values);
const shows = (tab, ...lines) => until(tab, lines => [...document.querySelectorAll('li')].map(item => item.textContent).join('|') === lines, lines.join('|'));
const say = async content => {
  const headers = { 'Content-Type': 'application/json', Authorization: `Bearer ${token}` };
  const body = JSON.stringify({ room, sender: ada, content });
  assert.equal((await fetch(`${url}/api/chat/message`, { method: 'POST', headers, body })).status, 201);
};

async function main() {
  const browser = await puppeteer.launch({ executablePath, headless: true, args: ['--no-sandbox', '--disable-gpu'] });
  try {
    await say('before');
    await pages(browser);
    await tabs(browser);
  } finally {
    await browser.close();
    fs.rmSync(folder, { recursive: true });
  }
  console.log('done');
}

// Saved as a file and opened, as the documentation says.
async function pages(browser) {
  const [readme, guide] = await Promise.all(['README.md', 'docs/client.md'].map(async page => {
    const [, html] = /```html\n([^]*?)```/.exec(fs.readFileSync(path.join(repository, page), 'utf8'));
    assert.ok(html.split('\n').length <= 18, `${page}: ${html}`);
    const file = path.join(folder, `${path.basename(page, '.md')}.html`);
    fs.writeFileSync(file, html.replace('http://localhost:5000', url));
    const context = await browser.createBrowserContext();
    const tab = await context.newPage();
    tab.asked = [];
    tab.on('dialog', dialog => { tab.asked.push(dialog.message()); dialog.accept(`${page} ${tab.asked.length}`); });
    await tab.goto(`file://${file}`);
    await shows(tab, 'ada: before');
    assert.deepEqual(tab.asked, ['Your name?', 'Your password?']);
    return tab;
  }));
  const write = async (tab, text) => {
    await tab.bringToFront();
    await tab.type('#text', text);
    await tab.keyboard.press('Enter');
  };
  await write(readme, 'hello');
  for (const tab of [readme, guide]) await shows(tab, 'ada: before', 'README.md 1: hello');

  // Written while there is no server.
  // Looked at with each change: the server may still be there for a moment.
  const pending = guide.waitForFunction(() => document.body.textContent.includes('offline, sent (pending)'), { polling: 'mutation' });
  const back = restart();
  await new Promise(done => setTimeout(done, 150));
  await write(guide, 'offline, sent');
  await pending;
  await back;
  for (const tab of [readme, guide]) {
    await shows(tab, 'ada: before', 'README.md 1: hello', 'docs/client.md 1: offline, sent');
  }
  // A reload asks for nothing again.
  await guide.reload();
  await shows(guide, 'ada: before', 'README.md 1: hello', 'docs/client.md 1: offline, sent');
  assert.equal(guide.asked.length, 2);
}

// Two tabs with one login: one of them renews the token. A reload with messages that wait.
async function tabs(browser) {
  let exchanges = 0;
  const open = async () => {
    const tab = await browser.newPage();
    tab.on('request', request => { if (request.url().endsWith('refresh-token')) exchanges += 1; });
    tab.load = async work => {
      await tab.goto(`${url}/healthz`);
      await tab.evaluate(async room => {
        const { Chat } = await import('/chat.js');
        window.chat = new Chat();
        window.room = chat.room(room);
      }, room);
      await tab.evaluate(work);
      await until(tab, () => chat.state.state === 'live');
    };
    return tab;
  };
  const [one, two] = [await open(), await open()];
  await one.load(() => chat.register('two tabs', 'correct horse'));
  await one.evaluate(() => {
    const key = `chat ${location.origin}/ login`;
    localStorage.setItem(key, JSON.stringify({ ...JSON.parse(localStorage.getItem(key)), renewAt: 0 }));
  });
  const kept = tab => tab.evaluate(() => localStorage.getItem(`chat ${location.origin}/ login`));
  const before = await kept(one);
  await Promise.all([one.load(() => chat.resume()), two.load(() => chat.resume())]);
  await until(one, before => localStorage.getItem(`chat ${location.origin}/ login`) !== before, before);
  // Both look again every 5 s.
  await new Promise(done => setTimeout(done, 6000));
  assert.equal(exchanges, 1);
  for (const tab of [one, two]) assert.ok(Array.isArray(await tab.evaluate(() => chat.rooms())));

  await one.bringToFront();
  await one.evaluate(() => {
    chat.disconnect();
    for (const text of ['waits, one', 'waits, two']) room.send(text);
  });
  await one.load(() => chat.resume());
  await one.evaluate(() => room.open());
  await until(one, () => room.messages.slice(-2).every(({ state, content }, index) =>
    state === 'stored' && content === ['waits, one', 'waits, two'][index]));
  assert.deepEqual(await one.evaluate(() => Object.keys(localStorage).filter(key => key.includes('outbox'))), []);

  await two.evaluate(() => chat.logout());
  await until(one, () => chat.state.state === 'refused' && chat.user === null);
  assert.equal(await kept(one), null);
}

main().then(() => process.exit(0), error => { console.error(error); process.exit(1); });
