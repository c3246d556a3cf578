// Records what a Node server with the original's packages answers for documents of every kind:
// messages.jsonl, rooms.jsonl and users.jsonl, which tests/api/documents.rs replays.
//
//   (cd benches/node && npm ci)
//   MONGO_URI=mongodb://127.0.0.1:27017 node tests/documents/record.js
//
// A line of messages.jsonl and rooms.jsonl is a document and the JSON that the server answers for
// it; `null` when it answered 500 instead of a list. A line of users.jsonl is a user and the
// `sender` of a message from that user. Documents are extended JSON, or the bytes of the document
// in base64 where that cannot hold them (fields that occur twice, text that is no UTF-8).
// Lines are in the order of `_id`. Everything is made from one seed. Dates are read and printed in
// UTC, as on any server whose time zone is UTC.
//
// Documents are sent as they are, without a driver, which would refuse some of them.

const fs = require("node:fs");
const net = require("node:net");
const path = require("node:path");
const { spawn } = require("node:child_process");

const PEER = path.resolve(process.env.PEER ?? path.join(__dirname, "../../benches/node"));
const packages = (name) => require(require.resolve(name, { paths: [PEER] }));
const { MongoClient, BSON } = packages("mongodb");
const jwt = packages("jsonwebtoken");

const URI = new URL(process.env.MONGO_URI ?? "mongodb://127.0.0.1:27017");
const DATABASE = "recordedDocuments";
const SECRET = "a secret of the recorder, which nobody else uses";
const PORT = 5999;

// ---------------------------------------------------------------------------------------------
// BSON, element by element.

/** A value whose bytes are given: its type and what follows its name. */
class Raw {
  constructor(type, bytes) {
    Object.assign(this, { type, bytes });
  }
}
/** A document of fields in this order, also such as no JavaScript object can hold. */
class Fields {
  constructor(...fields) {
    this.fields = fields;
  }
}
const fields = (...of) => new Fields(...of);

const int32 = (value) => {
  const bytes = Buffer.alloc(4);
  bytes.writeInt32LE(value);
  return bytes;
};
const cstring = (text) => Buffer.concat([Buffer.isBuffer(text) ? text : Buffer.from(text), Buffer.of(0)]);
const string = (text) => {
  const bytes = cstring(text);
  return Buffer.concat([int32(bytes.length), bytes]);
};

function encode(value) {
  if (value instanceof Fields) return new Raw(3, document(value));
  if (value instanceof Raw) return value;
  if (Array.isArray(value)) {
    return new Raw(4, document(fields(...value.map((item, index) => [String(index), item]))));
  }
  if (value !== null && typeof value === "object" && Object.getPrototypeOf(value) === Object.prototype) {
    return encode(fields(...Object.entries(value)));
  }
  const bytes = Buffer.from(BSON.serialize({ "": value }));
  return new Raw(bytes[4], bytes.subarray(6, -1));
}

function document({ fields }) {
  const elements = fields.map(([name, value]) => {
    const { type, bytes } = encode(value);
    return Buffer.concat([Buffer.of(type), cstring(name), bytes]);
  });
  const bytes = Buffer.concat(elements);
  return Buffer.concat([int32(bytes.length + 5), bytes, Buffer.of(0)]);
}

const UNDEFINED = new Raw(0x06, Buffer.alloc(0));
const NOT_UTF8 = new Raw(0x02, string(Buffer.of(0x61, 0xff, 0xc3, 0x28, 0xed, 0xa0, 0xbd, 0xf0, 0x9f, 0x7a)));
const pointer = (collection, id) => new Raw(0x0c, Buffer.concat([string(collection), Buffer.from(id, "hex")]));
const regex = (source, flags) => new Raw(0x0b, Buffer.concat([cstring(source), cstring(flags)]));
const millis = (value) => {
  const bytes = Buffer.alloc(8);
  bytes.writeBigInt64LE(BigInt(value));
  return new Raw(0x09, bytes);
};

// ---------------------------------------------------------------------------------------------
// Chance, the same each time.

let state = 20260102;
/** A whole number from 0, less than `below`. */
const chance = (below) => {
  state = (Math.imul(state, 1664525) + 1013904223) >>> 0;
  return Math.floor((state / 2 ** 32) * below);
};
const pick = (list) => list[chance(list.length)];

