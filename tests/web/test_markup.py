"""The API in a real browser: markup in responses stays text, and no page can use the API."""

from __future__ import annotations

import copy
import json
from typing import Any
from urllib.parse import quote

import pytest
from asked import serving

from groundling.web.loaded_model import LoadedModel

MARKUP = "<img src=x onerror=document.title='owned'><script>document.title='owned'</script>"


@pytest.mark.parametrize(
    "path", ["/v1/models", f"/v1/{quote(MARKUP)}", f"/v1/models/{quote(MARKUP)}?{MARKUP}", "/metrics"]
)
def test_markup_stays_text(browser: Any, models: list[LoadedModel], path: str) -> None:
    named = copy.copy(models[0])
    named.name = MARKUP
    with serving([named]) as server:
        page = browser.new_page()
        page.goto(server.url + path)
        page.wait_for_timeout(100)
        assert page.title() == ""
        assert page.locator("img, script").count() == 0
        shown = page.locator("body").inner_text()
        page.close()
    assert path == "/v1/models" or "error" in shown or "groundling_" in shown
    assert path != "/v1/models" or json.loads(shown)["data"][0]["id"] == MARKUP


def test_no_page_uses_the_api(browser: Any, models: list[LoadedModel]) -> None:
    """Neither a page of another site, with a script or a form, nor a response of the server itself."""
    asking = "fetch('%s', {method: 'POST', body: '{\"prompt\": \"The \"}'}).then(r => r.text()).catch(e => 'refused')"
    with serving(models[:1]) as server:
        address = f"{server.url}/v1/completions"
        page = browser.new_page()
        page.goto(f"{server.url}/health")
        assert page.evaluate(asking % address) == "refused"
        page.goto("data:text/html,<title>elsewhere</title>")
        assert page.evaluate(asking % address) == "refused"
        fields = """<form method=post enctype=text/plain><input name='{"prompt": "The ", "x' value='": 1}'></form>"""
        page.set_content(fields)
        page.evaluate("address => { const form = document.forms[0]; form.action = address; form.submit() }", address)
        page.wait_for_url(address)
        assert json.loads(page.locator("body").inner_text())["error"]["code"] == "origin_not_allowed"
        page.close()
        assert server.figures()["generated_tokens"] == 0
