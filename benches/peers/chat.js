// What the peers in JavaScript have in common: the documents, the checks, and the way of a message.
// The tokens, the passwords, HTTP and the engine below Socket.IO are each peer's own.

import { createAdapter } from "@socket.io/mongo-adapter";
import { MongoClient, ObjectId } from "mongodb";

/** A refusal: its status, and the text that the client reads. */
export class Refusal extends Error {
  constructor(status, text) {
    super(text);
    this.status = status;
  }
}

/** argon2id as this repository's server uses it, so that a login costs everybody the same. */
export const ARGON2ID = { memoryCost: 19 * 1024, timeCost: 2 };
/** The longest body in bytes, as in Express. */
export const MAX_BODY = 100 * 1024;

const HEX = /^[0-9a-fA-F]{24}$/;
const MAX_REMEMBERED = 100_000;
const DUPLICATE_KEY = 11000;
const COLLECTION_EXISTS = 48;

/** An id, or a refusal as Mongoose has it. */
function objectId(value) {
  if (typeof value !== "string" || !HEX.test(value)) throw new Refusal(500, "Server error");
  return ObjectId.createFromHexString(value);
}

function text(value) {
  if (typeof value !== "string" || value === "") throw new Refusal(500, "Server error");
  return value;
}

/** A document with what Mongoose adds to each. */
function document(fields) {
  const now = new Date();
  return { ...fields, _id: new ObjectId(), createdAt: now, updatedAt: now, __v: 0 };
}

/** Adds to a map, which loses its oldest entry when it is full. */
export function remember(map, key, value) {
  if (map.size >= MAX_REMEMBERED) map.delete(map.keys().next().value);
  map.set(key, value);
}

/** The token of an `Authorization` header. */
export function bearer(header) {
  if (!header) throw new Refusal(401, "Access denied. No token provided.");
  const parts = header.split(" ");
  if (parts.length !== 2 || parts[0] !== "Bearer" || parts[1] === "") {
    throw new Refusal(401, "Invalid token format");
  }
  return parts[1];
}

/** Status and body for what a handler has thrown. */
export function refusalOf(error) {
  if (error instanceof Refusal) return [error.status, { error: error.message }];
  if (error instanceof SyntaxError) return [400, { error: "Malformed JSON" }];
  console.error(error);
  return [500, { error: "Server error" }];
}

/** The chat over the database of `uri`; `emit(room, message)` tells those who have joined. */
export async function open(uri, { hash, isPassword, sign, emit }) {
  const client = new MongoClient(uri, { writeConcern: { w: "majority" } });
  const database = (await client.connect()).db();
  const users = database.collection("users");
  const rooms = database.collection("rooms");
  const messages = database.collection("messages");
  await users.createIndex({ username: 1 }, { unique: true });
  await rooms.createIndex({ name: 1 }, { unique: true });
  await messages.createIndex({ room: 1, _id: 1 });

  // Nothing here renames a user or removes a room, so both can be remembered.
  const usernames = new Map();
  const knownRooms = new Map();

  async function checkRoom(room) {
    const key = room.toHexString();
    if (knownRooms.has(key)) return;
    const found = await rooms.findOne({ _id: room }, { projection: { _id: 1 } });
    if (!found) throw new Refusal(400, "Room not found");
    remember(knownRooms, key, true);
  }

  return {
    /** By which several processes are one Socket.IO server, set up as its documentation says. */
    async adapter() {
      const name = "socket.io-adapter-events";
      try {
        await database.createCollection(name, { capped: true, size: 1e6 });
      } catch (error) {
        if (error.code !== COLLECTION_EXISTS) throw error;
      }
      return createAdapter(database.collection(name));
    },

    async register(body) {
      const [username, password] = [text(body?.username), text(body?.password)];
      // A taken name is a 500 on the original server, too.
      await users.insertOne(document({ username, password: await hash(password) }));
      return { message: "User registered successfully" };
    },

    async login(body) {
      const [username, password] = [text(body?.username), text(body?.password)];
      const user = await users.findOne({ username });
      if (!user) throw new Refusal(404, "User not found");
      if (!await isPassword(password, user.password)) throw new Refusal(400, "Invalid credentials");
      const userId = user._id.toHexString();
      return { token: await sign({ id: userId }), userId };
    },

    async createRoom(body) {
      const room = document({ name: text(body?.name) });
      try {
        await rooms.insertOne(room);
      } catch (error) {
        throw error.code === DUPLICATE_KEY ? new Refusal(400, "Room already exists") : error;
      }
      return { message: "Room created successfully", room };
    },

    rooms: () => rooms.find().toArray(),

    async history(id) {
      const found = await messages.find({ room: objectId(id) }).sort({ _id: 1 }).toArray();
      const unknown = new Map();
      for (const { sender } of found) {
        const key = sender.toHexString();
        if (!usernames.has(key)) unknown.set(key, sender);
      }
      if (unknown.size > 0) {
        const query = users.find({ _id: { $in: [...unknown.values()] } });
        for await (const { _id, username } of query.project({ username: 1 })) {
          remember(usernames, _id.toHexString(), username);
        }
      }
      for (const message of found) {
        const username = usernames.get(message.sender.toHexString());
        message.sender = username === undefined ? null : { _id: message.sender, username };
      }
      return found;
    },

    /** Checks a message, stores it by a majority, and tells the room. */
    async send(user, body) {
      const [room, sender] = [objectId(body?.room), objectId(body?.sender)];
      const content = text(body.content);
      if (sender.toHexString() !== user.id) throw new Refusal(403, "The sender is another user");
      await checkRoom(room);
      const stored = document({ room, sender, content });
      await messages.insertOne(stored);
      // Plain values, so that Socket.IO need not search ids and dates for binary data.
      const at = stored.createdAt.toISOString();
      const message = {
        room: room.toHexString(),
        sender: sender.toHexString(),
        content,
        _id: stored._id.toHexString(),
        createdAt: at,
        updatedAt: at,
        __v: 0,
      };
      emit(message.room, message);
      return { message };
    },
  };
}

/** Socket.IO as the original has it. `check(token)` is the user, or throws. */
export function serve(io, { check, send }) {
  io.use(async (socket, next) => {
    try {
      const { token } = socket.handshake.auth;
      if (typeof token !== "string") throw new Error("Access denied. No token provided.");
      socket.data.user = await check(token);
      next();
    } catch (error) {
      next(error);
    }
  });
  io.on("connection", (socket) => {
    const answer = (ack, value) => typeof ack === "function" && ack(value);
    socket.on("joinRoom", (room, ack) => {
      if (typeof room !== "string") return answer(ack, { error: "Server error" });
      socket.join(room);
      answer(ack, { room });
    });
    socket.on("leaveRoom", (room, ack) => {
      if (typeof room !== "string") return answer(ack, { error: "Server error" });
      socket.leave(room);
      answer(ack, { room });
    });
    socket.on("sendMessage", async (body, ack) => {
      try {
        answer(ack, await send(socket.data.user, body));
      } catch (error) {
        answer(ack, refusalOf(error)[1]);
      }
    });
  });
}