let ids = 0;
const freshId = () => new BSON.ObjectId(`65a0b1c2${(0xd0000000 + ids++).toString(16)}00000001`.slice(0, 24));

const ROOM = new BSON.ObjectId("65a0b1c2d3e4f5a6b7c8d9e0");
const ANN = new BSON.ObjectId("65a0b1c2d3e4f5a6b7c8d9e1");
const NUMBERED = new BSON.ObjectId("65a0b1c2d3e4f5a6b7c8d9e2");
const NAMELESS = new BSON.ObjectId("65a0b1c2d3e4f5a6b7c8d9e3");
const GONE = new BSON.ObjectId("65a0b1c2d3e4f5a6b7c8d9e4");
/** A user whose `_id` reads as a number. */
const DIGITS = new BSON.ObjectId("000000000000000000000042");
const AT = new Date("2024-01-11T22:33:44.555Z");

const SENDERS = [
  fields(["_id", ANN], ["username", "ann"], ["password", "$2a$10$x"], ["email", "ann@example.org"]),
  fields(["username", 42.5], ["_id", NUMBERED]),
  fields(["_id", NAMELESS]),
  fields(["_id", DIGITS], ["username", "digits"]),
  fields(["_id", "text-id"], ["username", "has a text for an id"]),
  fields(["_id", ANN.toHexString()], ["username", "has the hex of ann for an id"]),
];

// ---------------------------------------------------------------------------------------------
// Values of every type.

const binary = (bytes, type) => new BSON.Binary(Buffer.from(bytes), type);
const decimal = (text) => BSON.Decimal128.fromString(text);
const long = (text) => BSON.Long.fromString(text);

const SCALARS = [
  null, true, false,
  "", "text", "5", " 5 ", "0x1f", "1e3", "-0", "Infinity", "NaN", "null", "12345678901234567890", "1_000", ".5", "5.", "0b101", "0o17", "+7", "1e400", "\u00a07\ufeff",
  "\"quoted\\\" \b\f\n\r\t\u0000\u001f\u007f\u2028\u2029 ä 😀 </script>",
  ANN.toHexString(), ANN.toHexString().toUpperCase(), GONE.toHexString(), "123456789012", "65a0b1c2d3e4f5a6b7c8d9g1", ` ${ANN.toHexString()}`,
  new BSON.Int32(0), new BSON.Int32(5), new BSON.Int32(-2147483648), new BSON.Int32(2024),
  new BSON.Double(1.5), new BSON.Double(-0), new BSON.Double(NaN), new BSON.Double(Infinity), new BSON.Double(-Infinity),
  new BSON.Double(1e21), new BSON.Double(1e-7), new BSON.Double(123456789012345680000), new BSON.Double(5e-324), new BSON.Double(1.7976931348623157e308),
  new BSON.Double(0.1), new BSON.Double(1704067200000), new BSON.Double(1704067200000.7), new BSON.Double(-1.5), new BSON.Double(8.64e15), new BSON.Double(8.64e15 + 2), new BSON.Double(275761), new BSON.Double(100),
  long("5"), long("9007199254740991"), long("-9007199254740991"), long("9007199254740992"), long("9007199254740993"), long("9223372036854775807"), long("-9223372036854775808"), long("1704067200000"),
  ...["0", "-0", "1.50", "1E+3", "1E-7", "1E-6", "0.000001", "NaN", "Infinity", "-Infinity", "9.999999999999999999999999999999999E+6144", "1E-6176", "-12345678901234567890.12345678901234", "0E+10", "0E-10", "2024", "100E+2", "1.0E+34"].map(decimal),
  AT, millis(0), millis(-1), millis(-62167219200000), millis(-62167219200001), millis("253402300799999"), millis("253402300800000"), millis("8640000000000000"), millis("8640000000000001"), millis("-8640000000000000"), millis("-8640000000000001"), millis("9223372036854775807"), millis("-9223372036854775808"), millis(951782400000),
  ANN, NUMBERED, NAMELESS, GONE, DIGITS, new BSON.ObjectId("000000000000000000000000"), new BSON.ObjectId("ffffffffffffffffffffffff"), new BSON.ObjectId("1e0000000000000000000005"), new BSON.ObjectId("202401110000000000000000"),
  binary("bytes"), binary(""), binary("5"), binary([0xff, 0xfe, 0x00, 0xc3, 0x28]), binary("2024-01-11"), binary("12"), binary("function", 1),
  binary("old bytes", 2), binary("0123456789abcdef", 3), new BSON.UUID("11111111-2222-4333-8444-555555555555").toBinary(), binary("short", 4), binary("0123456789abcdef", 4),
  binary("0123456789abcdef", 5), binary("sealed", 6), binary("column", 7), binary("sensitive", 8), binary([0x27, 0, 0, 0, 128, 63], 9), binary("user", 128), binary(ANN.id), binary(ANN.toHexString()),
  regex("^a/b\\/c[/]$", "im"), regex("", ""), regex("x", "s"), regex("x", "ims"), regex("x", "lux"), regex("a\nb", "i"), regex("(", ""), regex("x", "mm"),
  new BSON.Timestamp({ t: 1704067200, i: 1 }), new BSON.Timestamp({ t: 0, i: 5 }), new BSON.Timestamp({ t: 4294967295, i: 4294967295 }),
  new BSON.MinKey(), new BSON.MaxKey(), UNDEFINED,
  new BSON.BSONSymbol("symbol"), new BSON.BSONSymbol("5"), new BSON.BSONSymbol(ANN.toHexString()), new BSON.BSONSymbol("2024-01-11"),
  new BSON.Code("function () { return 1 }"), new BSON.Code("x", { x: 1, e: {}, u: null, l: long("9007199254740993"), d: AT }),
  pointer("users", ANN.toHexString()), NOT_UTF8,
];

