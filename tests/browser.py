"""Pages in a real headless Chromium, for tests: what a page complains about and whom it calls is written down.

The fixture is `visit` in `conftest.py`. Nothing but the page itself can be reached: other requests are refused.
"""

import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal
from urllib.parse import urlsplit


if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page, Route

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
"""What the program is called on Linux; elsewhere Playwright's own is looked for (`playwright install chromium`)."""

FLAGS = (
    "--no-sandbox",
    "--disable-gpu",
    "--enable-unsafe-swiftshader",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--host-resolver-rules=MAP * ~NOTFOUND , EXCLUDE localhost , EXCLUDE 127.0.0.1",
)
"""A browser that draws with the processor (WebGL too), as any user, and finds no host but this one."""

INSIDE = ("about", "blob", "data")
"""Schemes of addresses that no request leaves the page for."""


@dataclass
class Visit:
    """An open page, and what it did that it should not have done."""

    page: "Page"
    errors: list[str] = field(default_factory=list)
    """Errors and warnings on the console, and exceptions that nobody caught."""
    strangers: list[str] = field(default_factory=list)
    """Addresses beyond the page's own origin that were asked for; each was refused."""

    def __call__(self, script: str, argument: Any = None) -> Any:
        """The value of an expression or function of JavaScript in the page."""
        return self.page.evaluate(script, argument)

    def wait_for(self, script: str, seconds: float = 20.0) -> None:
        """Until an expression of JavaScript is true (Playwright's own way needs a weaker security policy)."""
        end = time.monotonic() + seconds
        while not self.page.evaluate(script):
            if time.monotonic() > end:
                raise TimeoutError(f"Expected {script} within {seconds:g} seconds; it never was.")
            self.page.wait_for_timeout(30)

    def close(self) -> None:
        """Ends the page: one that moves by itself slows down all that come after it."""
        self.page.context.close()


@contextmanager
def chromium() -> Iterator["Browser | None"]:
    """A headless Chromium, or None where there is none."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        program = next(filter(None, map(shutil.which, NAMES)), playwright.chromium.executable_path)
        if not Path(program).exists():
            yield None
            return
        browser = playwright.chromium.launch(executable_path=program, args=list(FLAGS))
        yield browser
        browser.close()


def visitor(browser: "Browser", visits: list[Visit]) -> Callable[..., Visit]:
    """The function that opens pages in `browser`; each is added to `visits`."""

    def visit(
        address: str | Path,
        width: int = 1000,
        height: int = 800,
        scheme: Literal["light", "dark"] = "light",
        touch: bool = False,
        reduced_motion: bool = False,
        query: str = "",
        scale: float = 1.0,
    ) -> Visit:
        """Opens a file or a URL.

        `width`, `height`: of the window, in CSS pixels of `scale` device pixels each. `touch`: a phone. `query`: what
        follows the address of a file, such as "?canvas".
        """
        url = address if isinstance(address, str) else address.resolve().as_uri() + query
        context = browser.new_context(
            viewport={"width": width, "height": height},
            color_scheme=scheme,
            has_touch=touch,
            is_mobile=touch,
            reduced_motion="reduce" if reduced_motion else "no-preference",
            device_scale_factor=scale,
        )
        page = context.new_page()
        seen = Visit(page)
        visits.append(seen)
        page.on("console", lambda said: _is_complaint(said.type, said.text) and seen.errors.append(said.text))
        page.on("pageerror", lambda error: seen.errors.append(str(error)))
        page.on("websocket", lambda socket: _is_own(socket.url, url) or seen.strangers.append(socket.url))
        context.route("**/*", lambda route: _pass_or_refuse(route, url, seen.strangers))
        page.goto(url)
        return seen

    return visit


def _is_complaint(kind: str, text: str) -> bool:
    """Whether the page is to blame: a driver that says how slow the taking of a screenshot was blames nobody."""
    return kind in ("error", "warning") and "GL Driver Message" not in text


def _is_own(address: str, page: str) -> bool:
    """Whether `address` is of the origin of `page`; a file's origin is that file alone."""
    asked, home = urlsplit(address), urlsplit(page)
    if asked.scheme in INSIDE:
        return True
    return asked.path == home.path if home.scheme == "file" == asked.scheme else asked.netloc == home.netloc != ""


def _pass_or_refuse(route: "Route", page: str, strangers: list[str]) -> None:
    if _is_own(route.request.url, page):
        route.continue_()
    else:
        strangers.append(route.request.url)
        route.abort()
