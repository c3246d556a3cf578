// What every page must look like: nothing too wide, and nothing for axe to find.
'use strict';
const assert = require('node:assert/strict');
const fs = require('node:fs');
const path = require('node:path');

const axe = fs.readFileSync(require.resolve('axe-core/axe.min.js'), 'utf8');

// Takes a screenshot of a tab. `finds` is whether axe looks for obstacles to assistive technology.
async function look(tab, folder, name, { finds = true } = {}) {
  if (folder) await tab.screenshot({ path: path.join(folder, `${name}.png`) });
  const overflow = await tab.evaluate(() => document.documentElement.scrollWidth - innerWidth);
  assert.ok(overflow <= 0, `${name}: the page is ${overflow} pixels too wide`);
  if (!finds) return;
  await tab.evaluate(axe);
  const findings = await tab.evaluate(async () => (await window.axe.run()).violations
    .map(({ id, nodes }) => `${id}: ${nodes.map(({ html, failureSummary }) => `${html} ${failureSummary}`).join('\n')}`));
  assert.deepEqual(findings, [], name);
}

// In light and dark, on a desk and on a phone.
async function looks(tab, at) {
  for (const scheme of ['light', 'dark']) {
    await tab.emulateMediaFeatures([{ name: 'prefers-color-scheme', value: scheme }]);
    for (const [width, height] of [[1280, 800], [390, 844]]) {
      await tab.setViewport({ width, height });
      await at(`${scheme}-${width}`, width);
    }
  }
}

module.exports = { look, looks };
