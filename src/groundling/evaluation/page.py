"""A text, painted by what it cost a model: one page of HTML that needs no network and no other file."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from html import escape
from string import Template
from typing import Any

from groundling.evaluation.losses import TokenLoss
from groundling.evaluation.score import Score

_SHADES = 10
_CONTROL = {code: 0x2400 + code for code in range(32) if chr(code) not in "\t\n"} | {0x7F: 0x2421}  # their pictures


def loss_page(
    title: str, beginning: str, losses: Sequence[TokenLoss], score: Score, n_tokens: int, vocab_size: int
) -> str:
    """The page: figures above, the text with each token painted below.

    `score` and `n_tokens` are of the text as a whole, of which `losses` may be the first part; `beginning` is its first
    token, which nothing predicts. The darkest shade is a loss of log(vocab_size), that of a blind guess, and more.
    Tokens that end inside of a character are painted together with those that finish it.
    """
    units = _units(losses)
    ceiling = math.log(max(vocab_size, 2))
    figures = [
        ("loss", f"{score.loss:.4f} nats a token"),
        ("perplexity", f"{score.perplexity:.3f}"),
        ("bits per character", f"{score.bits_per_character:.4f}"),
        ("bits per byte", f"{score.bits_per_byte:.4f}"),
        ("windows", score.protocol),
        ("scored", f"{score.tokens:,} tokens"),
        (
            "painted",
            "all tokens" if len(losses) + 1 == n_tokens else f"the first {len(losses):,} of {n_tokens:,} tokens",
        ),
    ]
    painted = "".join(
        f'<b class="s{min(int(_SHADES * loss / ceiling), _SHADES)}">{_visible(text)}</b>' for text, loss, *_ in units
    )
    table = "".join(f"<div><dt>{escape(name)}</dt><dd>{escape(value)}</dd></div>" for name, value in figures)
    legend = "".join(f'<b class="s{i}">&nbsp;&nbsp;</b>' for i in range(_SHADES + 1))
    # "<" could end the script; as JSON's own escape it cannot.
    data = json.dumps([[round(loss, 4), n, choices] for _, loss, n, choices in units]).replace("<", "\\u003c")
    return _PAGE.substitute(
        title=escape(title), table=table, legend=legend, ceiling=f"{ceiling:.2f}", beginning=_visible(beginning),
        painted=painted, data=data,
    )  # fmt: skip


def _units(losses: Sequence[TokenLoss]) -> list[tuple[str, float, int, list[list[Any]]]]:
    """Text, loss, number of tokens and the first token's choices of each piece that can be shown."""
    units, pending = [], list[TokenLoss]()
    for each in losses:
        pending.append(each)
        if each.text or each is losses[-1]:
            choices = [[_visible_text(text), round(share, 4)] for text, share in pending[0].choices]
            units.append((each.text, sum(part.loss for part in pending), len(pending), choices))
            pending = []
    return units


def _visible(text: str) -> str:
    return escape(text.translate(_CONTROL)).replace("\n", "<i>↵</i>\n")


def _visible_text(text: str) -> str:
    return text.translate(_CONTROL).replace("\n", "↵").replace("\t", "→").replace(" ", "␣")


_PAGE = Template(
    """\
<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'; \
script-src 'unsafe-inline'">
<title>$title</title>
<style>
:root { color-scheme: light dark; --paint: 224 82 30; --line: #ccc; --soft: #666; --card: #fff; }
@media (prefers-color-scheme: dark) { :root { --paint: 255 106 48; --line: #444; --soft: #aaa; --card: #222; } }
body { font: 16px/1.5 system-ui, sans-serif; margin: 0 auto; max-width: 60rem; padding: 1rem; }
h1 { font-size: 1.3rem; margin: 0 0 .75rem; overflow-wrap: anywhere; }
dl { display: grid; grid-template-columns: repeat(auto-fill, minmax(9.5rem, 1fr)); gap: .5rem 1rem; margin: 0 0 1rem; }
dt, .legend { color: var(--soft); font-size: .85rem; }
dd { margin: 0; font-variant-numeric: tabular-nums; overflow-wrap: anywhere; }
.legend b { margin: 0; }
#text { border-top: 1px solid var(--line); padding-top: 1rem; white-space: pre-wrap; overflow-wrap: anywhere;
  font: 15px/1.75 ui-monospace, "Cascadia Mono", Menlo, Consolas, monospace; tab-size: 4; }
b { font-weight: inherit; border-radius: 2px; padding: .12em 0; cursor: default; }
#text b:hover, #text b.on { outline: 2px solid; }
i { font-style: normal; opacity: .4; font-size: .8em; }
$shades
#tip { position: absolute; display: none; background: var(--card); border: 1px solid var(--line); border-radius: 6px;
  padding: .4rem .6rem; font-size: .85rem; line-height: 1.45; max-width: 15rem; box-shadow: 0 2px 8px #0005;
  pointer-events: none; white-space: pre-wrap; overflow-wrap: anywhere; }
</style>
<h1>$title</h1>
<dl>$table</dl>
<p class="legend">Loss of each token: $legend from 0 (certain) to $ceiling nats (a blind guess) and more.
Point at a token, or tap it.</p>
<div id="text" dir="auto">$beginning$painted</div>
<div id="tip" role="status"></div>
<script id="data" type="application/json">$data</script>
<script>
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
    + "\\nprobability " + percent(Math.exp(-loss)) + "\\nits own first choices:"
    + choices.map(([text, p]) => "\\n  “" + text + "”  " + percent(p)).join("");
  tip.style.display = "block";
  const box = token.getClientRects()[0], edge = document.documentElement.clientWidth - tip.offsetWidth - 8;
  tip.style.left = Math.max(8, Math.min(box.left, edge)) + scrollX + "px";
  const below = box.bottom + 6, fits = below + tip.offsetHeight < innerHeight;
  tip.style.top = (fits ? below : Math.max(0, box.top - tip.offsetHeight - 6)) + scrollY + "px";
}
document.addEventListener("pointerover", show);
document.addEventListener("click", show);
</script>
</html>
""".replace("$shades", "\n".join(f".s{i} {{ background: rgb(var(--paint) / {i / 15:.2f}); }}" for i in range(11)))
)
