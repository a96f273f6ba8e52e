"""The two pictures of the page in README: the wide one light, the narrow one dark.

python -m benchmarks.making.page_pictures --seed 7
"""

import argparse

from benchmarks.kit.browser import started
from benchmarks.kit.records import REPOSITORY
from benchmarks.studies.serving import server

FOLDER = REPOSITORY / "docs" / "figures"
FACT, QUESTION = "My dog is called Biscuit.", "What is my dog called?"
FIRST = "Hi! How was your weekend?"


def say(page, text: str) -> None:
    """Send a message, and wait for the end of the reply."""
    count = page.locator(".exchange").count()
    page.fill("#question", text)
    page.keyboard.press("Enter")
    page.wait_for_selector(f".exchange:nth-child({count + 1}) .facts")


def talk(page, place: str, seed: int) -> None:
    """A greeting, a fact, and a question for it, answered with the echo and without."""
    page.add_init_script(f"crypto.getRandomValues = (array) => array.fill({2 * seed})")
    page.goto(f"http://{place}/")
    page.wait_for_selector("body[data-ready]")
    say(page, FIRST)
    page.fill("#fact", FACT)
    page.click("#remember button")
    page.wait_for_selector("#memories summary")
    say(page, QUESTION)
    page.uncheck("#switch-echo")
    page.wait_for_selector(".difference")


def main() -> None:
    parser = argparse.ArgumentParser(description="Take the two pictures of the page.")
    parser.add_argument("--seed", type=int, default=7)
    seed = parser.parse_args().seed
    wide = dict(viewport={"width": 1440, "height": 900}, color_scheme="light")
    narrow = dict(viewport={"width": 400, "height": 780}, color_scheme="dark")
    with started() as browser:
        for name, options in (("page_wide", wide), ("page_narrow", narrow)):
            with server() as (place, _):
                page = browser.new_page(**options)
                talk(page, place, seed)
                page.locator(".exchange:nth-child(2) .reply:first-of-type .token").nth(4).focus()
                page.evaluate("scrollTo(0, 0)")
                page.screenshot(path=FOLDER / f"{name}.png")


if __name__ == "__main__":
    main()
