// A client of the protocol's old revision: node refused.js MODULE TRANSPORTS
'use strict';
const assert = require('node:assert/strict');
const io = require(process.argv[2]);

fetch(`${process.env.URL}/socket.io/?EIO=3&transport=polling`).then(async answer => {
  assert.equal(answer.status, 400);
  assert.deepEqual(await answer.json(), { code: 5, message: 'Unsupported protocol version' });
  const socket = io(process.env.URL, { transports: [process.argv[3]], reconnection: false });
  socket.once('connect', () => assert.fail('let in'));
  socket.once('connect_error', () => {
    console.log('done');
    process.exit(0);
  });
}).catch(error => { console.error(error); process.exit(1); });