const COMPOUNDS = [
  {}, { a: {} }, { a: { b: {} }, c: 1 }, { a: 1, b: "x", c: null, d: [], e: {}, f: [{}], g: [[]], h: [[{}, { i: {} }]] },
  [], [[]], [{}], [null], ["text"], ["5"], [5], [5, 6], ["a", "b"], [ANN], [ANN.toHexString()], [ANN, GONE], [[ANN]], ["2024-01-11"], [2024, 1], [["5"]],
  [UNDEFINED, 1, new BSON.Double(NaN), { a: UNDEFINED }, regex("x", ""), new BSON.MinKey(), long("9007199254740993"), AT, binary("x"), decimal("1.0")],
  { a: UNDEFINED }, { a: UNDEFINED, b: { c: UNDEFINED } }, { m: new BSON.MinKey(), x: new BSON.MaxKey(), r: regex("x", "i") },
  { _id: "x" }, { _id: "" }, { _id: 5 }, { _id: null }, { _id: ANN }, { _id: GONE }, { _id: NUMBERED, username: "sent" }, { _id: ANN.toHexString() }, { _id: [ANN] }, { _id: { _id: ANN } }, { _id: [ANN.toHexString()] }, { _id: AT }, { _id: UNDEFINED }, { _id: "2024-01-11" },
  { _id: ANN, username: "another name", password: "secret", email: "x" }, { username: "no id" }, { username: "no id", _id: "short" }, { id: ANN },
  { valueOf: 5 }, { toString: "x" }, { toString: null }, { hasOwnProperty: 1, after: 2 }, { toJSON: 1, then: 2 }, { length: 3, 0: "a" },
  fields(["b", 1], ["a", 2], ["10", 3], ["9", 4], ["01", 5], ["-1", 6], ["4294967295", 7], ["4294967294", 8], ["1.5", 9]),
  fields(["twice", 1], ["once", 2], ["twice", 3]), fields(["__proto__", { x: 1 }], ["a", 1]), fields(["constructor", "x"], ["prototype", "y"], ["a", {}]),
  [fields(["__proto__", { x: 1 }], ["a", 1])], [fields(["prototype", "y"], ["a", {}], ["b", [{}]])],
  new BSON.DBRef("users", ANN), new BSON.DBRef("users", ANN, "other", { extra: 1, e: {} }), { $ref: "users", $id: 5 }, { $id: 5, $ref: "users", x: 1 }, { $ref: 5, $id: 5 }, { $ref: "users" }, { $ref: "users", $id: null }, { $ref: "users", $id: 1, $other: 2 }, { $ref: "users", $id: 1, $db: 5 },
  [new BSON.DBRef("users", ANN)], { in: new BSON.DBRef("users", GONE) },
  { "a.b": 1, "a..b": { c: {} }, "": 2, $x: 3 }, { 0: { 1: { 2: {} } } }, { 0: 1 }, { a: { 0: { x: 1 } } }, { a: [{ 0: [] }] },
  { deep: { l: long("9223372036854775807"), d: decimal("1.10"), t: new BSON.Timestamp({ t: 1, i: 2 }), b: binary("b"), u: new BSON.UUID("11111111-2222-4333-8444-555555555555"), c: new BSON.Code("c"), cs: new BSON.Code("c", { s: {} }), o: ANN, w: AT, p: pointer("rooms", GONE.toHexString()), n: new BSON.Double(-0), bad: millis("8640000000000001"), symbol: new BSON.BSONSymbol("s") } },
  { _bsontype: "ObjectId", id: "x" }, { _bsontype: "Double", value: 7 }, { _bsontype: "Long", low: 1 }, [{ _bsontype: "Double", value: 7 }], { _bsontype: "Double" },
  [{ constructor: "x", a: {} }], [{ constructor: null, a: {} }],
];

