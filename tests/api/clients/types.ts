// A program with the types of the client: the lines below `@ts-expect-error` must not compile.
import { Chat, ChatError, Room, type Message, type State } from 'realtime-chat-client';

class Socket {}
const chat = new Chat({ url: 'http://localhost:5000', WebSocket: Socket });

export async function use(password: string): Promise<string[]> {
  const { _id } = await chat.register('ann', password);
  const { _id: id } = await chat.direct(_id);
  return chat.room(id).messages.map(({ content }) => content);
}

export function show(messages: Message[]): string[] {
  return messages.map(message => `${message.sender?.username ?? 'someone'}: ${message.content} ${message.state}`);
}

export function describe(state: State): string {
  switch (state.state) {
    case 'offline': return `next attempt at ${state.retryAt}`;
    case 'refused': return state.code;
    case 'recovered':
    case 'resynced': return `${state.missed} missed`;
    default: return state.state;
  }
}

export async function open(id: string): Promise<void> {
  const room = chat.room(id);
  await room.open(messages => show(messages), { limit: 20 });
  room.send('hello');
  const off: () => void = room.on('typing', users => users.map(({ username }) => username));
  off();
  chat.on('error', (error: ChatError) => error.code);
  // @ts-expect-error: there is no such event.
  room.on('message', () => {});
  // @ts-expect-error: only `room` of a chat makes rooms.
  new Room();
}

if (chat.user !== null || chat.state.state !== 'offline' || chat.waiting !== 0) throw new Error('it begins without a login');
if (!(new ChatError('closed', 'text') instanceof Error)) throw new Error('no error');
