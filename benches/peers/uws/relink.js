// Makes the published binary of uWebSockets.js load where glibc is older than 2.38, as on Debian 12
// and Ubuntu 22.04: `node relink.js <file>.node`. On newer systems it is not needed.
//
// All that the binary wants of glibc 2.38 are the names that its headers gave to functions of C23
// (`__isoc23_strtol` for `strtol`, and so on, which differ only in numbers written in binary). The
// symbols get their old names and versions, as a build on an older system would have given them. No
// code changes.

import { readFileSync, writeFileSync } from "node:fs";

const [SHT_DYNSYM, SHT_VERNEED, SHT_VERSYM] = [11, 0x6ffffffe, 0x6fffffff];
const PREFIX = "__isoc23_";
const VER_FLG_WEAK = 2;

const path = process.argv[2];
const file = readFileSync(path);
// 0x7F, "ELF", 64 bits, little endian.
if (file.toString("latin1", 0, 6) !== "\x7fELF\x02\x01") throw new Error(`${path} is no such binary`);
const u64 = (at) => Number(file.readBigUInt64LE(at));

const table = u64(40);
const [size, count] = [file.readUInt16LE(58), file.readUInt16LE(60)];
const section = (number) => {
  const at = table + number * size;
  return {
    type: file.readUInt32LE(at + 4),
    offset: u64(at + 24),
    length: u64(at + 32),
    link: file.readUInt32LE(at + 40),
  };
};
const sections = Array.from({ length: count }, (_, number) => section(number));
const ofType = (type) => sections.find((section) => section.type === type);
const [symbols, versions, needs] = [SHT_DYNSYM, SHT_VERSYM, SHT_VERNEED].map(ofType);
const strings = sections[symbols.link].offset;
const name = (offset) => {
  const begin = strings + offset;
  return file.toString("latin1", begin, file.indexOf(0, begin));
};

// The versions that are wanted of libc.so.6: where each is, by its name.
const wanted = new Map();
for (let need = needs.offset, next = 1; next !== 0; need += next) {
  next = file.readUInt32LE(need + 12);
  if (name(file.readUInt32LE(need + 4)) !== "libc.so.6") continue;
  let at = need + file.readUInt32LE(need + 8);
  for (let left = file.readUInt16LE(need + 2); left > 0; left -= 1) {
    wanted.set(name(file.readUInt32LE(at + 8)), at);
    at += file.readUInt32LE(at + 12);
  }
}
const [newer, older] = [wanted.get("GLIBC_2.38"), wanted.get("GLIBC_2.2.5")];
if (newer === undefined) throw new Error(`${path} does not want glibc 2.38`);
if (older === undefined) throw new Error(`${path} wants no old glibc that could be named`);
const index = (need) => file.readUInt16LE(need + 6);

for (let number = 0; number * 24 < symbols.length; number += 1) {
  const [symbol, version] = [symbols.offset + number * 24, versions.offset + number * 2];
  if (file.readUInt16LE(version) !== index(newer)) continue;
  const at = file.readUInt32LE(symbol);
  if (!name(at).startsWith(PREFIX)) throw new Error(`${path} also wants ${name(at)} of glibc 2.38`);
  // The old name is the end of the new one.
  file.writeUInt32LE(at + PREFIX.length, symbol);
  file.writeUInt16LE(index(older), version);
}
// Nothing has this version now, so a system without it is no obstacle.
file.writeUInt16LE(VER_FLG_WEAK, newer + 4);
writeFileSync(path, file);