/** Texts that people and programs store as dates. */
const DATES = [
  "2024-01-11T22:33:44.555Z", "2024-01-11T22:33:44Z", "2024-01-11T22:33Z", "2024-01-11T22:33:44.5Z", "2024-01-11T22:33:44.123456789Z", "2024-01-11T22:33:44.555+02:00", "2024-01-11T22:33:44-0530", "2024-01-11T22:33:44",
  "2024-01-11", "2024-01", "2024", "2024-01-11 22:33:44", "2024-01-11 22:33:44.555", "2024-01-11 22:33", "2024-01-11 22:33:44Z", "2024-01-11 22:33:44 UTC", "2024-01-11 22:33:44+00:00", "2024-01-11 22:33:44.123456+00", "2024-01-11 22:33:44 +0200", "2024-01-11t22:33:44z", "2024-1-1", "2024-1-11 2:03", "2024-13-01", "2024-02-30", "2024-02-31T00:00:00Z", "2024-01-32", "2023-02-29", "2024-01-11T24:00:00Z", "2024-01-11T24:00:01Z", "2024-01-11T25:00:00Z", "2024-01-11T22:60:00Z", "2024-01-11T22:33:60Z", "2024-00-10", "2024-01-00",
  "Thu Jan 11 2024 22:33:44 GMT+0000 (Coordinated Universal Time)", "Thu Jan 11 2024 22:33:44 GMT+0100 (CET)", "Thu, 11 Jan 2024 22:33:44 GMT", "11 Jan 2024 22:33:44 +0000", "Jan 11, 2024", "January 11, 2024 10:33 PM", "11 January 2024", "Jan 2024", "Thursday", "Thu Jan 11 2024", "Thu Jan 11 22:33:44 2024", "Thu Jan 11 22:33:44 UTC 2024", "11-Jan-2024", "Jan-11-2024", "2024 Jan 11", "2024Jan11", "janvier 11 2024", "Jan 11 2024 EST", "Jan 11 2024 22:33 PDT", "Jan 11 2024 22:33 GMT-8", "Jan 11 2024 22:33 UTC+5:30", "Jan 11 2024 22:33 Z", "Jan 11 2024 22:33 +05:30", "Jan 11 2024 22:33 -0000", "Jan 11 2024 22:33 CEST",
  "1/11/2024", "01/11/2024", "1/11/2024, 10:33:44 PM", "1/11/2024 10:33:44 pm", "01/11/2024 22:33", "1/11/24", "1/11/49", "1/11/50", "1/11/99", "13/01/2024", "2024/01/11", "2024/1/11 22:33:44", "11.01.2024", "11.1.2024, 22:33:44", "1.11", "11/2024", "1/11", "12:30", "12:30 AM", "12 PM", "1/11/2024 12 AM", "1/11/2024 12:00 AM", "1/11/2024 12:30 PM", "1/11/2024 13:30 PM", "1/11/2024 0:30 AM", "1/11/2024 24:00", "1/11/2024 24:00:01", "1/11/2024 25:00", "1/11/2024 22:33:44:5", "1/11/2024 22:33:44.5", "1/11/2024 22:33:44,5", "1/11/2024 22.33",
  "1704067200", "1704067200000", "1704067200000.5", "-1704067200000", "-271820", "-271821", "275760", "275761", "1e12", "0", "1", "12", "13", "31", "32", "49", "50", "99", "100", "999", "1970", "20240111", "20240111T223344Z", "+002024-01-11T22:33:44Z", "-000001-01-01T00:00:00Z", "-000000-01-01T00:00:00Z", "+275760-09-13T00:00:00.000Z", "+275760-09-13T00:00:00.001Z", "-271821-04-20T00:00:00.000Z", "+010000-01-01", "12024-01-11",
  "now", "today", "yesterday", "null", "undefined", "[object Object]", "Invalid Date", "(comment) Jan 11 2024", "Jan 11 2024 (a (nested) comment) 22:33", "Jan 11 2024 (open", "Jan 11 2024)", "hello 2024", "hello world", "message 5", "2024 hello", "ID-5", "5 Jan", "a1", "1a", "T22:33", "Jan 11 2024 T22:33", "2024-01-11T", "2024-01-11T22", "2024-01-11Z", "2024-01-11T22:33:44.Z", "2024-01-11T22:33:44,555Z", "2024-W02-4", "2024-011", " 2024-01-11 ", "\t2024-01-11\n", "2024-01-11T22:33:44.555Z ", "2024-01-11T22:33:44.555ZZ", "2024-01-11T22:33:44.555 Z", "2024–01–11", "２０２４-01-11", "Jan 11 2024\u00a022:33", "Jan 11 2024\u202f10:33 PM", "2024-01-11T22:33:44+1", "2024-01-11T22:33:44+0100x", "2024-01-11T22:33:44+24:00", "2024-01-11T22:33:44+99:99", "Jan 11 2024 22:33 +9999999999", "99999999999999999999", "Jan 99999999999 2024", "1/2/3/4", "1-2-3", "1-2-3-4", "--1", "-1", "-5", "+5", "2024-01-11-", "11 12 13", "2024 1 11", "2024.1.11", "2024,1,11", "2024;1;11", "Sept 11 2024", "Sep 11 2024", "Septembre 11 2024", "june 2024", "Mai 5 2024", "2024-Jan-11", "Jan 11 2024 at 5:00", "11th Jan 2024", "Jan 0 2024", "Jan 11 0", "60\u2028", "60\u0085", "Jan 11 2024 22:33\n", "Jan 11 2024 22:33\u2029", "0/11/2024", "1/0/2024", "65a0b1c2d3e4f5a6b7c8d9e1",
];

