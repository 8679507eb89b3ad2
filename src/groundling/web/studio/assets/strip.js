// Generated text, token by token. Tab moves to one token, the arrow keys to the others. The token under the pointer or
// with the focus shows its alternatives.
const percent = (share) => share < 0.001 ? "< 0.1 %" : (100 * share).toFixed(share < 0.0995 ? 1 : 0) + " %";
const visible = (text) => text.replaceAll(" ", "␣").replaceAll("\n", "↵").replaceAll("\t", "⇥") || "…";

export default {
  props: { label: String },
  emits: ["branch"],
  data: () => ({ prompt: "", tokens: [], copied: [], at: null, held: false, home: 0, left: 0, top: 0 }),
  template: `
<div class="strip-box" @keydown.esc="close" @pointerleave="leave" @focusout="focusLeft">
  <div class="strip" role="group" :aria-label="label" dir="auto" @keydown="move"><span class="prompt">{{ prompt }}</span><span
    v-for="(token, i) in tokens" :key="i" class="token" :class="{ copied: copied[i] === 1, again: copied[i] === 2, on: i === at }"
    role="button" :tabindex="i === home ? 0 : -1" :data-i="i" :aria-label="describe(i)" :aria-expanded="i === at"
    :style="{ '--shade': shade(token[1]) }" @pointerenter="hover(i, $event)" @click="hold(i, $event)" @focus="hold(i, $event)"
    >{{ token[0] === "\\n" ? "↵\\n" : token[0] }}</span></div>
  <div v-if="at !== null" ref="choices" class="choices" role="group" :aria-label="'Alternatives to ' + visible(tokens[at][0])"
    :style="{ left: left + 'px', top: top + 'px' }" @keydown="choose">
    <p><b>{{ visible(tokens[at][0]) }}</b> {{ percent(tokens[at][1]) }}<span v-if="copied[at]" class="soft"> · copied</span></p>
    <button v-for="(choice, n) in tokens[at][2]" :key="n" type="button" :class="{ taken: choice[0] === tokens[at][0] }"
      :aria-label="visible(choice[0]) + ', ' + percent(choice[1]) + ': continue from here'" @click="$emit('branch', { at, choice: n })"
      ><span class="what">{{ visible(choice[0]) }}</span><span class="bar" :style="{ width: 100 * choice[1] + '%' }"></span><span
      class="share">{{ percent(choice[1]) }}</span></button>
  </div>
</div>`,
  mounted() { document.addEventListener("pointerdown", this.elsewhere); },
  unmounted() { document.removeEventListener("pointerdown", this.elsewhere); },
  methods: {
    elsewhere(event) { if (!event.target.closest?.(".token, .choices")) this.forget(); },
    focusLeft(event) { if (event.relatedTarget && !this.$el.contains(event.relatedTarget)) this.forget(); },
    forget() { Object.assign(this, { held: false, at: null }); },
    percent, visible,
    begin(prompt, tokens) {
      Object.assign(this, { prompt, tokens, copied: [], at: null, held: false, home: 0 });
    },
    add(tokens) { this.tokens.push(...tokens); },
    mark(copied) { this.copied = copied; },
    shade(probability) { return Math.min(-Math.log(Math.max(probability, 1e-9)) / 5, 1).toFixed(3); },
    describe(i) {
      const [text, probability] = this.tokens[i];
      return visible(text) + ", " + percent(probability) + (this.copied[i] ? ", copied" : "");
    },
    place(i, target) {
      const box = this.$el.getBoundingClientRect();
      const rect = target.getClientRects()[0] ?? target.getBoundingClientRect();
      this.left = Math.max(0, Math.min(rect.left - box.left, box.width - 224));
      this.top = rect.bottom - box.top;
      this.at = i;
    },
    hover(i, event) { if (!this.held && event.pointerType === "mouse") this.place(i, event.currentTarget); },
    hold(i, event) { this.held = true; this.home = i; this.place(i, event.currentTarget); },
    leave() { if (!this.held) this.at = null; },
    close() {
      if (this.$refs.choices?.contains(document.activeElement)) this.token(this.at).focus({ preventScroll: true });
      this.forget();
    },
    token(i) { return this.$el.querySelector(`[data-i="${i}"]`); },
    move(event) {
      if (!event.target.matches(".token")) return;
      const by = { ArrowRight: 1, ArrowLeft: -1, Home: -this.tokens.length, End: this.tokens.length }[event.key];
      if (by !== undefined) {
        this.token(Math.min(Math.max(this.home + by, 0), this.tokens.length - 1)).focus();
      } else if (["ArrowDown", "Enter", " "].includes(event.key)) {
        this.hold(this.home, { currentTarget: event.target });
        this.$nextTick(() => this.$refs.choices.querySelector("button").focus());
      } else return;
      event.preventDefault();
    },
    choose(event) {
      const by = { ArrowDown: "nextElementSibling", ArrowUp: "previousElementSibling" }[event.key];
      if (by === undefined) return;
      event.preventDefault();
      const next = event.target[by];
      if (next?.matches("button")) next.focus(); else if (event.key === "ArrowUp") this.token(this.at).focus();
    },
  },
};
