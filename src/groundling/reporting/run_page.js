"use strict";
const data = JSON.parse(document.getElementById("data").textContent);
const slider = document.getElementById("time"), play = document.getElementById("play");
const whole = new Intl.NumberFormat("en");

/* Every chart shows its values at `step` and marks it. Without a step, it shows those at the end of the run. */
function read(step) {
  document.body.style.setProperty("--at", 100 * (step ?? data.last) / Math.max(data.last, 1) + "%");
  for (const figure of document.querySelectorAll("[data-chart]")) {
    figure.classList.toggle("reading", step !== null);
    figure.querySelector("[data-step]").textContent = step === null ? "" : "at step " + whole.format(step);
    const outputs = figure.querySelectorAll("output");
    data.charts[figure.dataset.chart].readings.forEach((curve, i) => {
      outputs[i].textContent = curve.y[step === null ? curve.y.length - 1 : nearest(curve.x, step)];
    });
  }
}

function nearest(steps, wanted) {
  const distance = i => Math.abs(steps[i] - wanted);
  return steps.reduce((best, _, i) => distance(i) <= distance(best) ? i : best, 0);
}

function point(event) {
  const plot = event.target.closest?.("[data-chart] .plot");
  if (!plot) { read(null); return; }
  const box = plot.getBoundingClientRect(), share = (event.clientX - box.left) / box.width;
  read(Math.round(data.last * Math.min(Math.max(share, 0), 1)));
}
document.addEventListener("pointermove", point);
document.addEventListener("pointerdown", point);

function element(tag, look, text) {
  return Object.assign(document.createElement(tag), { className: look, textContent: text });
}

function show() {
  const slide = data.slides[slider.valueAsNumber];
  const pieces = slide.pieces.map(([text, mark]) => mark ? element("mark", mark === 2 ? "two" : "", text) : text);
  document.getElementById("sample").replaceChildren(element("span", "soft", slide.prompt), ...pieces);
  document.getElementById("said").textContent = slide.said;
  slider.setAttribute("aria-valuetext", slide.said);
  read(slide.step);
}

const when = document.getElementById("when");
function showReplies() {
  const slide = data.rollouts[when.valueAsNumber];
  document.getElementById("groups").replaceChildren(...slide.groups.map(group => {
    const card = element("div", "group card", ""), prompt = element("p", "prompt", group.prompt);
    prompt.dir = "auto";
    card.append(prompt, ...group.replies.map(([reward, text, share]) => {
      const line = element("p", "reply", ""), value = element("b", "", reward), said = element("span", "", text);
      value.style.setProperty("--share", share);
      said.dir = "auto";
      line.append(value, said);
      return line;
    }));
    return card;
  }));
  document.getElementById("told").textContent = slide.said;
  when.setAttribute("aria-valuetext", slide.said);
  read(slide.step);
}
when?.addEventListener("input", showReplies);

let timer = 0;
function stop() {
  clearInterval(timer);
  timer = 0;
  play.textContent = "Play";
}
function advance() {
  if (slider.valueAsNumber >= data.slides.length - 1) { stop(); return; }
  slider.value = slider.valueAsNumber + 1;
  show();
}
slider?.addEventListener("input", () => { stop(); show(); });
play?.addEventListener("click", () => {
  if (timer) { stop(); return; }
  if (slider.valueAsNumber >= data.slides.length - 1) { slider.value = 0; show(); }
  play.textContent = "Pause";
  timer = setInterval(advance, 700);
});