// ---------------------------------------------------------------------------------------------
// Documents.

const STAMPS = [["createdAt", AT], ["updatedAt", AT], ["__v", 0]];
const MISSING = Symbol("missing");

/** The fields of an ordinary document with one of them replaced or left out. */
function changed(ordinary, field, value) {
  if (!ordinary.some(([name]) => name === field)) return fields(...ordinary, [field, value]);
  const replaced = ordinary.map(([name, old]) => [name, name === field ? value : old]);
  return fields(...replaced.filter(([, value]) => value !== MISSING));
}

function shuffle(list) {
  for (let last = list.length - 1; last > 0; last--) {
    const other = chance(last + 1);
    [list[last], list[other]] = [list[other], list[last]];
  }
  return list;
}

const VALUES = [...SCALARS, ...COMPOUNDS];
const EXTRA = ["topic", "edited", "attachments", "members", "0", "7", "a.b", "content.0", "sender._id", "createdAt.x", "$set", "", "id", "isNew", "errors", "toString", "constructor", "prototype", "__proto__", "_doc", "save", "schema", "collection", "toJSON", "hasOwnProperty", "populated", "ü"];

/**
 * Documents that differ from ordinary ones: in one field, with few others beside it, and in many.
 * Of `values` each field has all types; `dates` have the texts, too.
 */
