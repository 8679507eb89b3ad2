/* The form, and the painted text. */
const data = JSON.parse(document.getElementById("data").textContent);
const tokenizer = new Tokenizer(data.tokenizer);
const model = new Model(data.model, data.shapes, decoded(document.getElementById("weights")));
const field = id => document.getElementById(id);
const [text, tip, said] = ["text", "tip", "said"].map(field);
const SLICE = 20; // milliseconds of work, before the browser may draw and answer
let stopped = false;

function decoded(element) {
  const letters = atob(element.textContent), bytes = new Uint8Array(letters.length);
  for (let i = 0; i < bytes.length; i++) bytes[i] = letters.charCodeAt(i);
  element.remove();
  return bytes;
}

/* Symbols for control characters, as groundling/escape.py has them. */
function printable(text) {
  return text.replace(/[\x00-\x08\x0b-\x1f]/g, c => String.fromCharCode(0x2400 + c.charCodeAt(0)))
    .replace(/\x7f/g, "\u2421").replace(/[\x80-\x9f\u202a-\u202e\u2066-\u2069]/g, "\ufffd");
}
const visible = text => printable(text).replaceAll("\n", "↵").replaceAll("\t", "→").replaceAll(" ", "␣");
const percent = share => share < 0.001 ? "< 0.1 %" : (100 * share).toPrecision(share < 0.9995 ? 2 : 3) + " %";
const plain = id => data.tokenizer.special[id] ?? new TextDecoder().decode(tokenizer.bytes(id));

/* Tokens become text and are painted, one element for each. Those that end inside a character wait for its end. */
class Painter {
  constructor() {
    text.replaceChildren();
    this.decoder = new TextDecoder("utf-8", { ignoreBOM: true });
    this.waiting = [];
    this.ceiling = Math.log(Math.max(data.tokenizer.pieces.length, 2)); // the loss of random guessing
  }
  begin(ids) {
    const bytes = ids.flatMap(id => Array.from(tokenizer.bytes(id)));
    text.append(element("span", "given", this.decoder.decode(new Uint8Array(bytes), { stream: true })));
  }
  add(step) {
    this.waiting.push(step);
    const shown = data.tokenizer.special[step.token]
      ?? this.decoder.decode(tokenizer.bytes(step.token), { stream: true });
    if (shown) this.paint(shown);
  }
  end() {
    const rest = this.decoder.decode();
    if (rest && this.waiting.length) this.paint(rest);
  }
  paint(shown) {
    const [first] = this.waiting, probability = this.waiting.reduce((product, step) => product * step.probability, 1);
    const shade = Math.min(Math.floor(-10 * Math.log(probability) / this.ceiling), 10);
    const token = element("b", `s${shade}${first.given ? " given" : ""}`, shown);
    token.about = { probability, count: this.waiting.length, choices: first.choices };
    token.tabIndex = text.querySelector("b") ? -1 : 0; // Tab moves to one token, the arrow keys to the others
    token.role = "button";
    token.ariaLabel = `${visible(shown)}, ${percent(probability)}`;
    text.append(token);
    this.waiting = [];
  }
}

function element(tag, look, shown) {
  const made = Object.assign(document.createElement(tag), { className: look });
  printable(shown).split("\n").forEach((line, i) => {
    if (i) made.append(Object.assign(document.createElement("i"), { textContent: "↵" }), "\n");
    made.append(line);
  });
  return made;
}

function idsOf(prompt) {
  const { prefix, suffix, start } = data.tokenizer, { ids, unknown } = tokenizer.encode(prompt);
  const whole = [...prefix, ...ids, ...suffix];
  return { ids: whole.length ? whole : start, unknown };
}

