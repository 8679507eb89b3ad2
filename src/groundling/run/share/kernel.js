"use strict";
/* Matrices in 8 bits, times a vector: almost all of the time that a token takes.

A number w of row r is numbers[w] * scales[r]. A small WebAssembly function multiplies eight numbers at a time. Where a
browser has no WebAssembly, or no SIMD in it, `timesInScript` computes the same at a quarter of the speed. */

/* The function in WebAssembly's binary format, https://webassembly.github.io/spec/core/binary. In words:

  for each row:
    low = high = (0, 0, 0, 0)
    for each eight columns:
      eight = weights as 16-bit integers
      low += eight[0..4] as float * x[0..4];  high += eight[4..8] as float * x[4..8]
    out = sum of the lanes of low + high, times the scale of the row */
function kernelBytes() {
  const [OUT, WEIGHTS, SCALES, X, ROWS, COLUMNS, AT, END, LOW, HIGH, EIGHT] = Array(11).keys();
  const I32 = 0x7f, V128 = 0x7b, NO_VALUE = 0x40;
  const get = local => [0x20, local], set = local => [0x21, local], number = value => [0x41, value];
  const add = [0x6a], subtract = [0x6b], shiftLeft = [0x74], isBelow = [0x49], jumpIf = depth => [0x0d, depth];
  const loop = body => [0x03, NO_VALUE, ...body, 0x0b];
  const move = (local, bytes) => [...get(local), ...number(bytes), ...add, ...set(local)];
  const loadFloat = [0x2a, 2, 0], storeFloat = [0x38, 2, 0], addFloat = [0x92], timesFloat = [0x94];
  const simd = code => [0xfd, ...(code < 128 ? [code] : [code & 127 | 128, code >> 7])];
  const loadEight = [...simd(1), 0, 0], loadFour = offset => [...simd(0), 2, offset];
  const zeros = [...simd(12), ...Array(16).fill(0)];
  const lane = i => [...simd(31), i], asFloats = simd(250), addFour = simd(228), timesFour = simd(230);
  const lowHalf = simd(167), highHalf = simd(168); // four of eight 16-bit integers, as 32-bit ones
  const sum = (local, half, offset) => [
    ...get(local), ...get(EIGHT), ...half, ...asFloats, ...get(AT), ...loadFour(offset), ...timesFour, ...addFour,
    ...set(local),
  ];
  const columns = loop([
    ...get(WEIGHTS), ...loadEight, ...set(EIGHT),
    ...sum(LOW, lowHalf, 0), ...sum(HIGH, highHalf, 16),
    ...move(WEIGHTS, 8), ...move(AT, 32),
    ...get(AT), ...get(END), ...isBelow, ...jumpIf(0),
  ]);
  const rows = loop([
    ...zeros, ...set(LOW), ...zeros, ...set(HIGH), ...get(X), ...set(AT),
    ...columns,
    ...get(LOW), ...get(HIGH), ...addFour, ...set(LOW),
    ...get(OUT),
    ...get(LOW), ...lane(0), ...get(LOW), ...lane(1), ...addFloat,
    ...get(LOW), ...lane(2), ...get(LOW), ...lane(3), ...addFloat, ...addFloat,
    ...get(SCALES), ...loadFloat, ...timesFloat, ...storeFloat,
    ...move(OUT, 4), ...move(SCALES, 4),
    ...get(ROWS), ...number(1), ...subtract, 0x22, ROWS, ...jumpIf(0),
  ]);
  const locals = [2, 2, I32, 3, V128];
  const body = [...locals, ...get(X), ...get(COLUMNS), ...number(2), ...shiftLeft, ...add, ...set(END), ...rows, 0x0b];
  const size = n => n < 128 ? [n] : [n & 127 | 128, n >> 7];
  const section = (id, ...content) => [id, ...size(content.length), ...content];
  const name = text => [text.length, ...new TextEncoder().encode(text)];
  return new Uint8Array([
    0, 0x61, 0x73, 0x6d, 1, 0, 0, 0,
    ...section(1, 1, 0x60, 6, I32, I32, I32, I32, I32, I32, 0), // a type: six integers, no result
    ...section(2, 1, ...name("page"), ...name("memory"), 2, 0, 1), // the memory comes from outside
    ...section(3, 1, 0),
    ...section(7, 1, ...name("times"), 0, 0),
    ...section(10, 1, ...size(body.length), ...body),
  ]);
}

