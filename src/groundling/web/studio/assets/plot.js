// A chart laid out by reporting/charts.py: positions in percent, curves as SVG paths. Styled by reporting/chart.css.
const whole = new Intl.NumberFormat("en");

export default {
  props: { chart: Object, last: Number, axis: String },
  data: () => ({ at: null }),
  template: `
<figure v-if="chart" class="chart" :class="{ reading: at !== null }" :data-chart="chart.key">
  <figcaption><b>{{ chart.title }}</b> <span v-if="chart.unit" class="soft">{{ chart.unit }}</span>
    <span v-for="(curve, i) in named" class="key" :class="curve.look">{{ named.length > 1 ? curve.name : "" }}
      <output>{{ reading(i) }}</output></span>
    <span class="soft">{{ at === null ? "" : "at " + (axis === "step" ? "step " + whole(at) : whole(at) + " s") }}</span>
    <span v-if="chart.best" class="mark validation">{{ chart.best.label }}</span></figcaption>
  <div class="plot" @pointermove="point" @pointerdown="point" @pointerleave="at = null">
    <i v-for="tick in chart.up" class="up" :style="{ top: tick.top + '%' }">{{ tick.label }}</i>
    <i v-for="tick in chart.across" class="across" :style="{ left: tick.left + '%' }">{{ tick.label }}</i>
    <template v-for="line in chart.lines"><i class="line" :style="{ top: line.top + '%' }"></i><span class="name"
      :style="{ top: line.label_top + '%' }">{{ line.label }}</span></template>
    <svg viewBox="0 0 1000 1000" preserveAspectRatio="none" role="img" :aria-label="chart.said">
      <template v-for="curve in chart.curves"><path :class="curve.look" :d="curve.path"/><path v-if="curve.dots"
        class="dots" :class="curve.look" :d="curve.dots"/></template>
    </svg>
    <i class="cursor" :style="{ left: 100 * (at ?? last) / Math.max(last, 1) + '%' }"></i>
    <i v-if="chart.best" class="star validation" :style="{ left: chart.best.left + '%', top: chart.best.top + '%' }"></i>
  </div>
</figure>`,
  computed: {
    named() { return this.chart.curves.filter((curve) => curve.look !== "raw"); },
  },
  methods: {
    whole(number) { return whole.format(number); },
    reading(i) {
      const curve = this.chart.readings[i];
      if (this.at === null) return curve.y.at(-1);
      const distance = curve.x.map((x) => Math.abs(x - this.at));
      return curve.y[distance.indexOf(Math.min(...distance))];
    },
    point(event) {
      const box = event.currentTarget.getBoundingClientRect();
      this.at = Math.round(this.last * Math.min(Math.max((event.clientX - box.left) / box.width, 0), 1));
    },
  },
};
