// A peer of benches/compare: the routes of Bun.serve, and Socket.IO on the engine made for Bun.
//
// PORT, MONGO_URI and JWT_SECRET come from the environment. With INSTANCES, it is one of several
// processes over the same database.

import { Server as Engine } from "@socket.io/bun-engine";
import { SignJWT, jwtVerify } from "jose";
import { Server } from "socket.io";
import { ARGON2ID, MAX_BODY, Refusal, bearer, open, refusalOf, remember, serve } from "./chat.js";

const { PORT, MONGO_URI, JWT_SECRET } = process.env;

const algorithm = { name: "HMAC", hash: "SHA-256" };
const secret = await crypto.subtle.importKey(
  "raw", new TextEncoder().encode(JWT_SECRET), algorithm, false, ["sign", "verify"],
);
const sign = (claims) => {
  const token = new SignJWT(claims).setProtectedHeader({ alg: "HS256", typ: "JWT" });
  return token.setIssuedAt().setExpirationTime("1h").sign(secret);
};

// Checking a signature costs a turn of the thread pool, more than all the rest of a request.
const checked = new Map();
async function check(token) {
  const known = checked.get(token);
  if (known?.exp * 1000 > Date.now()) return known;
  checked.delete(token);
  try {
    const { payload } = await jwtVerify(token, secret, { algorithms: ["HS256"] });
    remember(checked, token, payload);
    return payload;
  } catch {
    throw new Refusal(401, "Invalid token");
  }
}

const io = new Server();
const chat = await open(MONGO_URI, {
  hash: (password) => Bun.password.hash(password, { algorithm: "argon2id", ...ARGON2ID }),
  isPassword: (password, hash) => Bun.password.verify(password, hash),
  sign,
  emit: (room, message) => io.to(room).emit("receiveMessage", message),
});
if (process.env.INSTANCES) io.adapter(await chat.adapter());
const engine = new Engine({ path: "/socket.io/", cors: { origin: "*" } });
io.bind(engine);
serve(io, { check, send: chat.send });

const cors = { "Access-Control-Allow-Origin": "*" };
const preflight = () => {
  const headers = {
    ...cors,
    "Access-Control-Allow-Methods": "GET,POST",
    "Access-Control-Allow-Headers": "Content-Type,Authorization",
  };
  return new Response(null, { status: 204, headers });
};
/** A route whose handler returns the body. */
const route = (method, status, handler) => {
  const success = { status, headers: cors };
  return {
    OPTIONS: preflight,
    [method]: async (request) => {
      try {
        return Response.json(await handler(request), success);
      } catch (error) {
        const [status, body] = refusalOf(error);
        return Response.json(body, { status, headers: cors });
      }
    },
  };
};
const user = (request) => check(bearer(request.headers.get("authorization")));

const server = Bun.serve({
  ...engine.handler(),
  hostname: "127.0.0.1",
  port: Number(PORT),
  maxRequestBodySize: MAX_BODY,
  routes: {
    "/api/auth/register": route("POST", 201, async (request) => chat.register(await request.json())),
    "/api/auth/login": route("POST", 200, async (request) => chat.login(await request.json())),
    "/api/chat/room": route("POST", 201, async (request) => {
      await user(request);
      return chat.createRoom(await request.json());
    }),
    "/api/chat/rooms": route("GET", 200, async (request) => {
      await user(request);
      return chat.rooms();
    }),
    "/api/chat/messages/:room": route("GET", 200, async (request) => {
      await user(request);
      return chat.history(request.params.room);
    }),
    "/api/chat/message": route("POST", 201, async (request) => {
      const sender = await user(request);
      return chat.send(sender, await request.json());
    }),
  },
});
console.log(`listening on ${server.url}`);