/* Does what the function above does, on the same memory. */
function timesInScript(buffer, out, weights, scales, x, rows, columns) {
  const numbers = new Int8Array(buffer), floats = new Float32Array(buffer);
  for (let r = 0; r < rows; r++) {
    const row = weights + r * columns, at = x >> 2;
    let a = 0, b = 0;
    for (let i = 0; i < columns; i += 2) {
      a += numbers[row + i] * floats[at + i];
      b += numbers[row + i + 1] * floats[at + i + 1];
    }
    floats[(out >> 2) + r] = (a + b) * floats[(scales >> 2) + r];
  }
}

/* One block of memory for all matrices, and for the vector that goes in and the one that comes out. */
class Memory {
  constructor(shapes) {
    const padded = shapes.map(([rows, columns]) => [rows, Memory.round(columns, 8)]);
    const most = k => Math.max(...padded.map(shape => shape[k]));
    this.used = 0;
    const sizes = padded.map(([rows, columns]) => rows * columns + 4 * rows + 32); // with what rounding up may cost
    const bytes = sizes.reduce((sum, size) => sum + size, 4 * (most(0) + most(1)) + 32);
    try {
      const memory = new WebAssembly.Memory({ initial: Math.ceil(bytes / 65536) });
      const instance = new WebAssembly.Instance(new WebAssembly.Module(kernelBytes()), { page: { memory } });
      this.buffer = memory.buffer;
      this.times = instance.exports.times;
    } catch { // there is none, or a setting of the browser forbids it
      this.buffer = new ArrayBuffer(Memory.round(bytes, 8));
      this.times = (...places) => timesInScript(this.buffer, ...places);
    }
    this.input = this.reserve(4 * most(1));
    this.output = this.reserve(4 * most(0));
  }

  static round(n, to) { return Math.ceil(n / to) * to; }

  reserve(bytes) {
    const start = this.used;
    this.used = Memory.round(start + bytes, 16);
    return start;
  }
}

class Matrix {
  /* `numbers` are rows * columns integers, row by row, and `scales` one number a row. */
  constructor(memory, rows, columns, numbers, scales) {
    this.memory = memory;
    this.rows = rows;
    this.columns = columns;
    this.stride = Memory.round(columns, 8); // zeros follow, which change no sum
    this.weights = memory.reserve(rows * this.stride);
    this.scales = memory.reserve(4 * rows);
    this.numbers = new Int8Array(memory.buffer, this.weights, rows * this.stride);
    this.factors = new Float32Array(memory.buffer, this.scales, rows);
    for (let r = 0; r < rows; r++) this.numbers.set(numbers.subarray(r * columns, (r + 1) * columns), r * this.stride);
    this.factors.set(scales);
    this.input = new Float32Array(memory.buffer, memory.input, columns);
    this.output = new Float32Array(memory.buffer, memory.output, rows);
  }

  row(r) {
    const row = new Float32Array(this.columns), at = r * this.stride;
    for (let i = 0; i < row.length; i++) row[i] = this.numbers[at + i] * this.factors[r];
    return row;
  }

  times(x, bias) {
    this.input.set(x);
    this.memory.times(this.memory.output, this.weights, this.scales, this.memory.input, this.rows, this.stride);
    const y = this.output.slice();
    if (bias) add(y, bias);
    return y;
  }
}

function add(x, y) {
  for (let i = 0; i < x.length; i++) x[i] += y[i];
}
