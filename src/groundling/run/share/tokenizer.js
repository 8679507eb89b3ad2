/* Text to tokens and back. A token's piece is its bytes, one character of `pieces[id]` a byte. */
class Tokenizer {
  constructor({ kind, pieces, merges }) {
    this.kind = kind;
    this.pieces = pieces;
    this.ids = new Map();
    pieces.forEach((piece, id) => { if (piece && !this.ids.has(piece)) this.ids.set(piece, id); });
    this.ranks = new Map(merges.map(([a, b], rank) => [a * pieces.length + b, rank]));
  }

  /* The tokens of a text, and the characters that have none. */
  encode(text) {
    const units = this.kind === "bpe" ? text.match(WORDS) ?? [] : Array.from(text), unknown = new Set();
    const ids = units.flatMap(unit => {
      const bytes = Array.from(new TextEncoder().encode(unit), byte => String.fromCharCode(byte));
      const known = (this.kind === "char" ? [bytes.join("")] : bytes).map(piece => this.ids.get(piece));
      if (known.includes(undefined)) unknown.add(unit);
      return this.merge(known.filter(id => id !== undefined));
    });
    return { ids, unknown: [...unknown] };
  }

  /* Joins two neighbours at a time, those whose merge was learned first, until no merge is left. */
  merge(ids) {
    for (;;) {
      let best = Infinity;
      for (let i = 0; i + 1 < ids.length; i++) best = Math.min(best, this.rank(ids[i], ids[i + 1]));
      if (best === Infinity) return ids;
      const merged = [];
      for (let i = 0; i < ids.length; i++) {
        const joined = i + 1 < ids.length && this.rank(ids[i], ids[i + 1]) === best;
        merged.push(joined ? this.ids.get(this.pieces[ids[i]] + this.pieces[ids[++i]]) : ids[i]);
      }
      ids = merged;
    }
  }
  rank(a, b) { return this.ranks.get(a * this.pieces.length + b) ?? Infinity; }

  bytes(id) { return Uint8Array.from(this.pieces[id], letter => letter.charCodeAt(0)); }
}

/* GPT-2's words: a space belongs to the word after it. \s of JavaScript is not Unicode's white space. */
const SPACE = "\\p{White_Space}", WORDS = new RegExp(
  `'(?:s|t|re|ve|m|ll|d)| ?\\p{L}+| ?\\p{N}+| ?[^${SPACE}\\p{L}\\p{N}]+|${SPACE}+(?!\\P{White_Space})|${SPACE}+`, "gu",
);
