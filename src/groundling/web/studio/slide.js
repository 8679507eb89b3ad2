// A slider as the browser has it: every key works, and while it is moved nothing pulls it back.
export default {
  props: { label: String, low: Number, high: Number, step: Number, value: Number },
  emits: ["moved"],
  data() { return { now: this.value }; },
  watch: { value(value) { this.now = value; } },
  template: `<input type="range" class="slide" :aria-label="label" :min="low" :max="high" :step="step" :value="now"
    @input="now = $event.target.valueAsNumber; $emit('moved', now)">`,
};
