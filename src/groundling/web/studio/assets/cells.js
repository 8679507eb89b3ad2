// A table of cells shaded by a number. Tab moves to one cell, the arrow keys to the others.
export default {
  props: { label: String, columns: Array, rows: Array, cells: Array },
  data: () => ({ description: "", row: 0, column: 0 }),
  template: `
<div v-if="cells" class="cells-box">
  <p class="description" role="status">{{ description || "Point at a cell, or move to it with the arrow keys." }}</p>
  <div class="wide"><table class="cells" role="grid" :aria-label="label" @keydown="move">
    <thead><tr><td></td><th v-for="(name, j) in columns" :key="j" scope="col">{{ name }}</th></tr></thead>
    <tbody><tr v-for="(name, i) in rows" :key="i"><th scope="row">{{ name }}</th><td v-for="(cell, j) in cells[i]" :key="j"
      :tabindex="i === here[0] && j === here[1] ? 0 : -1" :data-at="i + ' ' + j" :style="{ '--shade': cell[1].toFixed(3) }"
      @pointerenter="description = cell[2]" @focus="row = i; column = j; description = cell[2]" :aria-label="cell[2]">{{ cell[0] }}</td></tr></tbody>
  </table></div>
</div>`,
  watch: { cells() { this.description = ""; } },
  computed: {
    here() {
      const row = Math.min(this.row, this.cells.length - 1);
      return [row, Math.min(this.column, this.cells[row].length - 1)];
    },
  },
  methods: {
    move(event) {
      const by = { ArrowRight: [0, 1], ArrowLeft: [0, -1], ArrowDown: [1, 0], ArrowUp: [-1, 0] }[event.key];
      if (by === undefined || !event.target.matches("td")) return;
      event.preventDefault();
      this.$el.querySelector(`[data-at="${this.here[0] + by[0]} ${this.here[1] + by[1]}"]`)?.focus();
    },
  },
};
