/* From logits to text, as groundling's inference/engine.py and inference/sampling.py do it. */

/* A text that may be longer than the model's context. The model always gets a window of the text. A full window gives
way to one that starts in its middle, which is filled ahead, so that no token takes long. */
class Context {
  /* For a prompt of `length` tokens. `start` is the first one that the model reads. */
  constructor(model, length) {
    const { context } = model.config;
    this.model = model;
    this.stride = context - Math.floor(context / 2);
    this.start = Math.max(0, Math.ceil((length - context) / this.stride)) * this.stride;
    this.now = model.newCache();
    this.next = model.newCache();
  }
  read(token) {
    if (this.now.length === this.model.config.context) {
      [this.now, this.next] = [this.next, this.now];
      this.next.length = 0;
    }
    const ahead = this.now.length >= this.stride;
    const logits = this.model.read(token, this.now);
    if (ahead) this.model.read(token, this.next, false);
    return logits;
  }
}

/* Yields every token after the first that the model reads: those of the prompt, then `count` drawn ones, up to one that
ends a text. Each has its probability by the model itself, before temperature and top-k, and the likeliest tokens. */
function* generate(model, prompt, { count, temperature, topK, seed }, ends = []) {
  const context = new Context(model, prompt.length), tokens = [...prompt], random = new Random(seed);
  for (let n = context.start; n + 1 < prompt.length + count; n++) {
    const logits = context.read(tokens[n]), given = n + 1 < prompt.length;
    if (!given) tokens.push(draw(logits, temperature, topK, random));
    const shares = softmax(logits), token = tokens[n + 1];
    yield { token, given, probability: shares[token], choices: likeliest(shares, 5).map(id => [id, shares[id]]) };
    if (!given && ends.includes(token)) return;
  }
}

function draw(logits, temperature, topK, random) {
  const [best] = likeliest(logits, 1);
  if (temperature === 0) return best;
  let least = -Infinity;
  if (topK > 0 && topK < logits.length) least = Float32Array.from(logits).sort()[logits.length - topK];
  let sum = 0;
  const share = logit => logit < least ? 0 : Math.exp((logit - logits[best]) / temperature);
  const sums = Float64Array.from(logits, logit => sum += share(logit));
  const target = sum * random.next(), found = sums.findIndex(value => value > target);
  return found < 0 ? best : found;
}

/* The places of the `count` largest numbers, largest first. */
function likeliest(x, count) {
  const places = [];
  for (let i = 0; i < x.length; i++) {
    if (places.length === count && !(x[i] > x[places[count - 1]])) continue;
    let at = places.length;
    while (at > 0 && x[i] > x[places[at - 1]]) at--;
    places.splice(at, 0, i);
    places.length = Math.min(places.length, count);
  }
  return places;
}

/* PCG-XSH-RR (O'Neill, "PCG: A family of simple fast space-efficient statistically good algorithms for random number
generation", 2014). The same seed gives the same numbers in every browser. */
class Random {
  constructor(seed) {
    this.state = 0n;
    this.next();
    this.state = BigInt.asUintN(64, this.state + BigInt(seed));
    this.next();
  }
  next() {
    const old = this.state;
    this.state = BigInt.asUintN(64, old * 6364136223846793005n + 1442695040888963407n);
    const mixed = Number(BigInt.asUintN(32, ((old >> 18n) ^ old) >> 27n)), turn = Number(old >> 59n);
    return (((mixed >>> turn) | (mixed << (-turn & 31))) >>> 0) / 2 ** 32;
  }
}
