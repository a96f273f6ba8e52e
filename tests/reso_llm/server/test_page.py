"""The page in a real browser that nobody sees: what a person does, and what a person must not meet.

Skipped where no browser is installed (on Debian `apt-get install chromium`).
"""

import json
import re
import time

import pytest

pytest.importorskip("uvicorn", reason="the server needs the extra web")
pytest.importorskip("playwright", reason="the page needs the extra test")

from serving import endless, running, tiny_engine, until

from benchmarks.kit.browser import BROWSER, started
from reso_llm.server.facts import TokenReader

pytestmark = pytest.mark.skipif(BROWSER is None, reason="no browser: install chromium")
REPLY = ".exchange:last-child .reply"


@pytest.fixture(scope="module")
def browser():
    with started() as browser:
        yield browser


@pytest.fixture(scope="module")
def served(byte_tokenizer):
    from conftest import make_tiny_model

    engine = tiny_engine(make_tiny_model, byte_tokenizer, max_seq_len=128)
    with running(engine) as (address, _):
        yield address


@pytest.fixture
def page(browser, served):
    with opened(browser, served) as page:
        yield page


class opened:
    """A page of its own, which asks nobody but the server and reports no error."""

    def __init__(self, browser, address, expected=None, **options):
        """expected: words of an error that may be reported."""
        self.expected, self.context = expected, browser.new_context(**options)
        self.context.add_init_script("crypto.getRandomValues = (array) => array.fill(6)")
        self.page, self.address, self.errors = self.context.new_page(), address, []

    def __enter__(self):
        page = self.page
        page.set_default_timeout(20_000)
        page.on("pageerror", lambda error: self.errors.append(str(error)))
        page.on("console", lambda m: m.type == "error" and self.errors.append(m.text))
        page.on("request", lambda r: r.url.startswith(self.address) or self.errors.append(r.url))
        page.goto(self.address)
        page.wait_for_selector("body[data-ready]")
        page.evaluate(SHORT)
        return page

    def __exit__(self, *_):
        self.context.close()
        assert [e for e in self.errors if self.expected is None or self.expected not in e] == []


SHORT = """() => {
    const slider = document.getElementById("max_tokens");
    slider.value = 24;
    slider.dispatchEvent(new Event("input"));
}"""


def say(page, text):
    """Send a message, and wait for the end of the reply."""
    count = page.locator(".exchange").count()
    page.fill("#question", text)
    page.keyboard.press("Enter")
    page.wait_for_selector(f".exchange:nth-child({count + 1}) .reply .facts")


def words(page, which=f"{REPLY}:not(.other)"):
    return page.locator(f"{which} .words").text_content()


def kept(page):
    """The conversation as the browser keeps it."""
    return json.loads(page.evaluate("localStorage.getItem('reso.page')"))["exchanges"]


def test_tokens_come_one_by_one_with_their_measures(page):
    page.evaluate(COUNTING)
    say(page, "hello there")
    counts = page.evaluate("window.counts")
    assert len(counts) > 3
    assert counts == sorted(counts)
    (exchange,) = kept(page)
    tokens = exchange["reply"]["tokens"]
    spans = page.locator(f"{REPLY} .token")
    assert spans.count() == len(tokens) > 3
    for t in (0, len(tokens) - 1):
        share = spans.nth(t).evaluate("e => Number(e.style.getPropertyValue('--entropy'))")
        assert share == pytest.approx(tokens[t]["entropy_nats"] / 5.565, abs=2e-3)
    thick = [spans.nth(t).evaluate("e => parseFloat(getComputedStyle(e).borderBottomWidth)")
             for t in range(len(tokens))]  # fmt: skip
    entropies = [token["entropy_nats"] for token in tokens]
    assert thick[entropies.index(max(entropies))] == max(thick)
    assert page.locator(f"{REPLY} .chart.entropy rect").count() == len(tokens)
    assert page.locator(f"{REPLY} .chart.coherence polyline").count() == 1
    assert page.locator(f"{REPLY} .chart.stability rect").count() == len(tokens)


# Notes how many tokens there are each time that the conversation changes while it is written.
COUNTING = """() => {
    window.counts = [];
    const note = () => {
        const count = document.querySelectorAll("[aria-busy] .token").length;
        if (count && count !== window.counts.at(-1)) window.counts.push(count);
    };
    const changes = {childList: true, subtree: true};
    new MutationObserver(note).observe(document.getElementById("exchanges"), changes);
}"""