async function write() {
  const number = id => field(id).valueAsNumber, { context } = data.model, prompt = idsOf(field("prompt").value);
  const seed = Number.isNaN(number("seed")) ? Math.floor(Math.random() * 2 ** 31) : number("seed");
  const options = { count: number("count"), temperature: number("temperature"), topK: number("top-k"), seed };
  const steps = generate(model, prompt.ids, options, data.tokenizer.ends), painter = new Painter();
  const start = new Context({ config: data.model, newCache() {} }, prompt.ids.length).start;
  if (!data.tokenizer.chat) painter.begin(prompt.ids.slice(0, start + 1));
  const began = performance.now();
  let slice = began, written = 0;
  for (const step of steps) {
    if (!step.given) written++;
    if (!step.given || !data.tokenizer.chat) painter.add(step);
    if (performance.now() - slice > SLICE) {
      said.textContent = step.given ? "Reading the prompt …" : `${written} tokens …`;
      await pause();
      slice = performance.now();
    }
    if (stopped) break;
  }
  painter.end();
  const seconds = (performance.now() - began) / 1000;
  const notes = [`${written} tokens in ${seconds.toFixed(1)} s, seed ${seed}.`];
  const unknown = visible(prompt.unknown.join(" "));
  if (unknown) notes.push(`Left out, since the model has no token for it: ${unknown}.`);
  if (start) notes.push(`Only the end of the prompt is used: the model reads at most ${context} tokens at once.`);
  return notes.join(" ");
}

/* Lets the browser draw and answer. Unlike a timer, it costs no time and works in a tab that is not shown. */
function pause() {
  return new Promise(resolve => {
    const { port1, port2 } = new MessageChannel();
    port1.onmessage = () => { port1.close(); resolve(); };
    port2.postMessage(null);
  });
}

field("ask").addEventListener("submit", async event => {
  event.preventDefault();
  if (field("go").disabled) return;
  hide();
  stopped = false;
  field("go").disabled = text.ariaBusy = true;
  field("stop").disabled = false;
  try {
    said.textContent = await write();
  } finally {
    field("go").disabled = text.ariaBusy = false;
    field("stop").disabled = true;
  }
});
field("stop").addEventListener("click", () => { stopped = true; });
field("prompt").addEventListener("keydown", event => {
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) field("ask").requestSubmit();
});

function hide() {
  tip.style.display = "none";
  document.querySelector("#text b.on")?.classList.remove("on");
}

function show(token) {
  hide();
  token.classList.add("on");
  const { probability, count, choices } = token.about;
  tip.textContent = `probability ${percent(probability)}${count > 1 ? ` (${count} tokens)` : ""}\nmost likely here:`
    + choices.map(([id, share]) => `\n  “${visible(plain(id))}”  ${percent(share)}`).join("");
  tip.style.display = "block";
  const box = token.getClientRects()[0], edge = document.documentElement.clientWidth - tip.offsetWidth - 8;
  tip.style.left = Math.max(8, Math.min(box.left, edge)) + scrollX + "px";
  const below = box.bottom + 6, fits = below + tip.offsetHeight < innerHeight;
  tip.style.top = (fits ? below : Math.max(0, box.top - tip.offsetHeight - 6)) + scrollY + "px";
}

function point(event) {
  const token = event.target.closest?.("#text b");
  if (token) show(token);
  else if (!document.activeElement?.closest("#text b")) hide();
}
document.addEventListener("pointerover", point);
document.addEventListener("click", event => {
  const token = event.target.closest?.("#text b");
  if (token) show(token);
  else hide();
});
text.addEventListener("focusin", event => show(event.target.closest("b")));
text.addEventListener("focusout", hide);
text.addEventListener("keydown", event => {
  const here = event.target.closest("b"), tokens = [...text.querySelectorAll("b")], at = tokens.indexOf(here);
  if (event.key === "Escape") hide();
  const to = { ArrowRight: at + 1, ArrowLeft: at - 1, Home: 0, End: tokens.length - 1 }[event.key];
  if (at < 0 || !tokens[to]) return;
  event.preventDefault();
  here.tabIndex = -1;
  tokens[to].tabIndex = 0;
  tokens[to].focus();
});
