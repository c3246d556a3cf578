// The pages of documentation that the server shows, in a real browser: node docs.js FOLDER-FOR-SCREENSHOTS
'use strict';
const assert = require('node:assert/strict');
const puppeteer = require('puppeteer-core');
const { look, looks } = require('./look.js');

const { URL: url, CHROMIUM: executablePath } = process.env;
const [folder] = process.argv.slice(2);

const until = (tab, holds, ...values) => tab.waitForFunction(holds, { polling: 50 }, ...values);

async function open(browser, page) {
  const tab = await browser.newPage();
  tab.errors = [];
  tab.on('pageerror', error => tab.errors.push(error.message));
  tab.on('console', message => { if (message.type() === 'error') tab.errors.push(message.text()); });
  tab.on('requestfailed', request => tab.errors.push(`${request.url()} ${request.failure().errorText}`));
  await tab.goto(url + page, { waitUntil: 'networkidle0' });
  return tab;
}

// Swagger UI is not ours, so axe looks at our own pages only.
async function allLooks(tab, name, finds = true) {
  const grounds = new Set();
  await looks(tab, async at => {
    await look(tab, folder, `docs-${name}-${at}`, { finds });
    grounds.add(await tab.evaluate(() => getComputedStyle(document.body).backgroundColor));
  });
  assert.equal(grounds.size, 2, `${name}: light and dark are ${[...grounds]}`);
  assert.deepEqual(tab.errors, [], name);
}

async function operations(browser) {
  const tab = await open(browser, '/docs');
  await tab.waitForSelector('.opblock');
  const methods = await tab.$$eval('.opblock-summary-method', all => all.map(({ textContent }) => textContent));
  assert.ok(methods.includes('GET') && methods.includes('POST') && !methods.includes('HEAD'), methods);
  await allLooks(tab, 'operations', false);
}

async function prose(browser) {
  for (const name of ['realtime', 'client', 'conventions']) {
    await allLooks(await open(browser, `/docs/${name}`), name);
  }
  const tab = await open(browser, '/docs/realtime');
  await browser.defaultBrowserContext().overridePermissions(url, ['clipboard-read', 'clipboard-write', 'clipboard-sanitized-write']);
  await tab.bringToFront();
  const shown = await tab.$eval('.copied pre', pre => pre.textContent);
  await tab.click('.copied button');
  await until(tab, () => document.querySelector('.copied button').textContent === 'Copied');
  assert.equal(await tab.evaluate(() => navigator.clipboard.readText()), shown);
}

// Registers, makes a room, and sends each example as the box has it.
async function events(browser) {
  const tab = await open(browser, '/docs/events');
  await tab.type('#username', 'who tries');
  await tab.type('#password', 'correct horse');
  await tab.click('#register');
  const frames = () => tab.$$eval('#frames li', all => all.map(({ title, lastChild }) => [title, JSON.parse(lastChild.textContent)]));
  const isState = text => until(tab, text => document.querySelector('#state').textContent === text, text);
  await isState('Connected as who tries');
  const lounge = await tab.$eval('#room', ({ value }) => value);
  await tab.click('#create');
  await until(tab, lounge => document.querySelector('#room').value !== lounge, lounge);
  const room = await tab.$eval('#room', ({ value }) => value);

  const names = await tab.$$eval('#event option', all => all.map(({ textContent }) => textContent));
  for (const [index, name] of names.entries()) {
    const before = (await frames()).filter(([, { ack }]) => ack).length;
    await tab.select('#event', String(index));
    await tab.click('#send');
    await until(tab, count => [...document.querySelectorAll('#frames li')]
      .filter(({ lastChild }) => JSON.parse(lastChild.textContent).ack).length > count, before);
    const [, { data }] = (await frames()).filter(([, { ack }]) => ack).at(-1);
    assert.ok(data && !data.error, `${name}: ${JSON.stringify(data)}`);
  }
  const sent = (await frames()).filter(([title]) => title === 'sent').map(([, frame]) => frame);
  assert.ok(sent.every(({ data }) => data.room === undefined || data.room === room), JSON.stringify(sent));
  const told = (await frames()).map(([, { event }]) => event);
  for (const event of ['receiveMessage', 'messageEdited', 'messageDeleted']) assert.ok(told.includes(event), told);

  // What somebody has typed stays, and what is no JSON is said.
  await tab.select('#event', '0');
  await tab.$eval('#data', field => { field.value = '{'; });
  await tab.click('#send');
  await until(tab, () => document.querySelector('#state').className === 'bad');
  assert.equal(await tab.$eval('#data', ({ value }) => value), '{');
  await tab.click('#connection');
  await until(tab, () => document.querySelector('#state').textContent.startsWith('Closed'));
  await tab.click('#connection');
  await isState('Connected as who tries');

  await tab.select('#protocol', 'ws');
  const examples = await tab.$$eval('#sent-examples pre', all => all.map(({ textContent }) => JSON.parse(textContent).event));
  assert.deepEqual(examples, names.map(name => name.split(' ')[0]));
  assert.equal(await tab.$eval('#received-examples', ({ childElementCount }) => childElementCount), 16);
  await allLooks(tab, 'events');
}

async function main() {
  const browser = await puppeteer.launch({ executablePath, headless: true, args: ['--no-sandbox', '--disable-gpu'] });
  try {
    await operations(browser);
    await prose(browser);
    await events(browser);
    console.log('done');
  } finally {
    await browser.close();
  }
}

main().then(() => process.exit(0), error => { console.error(error); process.exit(1); });