function* documents({ ordinary, few, values, dates, extra, random }) {
  yield fields(...ordinary());
  yield fields(...ordinary().reverse());
  for (const [name] of ordinary().slice(1)) yield changed(ordinary(), name, MISSING);
  for (const name of values) for (const value of VALUES) yield changed(few(), name, value);
  for (const name of dates) for (const text of DATES) yield changed(few(), name, text);
  for (const name of EXTRA) {
    for (const value of extra) {
      yield fields([name, value], ...few());
      yield fields(...few(), [name, value], ["content", "behind"]);
    }
  }
  // Dates that only an otherwise ordinary document has.
  for (const value of SCALARS) {
    if (value instanceof Raw && value.type === 9) yield changed(ordinary(), "updatedAt", value);
  }
  yield fields(...ordinary(), ...ordinary().slice(1));
  yield fields(...ordinary(), ["extra", 1], ["extra", { b: 2 }], ["content", "second"], ["name", "second"]);
  for (let count = 0; count < random; count++) {
    let list = ordinary().map(([name, value]) => [name, chance(3) ? value : pick(VALUES)]);
    list = list.filter(([name]) => name === "_id" || chance(12));
    for (let more = chance(3); more > 0; more--) list.push([pick(EXTRA.slice(0, 9)), pick(VALUES)]);
    yield fields(...(chance(2) ? shuffle(list) : list));
  }
}

/** Documents that a history of `ROOM` can find: their room is that one, or an array with it. */
function* messages() {
  const few = () => [["_id", freshId()], ["room", ROOM]];
  const ordinary = () => [...few(), ["sender", ANN], ["content", "hello"], ...STAMPS];
  const rooms = [[ROOM], [ROOM, ANN], [ROOM, ROOM], ["", ROOM], [ROOM, null], [[ROOM], ROOM], [ROOM, { a: 1 }]];
  for (const room of rooms) yield changed(ordinary(), "room", room);
  const values = ["_id", "sender", "content", "createdAt", "__v", "extra"];
  const extra = ["x", null, { a: 1, b: {} }, [{}]];
  const made = documents({ ordinary, few, values, dates: ["createdAt"], extra, random: 400 });
  for (const { fields: list } of made) {
    if (list.some(([name]) => name === "room")) {
      yield fields(...list.map(([name, value]) => [name, name === "room" ? ROOM : value]));
    } else {
      yield fields(...list, ["room", ROOM]);
    }
  }
}

function* rooms() {
  let names = 0;
  const few = () => [["_id", freshId()], ["name", `room ${names++}`]];
  const ordinary = () => [...few(), ...STAMPS];
  yield* documents({ ordinary, few, values: ["_id", "name"], dates: [], extra: [{ a: 1, b: {} }], random: 200 });
}

function* users() {
  const few = () => [["_id", freshId()], ["username", "bob"]];
  yield fields(...few(), ["password", "x"], ...STAMPS);
  yield fields(["extra", 1], ...STAMPS, ...few().reverse());
  for (const value of [MISSING, ...VALUES]) yield changed(few(), "username", value);
}

// ---------------------------------------------------------------------------------------------
// MongoDB's wire protocol: one command, one reply.

class Wire {
  constructor(host, port) {
    this.socket = net.connect(port, host);
    this.read = Buffer.alloc(0);
    this.socket.on("data", (bytes) => {
      this.read = Buffer.concat([this.read, bytes]);
      if (this.read.length < 4 || this.read.length < this.read.readInt32LE(0)) return;
      const reply = this.read.subarray(21, this.read.readInt32LE(0));
      this.read = this.read.subarray(this.read.readInt32LE(0));
      this.answered(BSON.deserialize(reply));
    });
  }

  command(command) {
    const body = Buffer.concat([int32(0), Buffer.of(0), document(command)]);
    this.socket.write(Buffer.concat([int32(body.length + 16), int32(1), int32(0), int32(2013), body]));
    return new Promise((resolve) => (this.answered = resolve));
  }

  /** Stores one document; false when MongoDB refuses it. */
  async insert(collection, bytes) {
    const reply = await this.command(fields(
      ["insert", collection], ["documents", [new Raw(3, bytes)]], ["$db", DATABASE],
    ));
    return reply.ok === 1 && reply.n === 1;
  }
}

// ---------------------------------------------------------------------------------------------
// The server, and the items of its lists as it wrote them.

const token = () => jwt.sign({ id: ANN.toHexString() }, SECRET, { expiresIn: "1h" });

