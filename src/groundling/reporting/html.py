"""HTML pages: one style for all, and each page one file that needs no other and no network."""

from __future__ import annotations

import base64
import hashlib
from functools import cache
from importlib import resources
from typing import Any

from groundling.escape import printable


def render(template: str, script: str = "", **values: Any) -> str:
    """The page made from a template of this package, such as `checkup/page.html`.

    Whatever is inserted is escaped. `script` is the only code that can run in the page, which names it by its hash
    (Content Security Policy): what slipped into the page with a text would stay text.
    """
    code = resources.files("groundling").joinpath(script).read_text(encoding="utf-8") if script else ""
    digest = base64.b64encode(hashlib.sha256(code.encode()).digest()).decode()
    page: str = _environment().get_template(template).render(script=code, script_hash=digest, **values)
    return page


@cache
def _environment() -> Any:
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("groundling", ""), autoescape=True, undefined=jinja2.StrictUndefined,
        trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    environment.filters |= {
        "thousands": "{:,}".format,
        "percent": lambda share: f"{100 * share:.1f} %",
        "visible": printable,
    }
    environment.policies["json.dumps_kwargs"] = {"ensure_ascii": False}
    return environment
