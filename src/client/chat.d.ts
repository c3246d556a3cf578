/**
 * The client of realtime-chat-backend: one ES module over `/ws`, for browsers and Node.
 *
 * What holds:
 * - Each message of an open room is shown once, in its latest version, in the order of `_id`.
 * - After a lost connection an open room has everything that was missed, also edits and deletions,
 *   or a mark (`gapBefore`) where something is missing.
 * - A message that was given to `send` is stored once, or is shown as failed with the reason, also
 *   after a lost connection and a reload.
 * - A login stays over a reload, and its token is renewed in time, by one tab for all.
 * - Nothing grows without a limit: a room keeps 5000 messages, and 1000 wait for the connection.
 */

/** Why something was refused. Decide by `code`: those of the server and those listed here. */
export class ChatError extends Error {
  /**
   * A code of the server, or `unavailable` (no answer), `logged_out`, `closed` (the room),
   * `discarded`, `expired` (it is not known whether the message was stored), `too_many_waiting`,
   * `storage_full`, `refused` (the server gave no code).
   */
  code: string;
  /** The status of REST. */
  status?: number;
  constructor(code: string, message: string, status?: number);
}

export interface User {
  _id: string;
  /** Missing until the name is known. */
  username?: string;
}

/** Objects are replaced and never changed, so that equal ones need not be drawn again. */
export interface Message {
  /** Of a message that waits, its `clientId`. */
  _id: string;
  /** Stays the same while a message of one's own is stored: the key for a list. */
  key: string;
  room: string;
  /** `null` if the user is gone. */
  sender: User | null;
  content: string;
  createdAt: string;
  updatedAt?: string;
  editedAt?: string;
  /** Only where deleted messages are shown. */
  deletedAt?: string;
  __v?: number;
  /** Whether it is of the user who is logged in. */
  mine: boolean;
  state: 'stored' | 'pending' | 'failed';
  /** Why it failed. */
  error?: { code: string; message: string };
  /** Of a message that waits or failed. */
  clientId?: string;
  /** Messages are missing before this one: `room.fill(message)` reads them. */
  gapBefore?: boolean;
}

/** A room of the list. */
export interface RoomInfo {
  _id: string;
  name?: string;
  private?: boolean;
  /** A conversation of two. */
  direct?: boolean;
  owner?: string | null;
  members?: User[];
  /** Messages of others that were not read, up to 100. Missing for rooms the user was never in. */
  unread?: number;
  lastRead?: string | null;
  lastMessage?: { _id: string; sender: User | string | null; content: string; createdAt: string } | null;
}

/** How an open room came back after a lost connection. */
export interface Outcome {
  state: 'live' | 'recovered' | 'resynced';
  /** How many messages of others were missed, and are shown now. */
  missed: number;
  /** Whether messages are still missing somewhere, marked by `gapBefore`. */
  gap: boolean;
}

/**
 * - `connecting`: a connection is being made.
 * - `live`: connected, for the first time or without an open room.
 * - `recovered`: connected again; the server gave exactly what was missed.
 * - `resynced`: connected again; what was missed was read from the history.
 * - `offline`: not connected; the next attempt is at `retryAt` (in ms), if there will be one.
 * - `refused`: there is no valid login (any more); `code` is `logged_out` after a logout.
 */
export type State =
  | { state: 'connecting' }
  | Outcome
  | { state: 'offline'; retryAt?: number }
  | { state: 'refused'; code: string; message: string };

/** What went over the connection, for those who want to look at it. */
export type Frame =
  | { sent: string; data?: unknown }
  | { event: string; data: unknown; position?: string }
  | { closed: number; reason: string };

export interface Options {
  /** The address of the server; unless given, that which this module was loaded from. */
  url?: string | URL;
  /** Node 20 has none of its own: hand in that of the package `ws`. */
  WebSocket?: unknown;
  /**
   * Keeps the login and what is to be sent: `localStorage` unless given. With `sessionStorage`, each
   * tab has a login of its own. Where there is none, a reload forgets both.
   */
  storage?: Pick<Storage, 'getItem' | 'setItem' | 'removeItem' | 'key' | 'length'>;
}

/** A chat server, as one user sees it. */
export class Chat {
  constructor(options?: Options);

  readonly state: State;
  readonly user: { _id: string; username: string } | null;
  /** How many messages wait to be sent. */
  readonly waiting: number;

  /** Each returns a function that ends it. */
  on(event: 'state', listener: (state: State) => void): () => void;
  /** What was refused in the background. */
  on(event: 'error', listener: (error: ChatError) => void): () => void;
  /** The number of messages that wait. */
  on(event: 'outbox', listener: (waiting: number) => void): () => void;
  on(event: 'frame', listener: (frame: Frame) => void): () => void;