def test_a_token_tells_what_was_measured(page):
    say(page, "hello")
    tokens = kept(page)[0]["reply"]["tokens"]
    t = next(t for t in range(2, len(tokens)) if tokens[t]["text"].strip())
    token = tokens[t]
    page.locator(f"{REPLY} .token").nth(t).hover()
    told = page.locator("#inspected").inner_text()
    assert f"{token['surprise_nats']:.2f} nats" in told
    assert f"{token['entropy_nats']:.2f} of 5.6 nats" in told
    assert f"{token['layers']} of 2" in told
    assert f"order parameter\n{token['coherence']:.2f}" in told
    assert "read before" in told
    assert page.locator(".alternatives li").count() == 5
    assert page.locator(f"{REPLY} .token.shown").count() == 1


def test_the_keyboard_reaches_every_token(page):
    say(page, "hello")
    first = page.locator(f"{REPLY} .token").first
    first.focus()
    for t in (2, 3):
        page.keyboard.press("ArrowRight")
        assert f" {t} of " in page.locator(".shown-token").text_content()
    page.keyboard.press("End")
    number, count = re.search(
        r"(\d+) of (\d+)", page.locator(".shown-token").text_content()
    ).groups()
    assert number == count
    page.keyboard.press("Escape")
    assert page.locator(".shown-token").count() == 0


def test_a_goal_is_pursued_and_shown(page):
    page.fill("#goal", "music")
    say(page, "hello")
    assert kept(page)[0]["asked"]["reso"]["goal"] == "music"
    assert "goal: music" in page.locator(".question").inner_text()
    assert "goal “music”" in page.locator(f"{REPLY} .facts").inner_text()


def test_what_is_told_is_remembered_and_dated(page):
    page.fill("#fact", "Zork lives in Quendor.")
    page.click("#remember button")
    item = page.locator("#memories li", has_text="Zork lives").first
    item.locator("summary").click()
    assert "Just now" in item.inner_text()
    say(page, "where does Zork live?")
    page.locator("#memories [open] p", has_text="1 text ago").first.wait_for()


def test_a_silent_stage_stands_beside_the_same_reply(page):
    say(page, "abcabcabcabc")
    before, seed = words(page), kept(page)[0]["asked"]["seed"]
    page.uncheck("#switch-prsc")
    page.wait_for_selector(f"{REPLY}.other .difference")
    assert words(page) == before
    assert page.locator(f"{REPLY}.other h3").inner_text() == "without Binding memory"
    other = kept(page)[0]["other"]
    assert other["asked"]["reso"]["without"] == ["prsc"]
    assert other["seed"] == seed
    first, second = (page.locator(s).bounding_box() for s in
                     (f"{REPLY}:not(.other)", f"{REPLY}.other"))  # fmt: skip
    assert first["y"] == second["y"]
    assert first["x"] < second["x"]
    assert page.locator(f"{REPLY}.other .differs").count() == 1
    page.check("#switch-prsc")
    page.wait_for_selector(f"{REPLY}.other", state="detached")
    page.uncheck("#switch-prsc")  # the next reply is written without it
    page.wait_for_selector(f"{REPLY}.other .difference")
    say(page, "more")
    assert kept(page)[1]["asked"]["reso"]["without"] == ["prsc"]


def test_a_slip_is_a_bolt_where_it_happens(page):
    page.check("#switch-phase_slip")
    page.evaluate("""() => {
        const slider = document.getElementById("temperature");
        slider.value = 0;
        slider.dispatchEvent(new Event("input"));
        document.getElementById("max_tokens").value = 96;
        document.getElementById("max_tokens").dispatchEvent(new Event("input"));
    }""")
    for text in ("aaaa", "abab", "hello", "zzzz"):
        say(page, text)
        if page.locator(f"{REPLY} .words .mark.slip").count():
            break
    tokens = kept(page)[-1]["reply"]["tokens"]
    slips = [t for t, token in enumerate(tokens) if token.get("events")]
    assert slips
    bolts = page.locator(f"{REPLY} .words .mark.slip")
    assert bolts.count() == page.locator(f"{REPLY} .chart.events .mark.slip").count() == len(slips)
    assert bolts.first.evaluate("e => Number(e.parentElement.dataset.t)") == slips[0]
    assert "phase slip" in bolts.first.get_attribute("aria-label")


