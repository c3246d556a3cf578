// A peer of benches/compare: Node with the routes of uWebSockets.js, and Socket.IO on the same app.
//
// PORT, MONGO_URI and JWT_SECRET come from the environment. With INSTANCES, it is one of several
// processes over the same database.

import uWS from "@btc-vision/uwebsockets.js";
import * as argon2 from "@node-rs/argon2";
import { createSigner, createVerifier } from "fast-jwt";
import { Server } from "socket.io";
import { ARGON2ID, MAX_BODY, Refusal, bearer, open, refusalOf, serve } from "./chat.js";

const { PORT, MONGO_URI, JWT_SECRET } = process.env;

const verify = createVerifier({ key: JWT_SECRET, algorithms: ["HS256"], cache: 100_000 });
function check(token) {
  try {
    return verify(token);
  } catch {
    throw new Refusal(401, "Invalid token");
  }
}

const app = uWS.App();
const io = new Server({ cors: { origin: "*" } });
// uWS passes over a socket for which more than this waits: 64 KiB, unless it is told otherwise.
io.attachApp(app, { maxBackpressure: 4 * 1024 * 1024 });
const chat = await open(MONGO_URI, {
  hash: (password) => argon2.hash(password, { algorithm: argon2.Algorithm.Argon2id, ...ARGON2ID }),
  isPassword: (password, hash) => argon2.verify(hash, password),
  sign: createSigner({ key: JWT_SECRET, algorithm: "HS256", expiresIn: "1h" }),
  emit: (room, message) => io.to(room).emit("receiveMessage", message),
});
if (process.env.INSTANCES) io.adapter(await chat.adapter());
serve(io, { check, send: chat.send });

const STATUS = {
  200: "200 OK",
  201: "201 Created",
  400: "400 Bad Request",
  401: "401 Unauthorized",
  403: "403 Forbidden",
  404: "404 Not Found",
  413: "413 Payload Too Large",
  500: "500 Internal Server Error",
};

function answer(response, status, value) {
  if (response.isGone) return;
  const body = JSON.stringify(value);
  // Corked: status, headers and body leave in one write.
  response.cork(() => {
    response.writeStatus(STATUS[status]);
    response.writeHeader("Access-Control-Allow-Origin", "*");
    response.writeHeader("Content-Type", "application/json; charset=utf-8");
    response.end(body);
  });
}

/** The JSON of a body. */
const json = (response) => new Promise((resolve, reject) => {
  let body = null;
  response.onData((chunk, isLast) => {
    // The memory of a chunk is uWS's, and is used again after this call.
    const bytes = Buffer.from(chunk);
    if ((body?.length ?? 0) + bytes.length > MAX_BODY) {
      return reject(new Refusal(413, "Payload Too Large"));
    }
    if (!isLast) {
      body = Buffer.concat(body ? [body, bytes] : [bytes]);
      return;
    }
    try {
      resolve(JSON.parse((body ? Buffer.concat([body, bytes]) : bytes).toString()));
    } catch (error) {
      reject(error);
    }
  });
});

/** A handler that returns the body. It has to read the request before it waits. */
const handle = (status, handler) => async (response, request) => {
  response.onAborted(() => { response.isGone = true; });
  try {
    answer(response, status, await handler(response, request));
  } catch (error) {
    answer(response, ...refusalOf(error));
  }
};
const user = (request) => check(bearer(request.getHeader("authorization")));

app.post("/api/auth/register", handle(201, async (response) => chat.register(await json(response))));
app.post("/api/auth/login", handle(200, async (response) => chat.login(await json(response))));
app.post("/api/chat/room", handle(201, async (response, request) => {
  user(request);
  return chat.createRoom(await json(response));
}));
app.get("/api/chat/rooms", handle(200, (response, request) => {
  user(request);
  return chat.rooms();
}));
app.get("/api/chat/messages/:room", handle(200, (response, request) => {
  user(request);
  return chat.history(request.getParameter(0));
}));
app.post("/api/chat/message", handle(201, async (response, request) => {
  const sender = user(request);
  return chat.send(sender, await json(response));
}));
app.options("/api/*", (response) => {
  response.writeStatus("204 No Content");
  response.writeHeader("Access-Control-Allow-Origin", "*");
  response.writeHeader("Access-Control-Allow-Methods", "GET,POST");
  response.writeHeader("Access-Control-Allow-Headers", "Content-Type,Authorization");
  response.endWithoutBody();
});
app.any("/*", (response) => response.writeStatus(STATUS[404]).end("Not Found"));

app.listen("127.0.0.1", Number(PORT), (listening) => {
  if (!listening) throw new Error(`port ${PORT} is taken`);
  console.log(`listening on http://127.0.0.1:${PORT}`);
});
