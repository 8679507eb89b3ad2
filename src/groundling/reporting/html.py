"""HTML pages: one style for all, and each page a single file that needs no network."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Sequence
from functools import cache
from importlib import resources
from typing import Any

from groundling.escape import printable


def render(template: str, script: str | Sequence[str] = "", **values: Any) -> str:
    """Render a template of this package, such as `checkup/page.html`.

    All values are escaped. `script`, a file or several that are joined, is the only code that can run in the page: a
    Content Security Policy names it by its hash, so code that comes with a text stays text.
    """
    files = [script] if isinstance(script, str) else script
    code = "".join(resources.files("groundling").joinpath(file).read_text(encoding="utf-8") for file in files if file)
    digest = base64.b64encode(hashlib.sha256(code.encode()).digest()).decode()
    page: str = _environment().get_template(template).render(script=code, script_hash=digest, **values)
    return page


@cache
def _environment() -> Any:
    import jinja2

    loader = jinja2.PackageLoader("groundling", "")
    environment = jinja2.Environment(
        loader=loader, autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= {
        "thousands": "{:,}".format,
        "percent": lambda share: f"{100 * share:.1f} %",
        "visible": printable,
    }
    environment.policies["json.dumps_kwargs"] = {"ensure_ascii": False}
    return environment
