"use strict";
const data = JSON.parse(document.getElementById("data").textContent);
const tip = document.getElementById("tip");
const percent = p => (100 * p).toPrecision(p < 0.9995 ? 2 : 3) + " %";
document.querySelectorAll("#text b").forEach((token, i) => { token.place = i; });
function show(event) {
  const token = event.target.closest("#text b");
  document.querySelector("#text b.on")?.classList.remove("on");
  if (!token) { tip.style.display = "none"; return; }
  token.classList.add("on");
  const [loss, count, choices] = data[token.place];
  tip.textContent = "loss " + loss.toFixed(2) + " nats" + (count > 1 ? " in " + count + " tokens" : "")
    + "\nprobability " + percent(Math.exp(-loss)) + "\nmost likely here:"
    + choices.map(([text, p]) => "\n  “" + text + "”  " + percent(p)).join("");
  tip.style.display = "block";
  const box = token.getClientRects()[0], edge = document.documentElement.clientWidth - tip.offsetWidth - 8;
  tip.style.left = Math.max(8, Math.min(box.left, edge)) + scrollX + "px";
  const below = box.bottom + 6, fits = below + tip.offsetHeight < innerHeight;
  tip.style.top = (fits ? below : Math.max(0, box.top - tip.offsetHeight - 6)) + scrollY + "px";
}
document.addEventListener("pointerover", show);
document.addEventListener("click", show);
