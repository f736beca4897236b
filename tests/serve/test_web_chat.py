"""The web chat in headless Chromium: with the shipped model, and before a server with a script."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from puna import AsyncLLM
from puna.serve.deadlines import Stopping
from puna.serve.models import Models, Served
from puna.serve.pages import WEB
from puna.serve.stack import build
from tests.serve.scripted_backend import BREAK, FOREVER, Answer, Backend
from tests.serve.servers import in_thread

sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
Browser, Page, expect = sync_api.Browser, sync_api.Page, sync_api.expect

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="there is no chromium on this machine")

HOSTILE = """# <img src=x onerror=alert(1)> Title

<script>alert(2)</script>
<iframe src="https://evil.example/frame"></iframe>
<svg onload=alert(3)><use href="https://evil.example/x.svg#a"/></svg>
<style>body { background: url(https://evil.example/style) }</style>
<form action="https://evil.example"><input autofocus onfocus=alert(4)></form>

![pixel](https://evil.example/pixel.png) ![inline](data:image/svg+xml;base64,PHN2Zy8+)
![no script](javascript:alert(5))
[click](javascript:alert(6)) [data](data:text/html,<script>alert(7)</script>)
[space]( javascript:alert(8)) [entity](&#106;avascript:alert(9)) [vb](vbscript:alert(10))
[good](https://example.org/a?b=1&c="><script>alert(11)</script>) <javascript:alert(12)>
<https://example.org/auto> [titled](https://example.org "\\" onmouseover=\\"alert(13)")
[ref][bad] [relative](web/app.js) [host](//evil.example/x)

[bad]: javascript:alert(14) "x"

```html"><img/src=x/onerror=alert(15)>
<script>alert(16)</script><img src=x onerror=alert(17)>
```

```html
<script>alert(18)</script><img src=https://evil.example/code.png onerror=alert(19)>
```

| a | b |
|---|---|
| <img src=x onerror=alert(20)> | `<script>alert(21)</script>` |

- [ ] <details open ontoggle=alert(22)>
<a href="https://evil.example" id=app name=body style="position:fixed">raw link</a>
<math><mtext><table><mglyph><style><!--</style>
<img title="--&gt;&lt;img src=1 onerror=alert(23)&gt;">
"""

# Elements that no message may have, whatever the model wrote.
FORBIDDEN = (
    "script, img, iframe, svg, style, form, input, math, object, embed, link, meta, base, video, "
    "audio, details, [style], [id], [name], [src], [onerror], [onload], [onclick], [ontoggle]"
)


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def backend() -> Backend:
    return Backend(lambda body: ["Hello"])


@pytest.fixture(scope="module")
def scripted(backend: Backend) -> Iterator[str]:
    with in_thread(backend.app()) as server:
        yield f"{server.url}/"


@pytest.fixture
def page(browser: Browser, backend: Backend, scripted: str) -> Iterator[Page]:
    """A new visitor before the scripted server."""
    backend.requests.clear()
    backend.key = None
    backend.models = ("cria",)
    with visiting(browser, scripted) as page:
        yield page


@contextmanager
def visiting(browser: Browser, url: str, **options: Any) -> Iterator[Page]:
    """A page in a context of its own. At the end: nothing left the origin and nothing ran."""
    context = browser.new_context(**({"locale": "en-US"} | options))
    context.set_default_timeout(8000)
    page = context.new_page()
    wrong: list[str] = []

    def dismiss(dialog: Any) -> None:
        wrong.append(f"dialog: {dialog.message}")
        dialog.dismiss()

    def check_address(request: Any) -> None:
        if not request.url.startswith((url, f"blob:{url}")):
            wrong.append(f"request: {request.url}")

    def check_message(message: Any) -> None:
        if "Content Security Policy" in message.text:
            wrong.append(message.text)

    page.on("dialog", dismiss)
    page.on("pageerror", lambda error: wrong.append(f"error: {error}"))
    page.on("request", check_address)
    page.on("console", check_message)
    page.goto(url)
    expect(page.locator("#model-name")).not_to_be_empty()
    yield page
    context.close()
    assert wrong == []


def ask(page: Page, text: str) -> None:
    page.fill("#prompt", text)
    page.press("#prompt", "Enter")


def answered(page: Page, number: int = 1) -> None:
    """Waits until so many answers are there and the last is whole."""
    expect(page.locator(".turn.assistant")).to_have_count(number)
    expect(page.locator("#app.running")).to_have_count(0)


def sent(backend: Backend) -> list[tuple[str, str]]:
    return [(each["role"], each["content"]) for each in backend.requests[-1]["messages"]]


def by_last_message(body: dict[str, Any]) -> Answer:
    return [f"Answer to {body['messages'][-1]['content']}"]


def test_the_shipped_model_answers_stops_and_is_remembered(browser: Browser) -> None:
    app = build(Models([Served("cria", AsyncLLM("cria"))]), Stopping())  # closes its engine
    with in_thread(app) as server, visiting(browser, f"{server.url}/") as page:
        expect(page.locator("#model-name")).to_have_text("cria")
        page.click("#open-panel")
        page.fill("#field-temperature", "0")
        page.fill("#field-max_tokens", "24")
        page.fill("#field-system", "You tell stories.")
        ask(page, "Tell me a story about a llama.")
        answered(page)
        first = page.locator(".turn.assistant .markdown").inner_text()
        assert first.strip()
        expect(page.locator(".meta")).to_contain_text("tokens/s")
        expect(page.locator(".note")).to_contain_text("token limit")

        page.locator(".turn.assistant .regenerate").click()
        answered(page)
        expect(page.locator(".turn.assistant .markdown")).to_have_text(first)

        page.reload()
        expect(page.locator(".turn.assistant .markdown")).to_have_text(first)
        expect(page.locator("#conversations .open")).to_have_count(1)

        page.click("#open-panel")
        page.fill("#field-max_tokens", "")
        page.fill("#field-system", "")
        ask(page, "word " * 5000)
        expect(page.locator(".error")).to_contain_text("longer than the model can read")


def test_an_answer_streams_and_stops(page: Page, backend: Backend) -> None:
    backend.script = lambda body: ["One", " two", FOREVER]
    ask(page, "Count")
    expect(page.locator(".turn.assistant .markdown")).to_contain_text("One two more")
    expect(page.locator("#app.running")).to_have_count(1)
    expect(page.locator(".turn.assistant")).to_have_attribute("aria-busy", "true")
    page.keyboard.press("Escape")
    answered(page)
    expect(page.locator(".note")).to_have_text("Stopped")
    stopped_at = page.locator(".turn.assistant .markdown").inner_text()
    ask(page, "Again")
    page.click("#send")
    answered(page, 2)
    assert sent(backend) == [("user", "Count"), ("assistant", stopped_at), ("user", "Again")]


def test_regenerate_and_edit_ask_from_there(page: Page, backend: Backend) -> None:
    backend.script = by_last_message
    ask(page, "first")
    answered(page)
    ask(page, "second")
    answered(page, 2)
    backend.script = lambda body: ["Another"]
    page.locator(".turn.assistant .regenerate").last.click()
    expect(page.locator(".turn.assistant .markdown").last).to_have_text("Another")
    assert sent(backend)[-1] == ("user", "second")

    backend.script = by_last_message
    page.locator(".turn.user").first.hover()
    page.locator(".turn.user .edit").first.click()
    editor = page.locator(".editing textarea")
    expect(editor).to_be_focused()
    editor.fill("line one")
    editor.press("Shift+Enter")
    editor.type("line two")
    editor.press("Enter")
    answered(page)
    assert sent(backend) == [("user", "line one\nline two")]
    expect(page.locator("#title")).to_have_text("line one")

    page.press("#prompt", "ArrowUp")
    page.keyboard.press("Escape")
    expect(page.locator(".turn.user .bubble")).to_have_text("line one\nline two")


def test_conversations_are_kept_apart_renamed_and_deleted(page: Page, backend: Backend) -> None:
    backend.script = by_last_message
    ask(page, "llamas")
    answered(page)
    page.keyboard.press("Control+k")
    expect(page.locator("#empty")).to_be_visible()
    ask(page, "mountains")
    answered(page)
    assert sent(backend) == [("user", "mountains")]
    titles = page.locator("#conversations .open")
    expect(titles).to_have_text(["mountains", "llamas"])

    page.reload()
    expect(page.locator(".bubble")).to_have_text("mountains")
    titles.nth(1).click()
    expect(page.locator(".bubble")).to_have_text("llamas")
    titles.nth(1).press("F2")
    page.fill(".rename-field", "<b>Wool</b>")
    page.press(".rename-field", "Enter")
    expect(titles).to_have_text(["mountains", "<b>Wool</b>"])
    page.locator("#conversations li").nth(1).hover()
    page.locator("#conversations .remove").nth(1).click()
    expect(titles).to_have_text(["mountains"])
    page.click(".toast-action")
    expect(titles).to_have_text(["mountains", "<b>Wool</b>"])
    titles.nth(1).press("Delete")
    page.reload()
    expect(titles).to_have_text(["mountains"])


# The browser's database has other work for a while, as on a loaded machine.
DELETE_AND_RELOAD = """async () => {
  const opening = indexedDB.open("puna");
  await new Promise((opened) => { opening.onsuccess = opened; });
  const all = opening.result.transaction("conversations", "readwrite").objectStore("conversations");
  const occupy = () => { all.get("none").onsuccess = occupy; };
  occupy();
  document.querySelector("#conversations .remove").click();
  location.reload();
}"""


def test_what_is_deleted_stays_deleted(page: Page, backend: Backend) -> None:
    """Though the page is closed before the database has done it, and where an answer ends then."""
    backend.script = by_last_message
    ask(page, "kept")
    answered(page)
    for script in (by_last_message, lambda body: ["One", FOREVER]):
        backend.script = script
        page.keyboard.press("Control+k")
        ask(page, "deleted")
        expect(page.locator(".turn.assistant .markdown")).to_contain_text("e")
        titles = page.locator("#conversations .open")
        expect(titles).to_have_text(["deleted", "kept"])
        if script is by_last_message:
            answered(page)
            page.evaluate(DELETE_AND_RELOAD)
        else:
            titles.first.press("Delete")
        expect(titles).to_have_text(["kept"])
        page.reload()
        expect(titles).to_have_text(["kept"])


def test_settings_are_sent_and_checked(page: Page, backend: Backend) -> None:
    backend.script = by_last_message
    page.keyboard.press("Control+.")
    for name, value in {"temperature": "0.3", "top_p": "0.9", "top_k": "40", "seed": "7"}.items():
        page.fill(f"#field-{name}", value)
    page.fill("#field-max_tokens", "100")
    page.fill("#field-stop", "END\n\\n\\n")
    page.fill("#field-system", "Be brief.")
    page.fill("#field-top_k", "1.5")
    expect(page.locator("#field-top_k")).to_have_attribute("aria-invalid", "true")
    ask(page, "hello")
    answered(page)
    body = backend.requests[-1]
    wanted = {"temperature": 0.3, "top_p": 0.9, "top_k": 40, "seed": 7, "max_tokens": 100}
    assert {name: body[name] for name in wanted} == wanted
    assert body["stop"] == ["END", "\n\n"]
    assert sent(backend) == [("system", "Be brief."), ("user", "hello")]
    page.locator(".reset").click()
    ask(page, "bare")
    answered(page, 2)
    body = backend.requests[-1]
    assert (body.pop("temperature"), body.pop("top_p")) == (0.6, 0.9)
    assert set(body) == {"model", "messages", "stream", "stream_options"}


def test_export_and_import(page: Page, backend: Backend, browser: Browser, tmp_path: Path) -> None:
    backend.script = by_last_message
    ask(page, "keep me")
    answered(page)
    with page.expect_download() as download:
        page.click("#export")
    kept = tmp_path / "kept.json"
    download.value.save_as(kept)
    document = json.loads(kept.read_text(encoding="utf-8"))
    assert [each["content"] for each in document["conversations"][0]["messages"]] == [
        "keep me",
        "Answer to keep me",
    ]
    page.set_input_files("#import-file", kept)
    expect(page.locator(".toast").last).to_contain_text("1 were here already")

    document["conversations"][0]["messages"][1]["content"] = HOSTILE
    document["conversations"][0]["title"] = "<img src=x onerror=alert(1)>"
    document["conversations"][0]["messages"][1]["model"] = "<script>alert(1)</script>"
    document["conversations"][0]["extra"] = "dropped"
    kept.write_text(json.dumps(document), encoding="utf-8")
    with visiting(browser, page.url.split("#")[0]) as other:
        other.set_input_files("#import-file", kept)
        expect(other.locator("#title")).to_have_text("<img src=x onerror=alert(1)>")
        expect(other.locator(".meta")).to_contain_text("<script>")
        assert other.locator("#messages").locator(f".markdown :is({FORBIDDEN})").count() == 0
        damages = {
            "{": "not JSON",
            '{"format": "other"}': "not an export",
            json.dumps(document | {"version": 2}): "newer version",
            json.dumps(document | {"conversations": [{"messages": "x"}]}): "is damaged",
            json.dumps(document | {"conversations": [None]}): "is damaged",
        }
        for text, reason in damages.items():
            kept.write_text(text, encoding="utf-8")
            other.set_input_files("#import-file", kept)
            expect(other.locator(".toast").last).to_contain_text(reason)
        expect(other.locator("#conversations .open")).to_have_count(1)


def test_both_languages_and_themes(browser: Browser, scripted: str, backend: Backend) -> None:
    backend.key = None
    with visiting(browser, scripted, locale="zh-CN") as page:
        expect(page.locator("#new-chat span")).to_have_text("新对话")
        assert page.locator("html").get_attribute("lang") == "zh-Hans"
        page.click("#language")
        expect(page.locator("#new-chat span")).to_have_text("New chat")
        for theme in ("light", "dark"):
            page.click("#theme")
            assert page.locator("html").get_attribute("data-theme") == theme
        page.reload()
        expect(page.locator("#new-chat span")).to_have_text("New chat")
        assert page.locator("html").get_attribute("data-theme") == "dark"


def test_every_sentence_is_in_both_languages(page: Page) -> None:
    tables = page.evaluate("import('./web/i18n.js').then(({STRINGS}) => STRINGS)")
    assert tables["en"].keys() == tables["zh"].keys()
    sources = "".join(
        path.read_text(encoding="utf-8") for path in WEB.glob("*.*") if path.name != "i18n.js"
    )
    used = set(re.findall(r'data-(?:text|label|placeholder)="(\w+)"', sources))
    used |= set(re.findall(r'\bt\("(\w+)"', sources))
    assert len(used) > 50 and used <= tables["en"].keys()


@pytest.mark.parametrize(
    ("answer", "told"),
    [
        ((429, {"message": "full", "headers": {"Retry-After": "3"}}), "Try again in 3 seconds"),
        ((400, {"message": "no", "code": "context_length_exceeded"}), "longer than the model"),
        ((500, {"message": "<b>broken</b>"}), "Something went wrong"),
        (["Half an ans", BREAK], "Something went wrong"),
    ],
    ids=["busy", "context", "server", "midway"],
)
def test_errors_are_told_and_retried(
    page: Page, backend: Backend, answer: Answer, told: str
) -> None:
    backend.script = lambda body: answer
    ask(page, "lost")
    expect(page.locator(".error")).to_contain_text(told)
    backend.script = by_last_message
    ask(page, "next")  # what failed is not shown to the model
    answered(page, 2)
    assert sent(backend) == [("user", "next")]
    page.locator(".retry").click()
    answered(page)
    assert sent(backend) == [("user", "lost")]
    expect(page.locator(".turn.assistant .markdown")).to_have_text("Answer to lost")


def test_a_server_that_is_gone(page: Page, backend: Backend) -> None:
    backend.script = by_last_message
    page.route("**/v1/chat/completions", lambda route: route.abort())
    ask(page, "anyone?")
    expect(page.locator(".error")).to_contain_text("cannot be reached")
    page.unroute("**/v1/chat/completions")
    page.locator(".retry").click()
    expect(page.locator(".turn.assistant .markdown")).to_have_text("Answer to anyone?")


def test_a_key_is_asked_for_and_kept(browser: Browser, scripted: str, backend: Backend) -> None:
    backend.key = "right"
    backend.script = by_last_message
    with visiting(browser, scripted) as page:
        expect(page.locator("#field-apiKey")).to_be_focused()
        page.click("#close-panel")
        ask(page, "hello")
        expect(page.locator(".error")).to_contain_text("API key")
        expect(page.locator("#panel")).to_be_hidden()
        page.fill(".key-field", "wrong")
        first = page.locator(".key-field").element_handle()
        page.press(".key-field", "Enter")
        page.wait_for_function("field => !field.isConnected", arg=first)
        expect(page.locator(".error")).to_contain_text("API key")
        page.fill(".key-field", "right")
        page.press(".key-field", "Enter")
        expect(page.locator(".turn.assistant .markdown")).to_have_text("Answer to hello")
        page.reload()
        expect(page.locator("#model-name")).to_have_text("cria")
    backend.key = None


def test_hostile_output_stays_inert(page: Page, backend: Backend) -> None:
    pieces = [HOSTILE[start : start + 7] for start in range(0, len(HOSTILE), 7)]
    backend.script = lambda body: pieces
    ask(page, "<img src=x onerror=alert(0)>")
    answered(page)
    expect(page.locator("#title")).to_have_text("<img src=x onerror=alert(0)>")
    markdown = page.locator(".turn.assistant .markdown")
    assert markdown.locator(FORBIDDEN).count() == 0
    text = markdown.inner_text()
    for raw in (
        "<script>alert(2)</script>",
        "<iframe",
        "<svg onload",
        "<img src=x onerror=alert(20)>",
    ):
        assert raw in text, f"{raw} is not visible as text"
    links = markdown.locator("a").all()
    addresses = [link.get_attribute("href") or "" for link in links]
    assert "https://example.org/auto" in addresses
    assert all(address.startswith("https://") for address in addresses), addresses
    assert {link.get_attribute("rel") for link in links} == {"noopener noreferrer nofollow"}
    assert {link.get_attribute("target") for link in links} == {"_blank"}
    # Every attribute that is left, on any element.
    names = markdown.evaluate(
        "node => [...new Set([...node.querySelectorAll('*')].flatMap(e => e.getAttributeNames()))]"
    )
    assert set(names) <= {
        "href",
        "rel",
        "target",
        "referrerpolicy",
        "class",
        "tabindex",
        "type",
        "align",
    }
    page.reload()
    assert page.locator(f".markdown :is({FORBIDDEN})").count() == 0


def test_deep_nesting_is_shown_as_text(page: Page, backend: Backend) -> None:
    backend.script = lambda body: [">" * 20_000, " deep"]
    ask(page, "nest")
    answered(page)
    expect(page.locator(".markdown")).to_contain_text("deep")


def test_code_is_highlighted_and_copied(page: Page, backend: Backend) -> None:
    page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    backend.script = lambda body: ["```python\n", "def hum():\n", "    return 'mmm'\n", "```\n"]
    ask(page, "code")
    answered(page)
    expect(page.locator(".markdown .hljs-keyword").first).to_have_text("def")
    page.click(".copy-code")
    expect(page.locator(".copy-code")).to_have_text("Copied")
    assert page.evaluate("navigator.clipboard.readText()") == "def hum():\n    return 'mmm'"


def test_a_phone_has_all_of_it(browser: Browser, scripted: str, backend: Backend) -> None:
    backend.script = lambda body: ["word " * 300, "\n\n|" + "wide column|" * 12 + "\n|" + "-|" * 12]
    size = {"width": 390, "height": 844}
    with visiting(browser, scripted, viewport=size, is_mobile=True, has_touch=True) as page:
        ask(page, "hello")
        answered(page)
        assert page.evaluate("document.documentElement.scrollWidth") == 390
        expect(page.locator("#sidebar")).to_be_hidden()
        page.tap("#open-sidebar")
        expect(page.locator("#new-chat")).to_be_visible()
        page.tap("#new-chat")
        expect(page.locator("#sidebar")).to_be_hidden()
        page.tap("#open-panel")
        expect(page.locator("#field-temperature")).to_be_in_viewport()
        page.tap("#close-panel")
        expect(page.locator("#panel")).to_be_hidden()