def test_a_reload_keeps_the_conversation_and_the_settings(page):
    page.fill("#goal", "music")
    say(page, "hello")
    say(page, "and now?")
    texts = page.locator(".words").all_text_contents()
    page.reload()
    page.wait_for_selector("body[data-ready]")
    assert page.locator(".words").all_text_contents() == texts
    assert page.input_value("#goal") == "music"
    assert page.input_value("#max_tokens") == "24"
    page.locator(f"{REPLY} .token").first.focus()
    assert page.locator(".alternatives li").count() == 5
    say(page, "third")  # the model reads those before it
    page.click("#new")
    assert page.locator(".exchange").count() == 0
    assert kept(page) == []


def test_the_earlier_turns_are_read(page):
    asked = []
    page.on("request", lambda r: r.post_data and asked.append(json.loads(r.post_data)))
    say(page, "hello")
    say(page, "and now?")
    first = kept(page)[0]["reply"]["tokens"]
    assert [message["content"] for message in asked[-1]["messages"]] == [
        "hello", "".join(token["text"] for token in first), "and now?",
    ]  # fmt: skip


def test_stop_ends_the_reply_and_frees_the_slot(browser, byte_tokenizer, monkeypatch):
    from conftest import make_tiny_model

    def slowly(*arguments, certain=TokenReader.certain):
        time.sleep(0.02)
        return certain(*arguments)

    monkeypatch.setattr(TokenReader, "certain", slowly)
    engine = tiny_engine(make_tiny_model, byte_tokenizer)
    endless(engine)
    with running(engine) as (address, desk), opened(browser, address) as page:
        page.evaluate(SHORT.replace("slider.value = 24", "slider.max = slider.value = 2048"))
        page.fill("#question", "hello")
        page.keyboard.press("Enter")
        page.wait_for_selector(f"{REPLY} .token:nth-child(5)", state="attached")
        page.reload()  # half a reply is kept
        page.wait_for_selector(f"{REPLY} .note")
        assert page.locator(f"{REPLY} .token").count() >= 5
        told = page.locator(f"{REPLY} .foot").inner_text()
        assert "before the end" in told or "as far as it went" in told
        until(lambda: desk.load == (0, 0), seconds=1)
        page.fill("#question", "again")
        page.keyboard.press("Enter")
        page.wait_for_selector(f"{REPLY} .token:nth-child(5)", state="attached")
        page.click("#stop")
        until(lambda: desk.load == (0, 0), seconds=1)
        page.wait_for_selector(f"{REPLY} .note")
        assert "stopped" in page.locator(f"{REPLY} .foot").inner_text()
        written = page.locator(f"{REPLY} .token").count()
        assert 5 <= written < 2048
        page.reload()
        page.wait_for_selector(f"{REPLY} .note")
        assert page.locator(f"{REPLY} .token").count() == written


EVIL = '<img src=x onerror="window.evil=1"><script>window.evil=1</script><b>bold</b>'


def test_html_of_a_person_is_text(page):
    page.fill("#fact", EVIL)
    page.click("#remember button")
    page.wait_for_selector("#memories li summary")
    page.fill("#goal", EVIL)
    say(page, EVIL)
    assert EVIL in page.locator(".question").inner_text()
    assert EVIL in page.locator("#memories").inner_text()
    page.reload()
    page.wait_for_selector(".exchange")
    made = page.locator("#exchanges b:not(.used > b), #exchanges img, #memories b, #memories img")
    assert made.count() == 0
    assert page.evaluate("window.evil") is None