async function startPeer() {
  const uri = `mongodb://${URI.host}/${DATABASE}?directConnection=true`;
  const env = { ...process.env, TZ: "UTC", PORT, MONGO_URI: uri, JWT_SECRET: SECRET };
  const peer = spawn("node", [path.join(PEER, "server.js")], { env, stdio: "inherit" });
  for (;;) {
    const up = await fetch(`http://127.0.0.1:${PORT}/`).then(() => true, () => false);
    if (up) return peer;
    await new Promise((resolve) => setTimeout(resolve, 50));
  }
}

/** A list of one item as text without its brackets, or null for a refusal. */
async function answer(of) {
  const response = await fetch(`http://127.0.0.1:${PORT}/api/chat/${of}`, {
    headers: { Authorization: `Bearer ${token()}` },
  });
  if (response.status === 500) return null;
  const text = await response.text();
  if (response.status !== 200) throw new Error(`${response.status}: ${text}`);
  return text.slice(1, -1);
}

/** The document as extended JSON when that holds it, else its bytes. */
function line(bytes) {
  try {
    const options = { promoteValues: false, bsonRegExp: true };
    const text = BSON.EJSON.stringify(BSON.deserialize(bytes, options), { relaxed: false });
    const back = BSON.serialize(BSON.EJSON.parse(text, { relaxed: false }), { ignoreUndefined: false });
    if (Buffer.compare(back, bytes) === 0) return text;
  } catch {
    // Its bytes, then.
  }
  return JSON.stringify(Buffer.from(bytes).toString("base64"));
}

async function main() {
  const client = await MongoClient.connect(`mongodb://${URI.host}/?directConnection=true`);
  const database = client.db(DATABASE);
  await database.dropDatabase();
  const wire = new Wire(URI.hostname, Number(URI.port || 27017));
  for (const user of SENDERS) await wire.insert("users", document(user));
  const peer = await startPeer();
  await new Promise((resolve) => setTimeout(resolve, 500));
  // Many documents have one name, and odd ones have none.
  await database.collection("users").dropIndexes();
  await database.collection("rooms").dropIndexes();

  process.on("exit", () => peer.kill());

  const write = (file, lines) => {
    fs.writeFileSync(path.join(__dirname, file), `${lines.join("\n")}\n`);
    console.log(`${file}: ${lines.length} documents`);
  };

  for (const [collection, made, of] of [
    ["messages", messages(), `messages/${ROOM}`],
    ["rooms", rooms(), "rooms"],
  ]) {
    const answers = [];
    for (const made_ of made) {
      const bytes = document(made_);
      await database.collection(collection).deleteMany({});
      // Twice the same `_id`, or one that MongoDB refuses.
      const number = fields(["_id", made_.fields.find(([name]) => name === "_id")[1]], ["number", answers.length]);
      if (!(await wire.insert(collection, bytes)) || !(await wire.insert("all", document(number)))) continue;
      const text = await answer(of);
      // A room without the value that the query asks for.
      if (text === "") throw new Error(line(bytes));
      answers.push(`{"document":${line(bytes)},"answer":${text}}`);
    }
    const inOrder = await database.collection("all").find({}, { projection: { _id: 0, number: 1 } }).sort({ _id: 1 }).toArray();
    write(`${collection}.jsonl`, inOrder.map(({ number }) => answers[number]));
    await database.collection("all").drop();
  }

  await database.collection("messages").deleteMany({});
  const senders = [];
  for (const user of users()) {
    const bytes = document(user);
    const id = user.fields.find(([name]) => name === "_id")[1];
    await wire.insert("users", bytes);
    await database.collection("messages").deleteMany({});
    await database.collection("messages").insertOne({ room: ROOM, sender: id });
    const text = await answer(`messages/${ROOM}`);
    const sender = text?.replace(/^\{"_id":"\w{24}","room":"\w{24}","sender":(.*)\}$/s, "$1");
    senders.push(`{"document":${line(bytes)},"sender":${sender ?? null}}`);
  }
  write("users.jsonl", senders);
  write("senders.jsonl", SENDERS.map((sender) => line(document(sender))));

  await database.dropDatabase();
  wire.socket.destroy();
  await client.close();
  process.exit();
}

main();