  /** Registers a user, and logs in. */
  register(username: string, password: string): Promise<User>;
  login(username: string, password: string): Promise<User>;
  /** Goes on with the login that was kept. Returns the user, or `null` if there was none. */
  resume(): User | null;
  /** Ends this login in all tabs, and forgets what was not sent. */
  logout(): Promise<void>;
  /** Ends all logins of the user, on all devices. */
  logoutEverywhere(): Promise<void>;
  /** Sets a new password, and ends all other logins of the user. */
  changePassword(password: string, newPassword: string): Promise<void>;

  /** Ends the connection until `connect`. What is sent meanwhile waits. */
  disconnect(): void;
  /** Connects now, or looks whether the connection is alive. */
  connect(): void;

  /** The room with this id, which need not be loaded: the same object each time. */
  room(id: string): Room;
  /** All public rooms, and those that the user is a member of. */
  rooms(): Promise<RoomInfo[]>;
  /**
   * Calls `show` with the rooms now and on each change. `unread` is counted live for 100 rooms; for
   * the others, and for new public rooms, the list is read again every 15 s.
   */
  watchRooms(show: (rooms: RoomInfo[]) => void): () => void;
  /** Makes a room; with `private`, one for the user and `members`, which are ids. */
  createRoom(name: string, options?: { private?: boolean; members?: string[] }): Promise<RoomInfo>;
  /** The conversation with another user: the same room for both, each time. */
  direct(user: string): Promise<RoomInfo>;
  /** Up to 20 users whose names begin with this text. */
  findUsers(search: string): Promise<User[]>;
  /** Calls `show` for each of these ids, at most 1000, and again on each change. */
  watchUsers(
    users: string[],
    show: (user: string, isOnline: boolean, lastSeen?: string | null) => void,
  ): () => void;
}

/** A room and its messages. */
export class Room {
  private constructor();

  readonly id: string;
  readonly isOpen: boolean;
  /** All messages that are shown: first those that are stored, then those that wait. */
  readonly messages: Message[];
  /** Whether `older` has more. */
  readonly hasOlder: boolean;
  /** The other users who type. Each is dropped 6 s after the last sign of it. */
  readonly typists: User[];
  /** Up to where this client has everything; `undefined` on a server without positions. */
  readonly position: string | undefined;

  on(event: 'messages', listener: (messages: Message[]) => void): () => void;
  on(event: 'typing', listener: (users: User[]) => void): () => void;
  on(event: 'recovered' | 'resynced', listener: (outcome: Outcome) => void): () => void;
  /** A message was refused. */
  on(event: 'failed', listener: (message: Message) => void): () => void;
  /** The user is not in this room any more, and it is closed. */
  on(event: 'removed', listener: (error: ChatError) => void): () => void;

  /**
   * Shows the room: `show` gets all messages whenever something has changed, first the last `limit`
   * (50) of the history. The promise is fulfilled once these are shown. With `deleted`, what is left
   * of deleted messages is shown, too.
   */
  open(
    show?: (messages: Message[]) => void,
    options?: { limit?: number; deleted?: boolean },
  ): Promise<void>;
  /** Ends `open`, and forgets the messages. */
  close(): void;
  /** Reads one page of older messages. Returns whether there are more. */
  older(): Promise<boolean>;
  /** Reads one page of what is missing before a message with `gapBefore`. */
  fill(message: Message): Promise<void>;

  /**
   * Shows the message at once as `pending`, and sends it until it is answered. The promise is
   * fulfilled when it is stored, and need not be looked at.
   */
  send(content: string): Promise<unknown>;
  /** Sends a failed message again. One that `expired` could be stored twice then. */
  retry(message: Message): void;
  /** Gives up a message. One that is on its way can still be stored. */
  discard(message: Message): void;
  /** Refused with `edit_conflict` if the message has changed since it was shown. */
  edit(message: Message, content: string): Promise<unknown>;
  delete(message: Message): Promise<unknown>;

  /** Call it with each key that is pressed. */
  typing(): void;
  stopTyping(): void;
  /** Says that the user has read up to this message, or all. At most one request a second. */
  markRead(message?: Message): void;
  /** The ids of the other users of whom it is known that they have read this message. */
  readers(message: Message): string[];
  /** The ids of the users who have joined the room. */
  online(): Promise<string[]>;

  /** The room with its members, if it is private. These and the following are requests of REST. */
  info(): Promise<RoomInfo>;
  add(user: string): Promise<RoomInfo>;
  remove(user: string): Promise<RoomInfo>;
  /** Leaves a private room or a conversation. */
  leave(): Promise<RoomInfo>;
  rename(name: string): Promise<RoomInfo>;
  /** Ends a private room with all its messages. */
  end(): Promise<void>;
}
