/* The model: a token goes in, the logits of the next one come out. It is groundling's model/gpt.py for one token at a
time: `read` is GPT.forward, and a cache holds the keys and values of the tokens before. */
class Model {
  /* `shapes` are [name, [rows, columns]] of matrices and [name, [size]] of vectors. `content` has all numbers in 32
  bits first (scales of matrices and vectors, in this order), then those in 8 bits. */
  constructor(config, shapes, content) {
    this.config = config;
    const size = shape => shape.reduce((a, b) => a * b);
    let float = 0, byte = 4 * shapes.reduce((sum, [, shape]) => sum + shape[0], 0);
    const floats = new Float32Array(content.buffer, 0, byte / 4), numbers = new Int8Array(content.buffer);
    const memory = new Memory(shapes.map(([, shape]) => shape).filter(shape => shape.length > 1));
    const tensors = new Map();
    for (const [name, shape] of shapes) {
      const scales = floats.slice(float, float += shape[0]);
      if (shape.length === 1) { tensors.set(name, scales); continue; }
      tensors.set(name, new Matrix(memory, ...shape, numbers.subarray(byte, byte += size(shape)), scales));
    }
    const tensor = name => tensors.get(name);
    const layer = name => ({ weight: tensor(name + ".weight"), bias: tensor(name + ".bias") });
    this.wte = tensor("wte.weight");
    this.wpe = tensor("wpe.weight");
    this.head = tensor("lm_head.weight") ?? this.wte;
    this.norm = layer("ln_f");
    this.blocks = config.windows.map((window, i) => ({
      window,
      norm1: layer(`h.${i}.ln_1`), norm2: layer(`h.${i}.ln_2`),
      attention: layer(`h.${i}.attn.c_attn`), attended: layer(`h.${i}.attn.c_proj`),
      queryNorm: tensor(`h.${i}.attn.rope.q_norm.weight`), keyNorm: tensor(`h.${i}.attn.rope.k_norm.weight`),
      hidden: layer(`h.${i}.mlp.c_fc`), output: layer(`h.${i}.mlp.c_proj`),
    }));
  }

  newCache() {
    const size = this.config.context * this.config.kvHeads * this.config.headSize;
    const empty = () => this.blocks.map(() => new Float32Array(size));
    return { length: 0, keys: empty(), values: empty() };
  }

  /* The logits after `token`, whose place is the cache's length. Not computed unless `wanted`. */
  read(token, cache, wanted = true) {
    const x = this.wte.row(token);
    if (this.wpe) add(x, this.wpe.row(cache.length));
    this.blocks.forEach((block, i) => {
      add(x, this.attend(block, this.normalized(x, block.norm1), cache, cache.keys[i], cache.values[i]));
      add(x, this.feedForward(block, this.normalized(x, block.norm2)));
    });
    cache.length++;
    return wanted ? this.head.times(this.normalized(x, this.norm)) : null;
  }

  normalized(x, { weight, bias }) {
    const y = new Float32Array(x.length);
    let mean = 0, square = 0;
    if (this.config.norm === "layernorm") mean = x.reduce((sum, value) => sum + value, 0) / x.length;
    for (const value of x) square += (value - mean) ** 2;
    const scale = 1 / Math.sqrt(square / x.length + this.config.epsilon);
    for (let i = 0; i < y.length; i++) y[i] = (x[i] - mean) * scale * weight[i] + (bias ? bias[i] : 0);
    return y;
  }

  attend(block, x, cache, keys, values) {
    const { heads, kvHeads, headSize } = this.config, at = cache.length, width = kvHeads * headSize;
    const qkv = block.attention.weight.times(x, block.attention.bias); // all queries, then all keys, then all values
    const q = qkv.subarray(0, heads * headSize), k = qkv.subarray(q.length, q.length + width);
    if (this.config.frequencies) {
      this.rotate(q, block.queryNorm, at);
      this.rotate(k, block.keyNorm, at);
    }
    keys.set(k, at * width);
    values.set(qkv.subarray(q.length + width), at * width);
    const first = block.window ? Math.max(0, at + 1 - block.window) : 0, weights = new Float32Array(at + 1 - first);
    const y = new Float32Array(q.length), shared = heads / kvHeads;
    for (let head = 0; head < heads; head++) {
      const ours = head * headSize, theirs = Math.floor(head / shared) * headSize;
      for (let t = 0; t < weights.length; t++) {
        const key = (first + t) * width + theirs;
        let score = 0;
        for (let i = 0; i < headSize; i++) score += q[ours + i] * keys[key + i];
        weights[t] = score / Math.sqrt(headSize);
      }
      softmax(weights);
      for (let t = 0; t < weights.length; t++) {
        const value = (first + t) * width + theirs, weight = weights[t];
        for (let i = 0; i < headSize; i++) y[ours + i] += weight * values[value + i];
      }
    }
    return block.attended.weight.times(y, block.attended.bias);
  }

  /* Rotary positions, in place. Queries and keys are normalized first if there is a weight for it. */
  rotate(x, weight, position) {
    const { headSize, frequencies, ropeScale, qkEpsilon } = this.config, half = headSize / 2;
    const cos = frequencies.map(f => Math.fround(ropeScale * Math.cos(position * f)));
    const sin = frequencies.map(f => Math.fround(ropeScale * Math.sin(position * f)));
    for (let head = 0; head < x.length; head += headSize) {
      let square = 0;
      for (let i = 0; i < headSize; i++) square += x[head + i] ** 2;
      const scale = 1 / Math.sqrt(square / headSize + qkEpsilon);
      for (let i = 0; i < headSize && weight; i++) x[head + i] *= scale * weight[i];
      for (let i = 0; i < half; i++) {
        const a = x[head + i], b = x[head + half + i];
        x[head + i] = a * cos[i] - b * sin[i];
        x[head + half + i] = b * cos[i] + a * sin[i];
      }
    }
  }

  feedForward(block, x) {
    let hidden = block.hidden.weight.times(x, block.hidden.bias);
    if (this.config.mlp === "swiglu") {
      const half = hidden.length / 2, gated = hidden.subarray(0, half);
      for (let i = 0; i < half; i++) gated[i] = gated[i] / (1 + Math.exp(-gated[i])) * hidden[half + i];
      hidden = gated;
    } else {
      const root = Math.sqrt(2 / Math.PI);
      hidden.forEach((v, i) => { hidden[i] = 0.5 * v * (1 + Math.tanh(root * (v + 0.044715 * v ** 3))); });
    }
    return block.output.weight.times(hidden, block.output.bias);
  }
}

/* Probabilities of logits, in place. */
function softmax(x) {
  const most = largest(x);
  let sum = 0;
  for (let i = 0; i < x.length; i++) sum += x[i] = Math.exp(x[i] - most);
  for (let i = 0; i < x.length; i++) x[i] /= sum;
  return x;
}

function largest(x) {
  let most = -Infinity;
  for (const value of x) if (value > most) most = value;
  return most;
}
