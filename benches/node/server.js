// The peer of benches/compare: what a plain Node chat backend does, with the packages that such
// backends use. It is written as their documentation shows, neither tuned nor slowed down.
//
// PORT, MONGO_URI and JWT_SECRET come from the environment.

const http = require("node:http");
const bcrypt = require("bcryptjs");
const cors = require("cors");
const express = require("express");
const jwt = require("jsonwebtoken");
const mongoose = require("mongoose");
const { Server } = require("socket.io");

const { PORT, MONGO_URI, JWT_SECRET } = process.env;
const { ObjectId } = mongoose.Schema.Types;

const User = mongoose.model("User", new mongoose.Schema({
  username: { type: String, required: true, unique: true },
  password: { type: String, required: true },
}, { timestamps: true }));

const Room = mongoose.model("Room", new mongoose.Schema({
  name: { type: String, required: true, unique: true },
}, { timestamps: true }));

const Message = mongoose.model("Message", new mongoose.Schema({
  room: { type: ObjectId, ref: "Room", required: true },
  sender: { type: ObjectId, ref: "User", required: true },
  content: { type: String, required: true },
}, { timestamps: true }).index({ room: 1, _id: 1 }));

/** Turns a rejected handler into the answer 500. */
const handle = (handler) => (req, res) =>
  handler(req, res).catch(() => res.status(500).json({ error: "Server error" }));

const requireAuth = (req, res, next) => {
  const header = req.header("Authorization");
  if (!header) return res.status(401).json({ error: "Access denied. No token provided." });
  const [scheme, token, ...rest] = header.split(" ");
  if (scheme !== "Bearer" || !token || rest.length > 0) {
    return res.status(401).json({ error: "Invalid token format" });
  }
  try {
    req.user = jwt.verify(token, JWT_SECRET);
  } catch {
    return res.status(401).json({ error: "Invalid token" });
  }
  next();
};

const app = express();
app.use(cors());
app.use(express.json());

app.post("/api/auth/register", handle(async (req, res) => {
  const { username, password } = req.body;
  await User.create({ username, password: await bcrypt.hash(password, 10) });
  res.status(201).json({ message: "User registered successfully" });
}));

app.post("/api/auth/login", handle(async (req, res) => {
  const { username, password } = req.body;
  const user = await User.findOne({ username });
  if (!user) return res.status(404).json({ error: "User not found" });
  if (!await bcrypt.compare(password, user.password)) {
    return res.status(400).json({ error: "Invalid credentials" });
  }
  const token = jwt.sign({ id: user._id }, JWT_SECRET, { expiresIn: "1h" });
  res.json({ token, userId: user._id });
}));

const chat = express.Router();
chat.use(requireAuth);

chat.post("/room", handle(async (req, res) => {
  const { name } = req.body;
  if (await Room.findOne({ name })) return res.status(400).json({ error: "Room already exists" });
  const room = await Room.create({ name });
  res.status(201).json({ message: "Room created successfully", room });
}));

chat.get("/rooms", handle(async (req, res) => {
  res.json(await Room.find());
}));

chat.get("/messages/:room", handle(async (req, res) => {
  const messages = await Message.find({ room: req.params.room }).populate("sender", "username");
  res.json(messages);
}));

chat.post("/message", handle(async (req, res) => {
  const { room, sender, content } = req.body;
  if (!await Room.findById(room)) return res.status(400).json({ error: "Room not found" });
  const message = await Message.create({ room, sender, content });
  res.status(201).json({ message });
}));

app.use("/api/chat", chat);

const server = http.createServer(app);
const io = new Server(server, { cors: { origin: "*" } });

io.on("connection", (socket) => {
  socket.on("joinRoom", (room, ack) => {
    socket.join(room);
    ack?.({ room });
  });
  socket.on("leaveRoom", (room, ack) => {
    socket.leave(room);
    ack?.({ room });
  });
  socket.on("sendMessage", async ({ room, sender, content }, ack) => {
    try {
      const message = await Message.create({ room, sender, content });
      io.to(room).emit("receiveMessage", message);
      ack?.({ message });
    } catch {
      ack?.({ error: "Server error" });
    }
  });
});

mongoose.connect(MONGO_URI).then(
  () => server.listen(Number(PORT), "127.0.0.1"),
  (error) => {
    console.error(error.message);
    process.exit(1);
  },
);