def test_html_of_a_model_is_text(page):
    def chunk(delta, reason=None, **reso):
        choice = {"index": 0, "delta": delta, "finish_reason": reason}
        return f"data: {json.dumps({'choices': [choice], 'reso': reso})}\n\n"

    event = {"controller": EVIL, "cause": EVIL, "effect": EVIL}
    facts = dict(
        entropy_nats=1.0, surprise_nats=1.0, temperature=1.0, stability=EVIL, warning=0.5,
        events=[event], source={"memory": EVIL, "tokens": 3},
        alternatives=[{"token": EVIL, "p": 0.5}],
    )  # fmt: skip
    ended = dict(stop_reason=EVIL, stability=EVIL, notes=[EVIL], memories_used=[EVIL],
                 goal_progress={EVIL: 0.5})  # fmt: skip
    body = chunk({"content": EVIL}, **facts) + chunk({}, "stop", **ended) + "data: [DONE]\n\n"
    page.route("**/v1/chat/completions", lambda route: route.fulfill(
        body=body, headers={"content-type": "text/event-stream"}))  # fmt: skip
    say(page, "hello")
    page.locator(f"{REPLY} .token").hover()
    assert page.locator(f"{REPLY} .token").text_content().endswith(EVIL)
    made = page.locator(".reply b:not(.used > b), .reply img, #inspected img, #inspected b")
    assert made.count() == 0
    assert page.evaluate("window.evil") is None


def test_an_error_is_told_in_its_words(browser, served):
    answer = {"status": 429, "body": json.dumps({"error": {"message": "64 texts are waiting"}})}
    with opened(browser, served, expected="429") as page:
        page.route("**/v1/chat/completions", lambda route: route.fulfill(**answer))
        page.fill("#question", "hello")
        page.keyboard.press("Enter")
        page.wait_for_selector(f"{REPLY} .note")
        assert "64 texts are waiting" in page.locator(f"{REPLY} .foot").inner_text()


def test_a_token_of_the_address_is_used_and_hidden(browser, byte_tokenizer):
    from conftest import make_tiny_model

    engine, secret = tiny_engine(make_tiny_model, byte_tokenizer), "a-token-of-20-letters"
    with running(engine, token=secret) as (address, _):
        context = browser.new_context()
        page = context.new_page()
        page.goto(f"{address}/#token={secret}")
        page.wait_for_selector("body[data-ready]")
        assert page.url == f"{address}/"
        page.evaluate(SHORT)
        say(page, "hello")
        context.close()
        context = browser.new_context()
        page = context.new_page()
        page.goto(address)
        page.locator("#trouble", has_text="token").wait_for()
        context.close()


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [400, 1600])
def test_it_is_legible(browser, served, width, scheme):
    options = dict(viewport={"width": width, "height": 900}, color_scheme=scheme)
    with opened(browser, served, **options) as page:
        say(page, "hello " * 30)
        page.locator(f"{REPLY} .token").nth(1).focus()
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        assert page.evaluate(UNREADABLE) == []
        assert page.evaluate(NAMELESS) == []


# Texts whose contrast with the background behind them is below 4.5 to 1 (WCAG 2.2, 1.4.3).
UNREADABLE = """() => {
    const canvas = new OffscreenCanvas(1, 1).getContext("2d", {willReadFrequently: true});
    const light = (layers) => {
        canvas.clearRect(0, 0, 1, 1);
        for (const layer of layers) { canvas.fillStyle = layer; canvas.fillRect(0, 0, 1, 1); }
        const [r, g, b] = [...canvas.getImageData(0, 0, 1, 1).data].map((v) => {
            const x = v / 255;
            return x <= 0.04045 ? x / 12.92 : ((x + 0.055) / 1.055) ** 2.4;
        });
        return 0.2126 * r + 0.7152 * g + 0.0722 * b;
    };
    const bad = [];
    const texts = document.querySelectorAll("p,span,label,small,button,dt,dd,h1,h2,summary");
    for (const element of texts) {
        const seen = element.checkVisibility() && !element.closest(".hidden");
        if (!seen || !element.innerText?.trim()) continue;
        const layers = [];
        for (let e = element; e; e = e.parentElement) {
            layers.unshift(getComputedStyle(e).backgroundColor);
        }
        const back = light(layers), front = light([...layers, getComputedStyle(element).color]);
        const ratio = (Math.max(back, front) + 0.05) / (Math.min(back, front) + 0.05);
        if (ratio < 4.5) bad.push(`${element.innerText.slice(0, 20)}: ${ratio.toFixed(2)}`);
    }
    return bad;
}"""
NAMELESS = """() => [...document.querySelectorAll("input,textarea,button")].filter(
    (e) => !(e.labels?.length || e.innerText.trim() || e.getAttribute("aria-label"))
).map((e) => e.outerHTML)"""
