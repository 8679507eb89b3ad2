// The browser's own slider: all its keys work, and updates from the server do not fight the user's moves.
export default {
  props: { label: String, low: Number, high: Number, step: Number, value: Number },
  emits: ["moved"],
  data() { return { now: this.value }; },
  watch: { value(value) { this.now = value; } },
  template: `<input type="range" class="slide" :aria-label="label" :min="low" :max="high" :step="step" :value="now"
    @input="now = $event.target.valueAsNumber; $emit('moved', now)">`,
};
