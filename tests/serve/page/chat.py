"""A person at the chat page."""

from __future__ import annotations

from typing import Any

import pytest

pytest.importorskip("playwright")
from playwright.sync_api import BrowserContext, Locator, Page, expect

WAIT_MS = 60_000
expect.set_options(timeout=WAIT_MS)


class Chat:
    """A page, and everything that it asked for, said to the console, or let run."""

    def __init__(self, context: BrowserContext, url: str) -> None:
        self.url = url
        self.context = context
        self.requested: list[str] = []
        self.troubles: list[str] = []
        context.on("request", lambda request: self.requested.append(request.url))
        context.on("weberror", lambda error: self.troubles.append(str(error.error)))
        context.on("console", lambda message: self._heard(message.type, message.text))
        context.on("dialog", lambda dialog: (self.troubles.append("dialog"), dialog.dismiss()))
        context.set_default_timeout(WAIT_MS)
        self.page = self.open()

    def _heard(self, kind: str, text: str) -> None:
        # The browser itself reports each answer that is an error.
        if kind in ("error", "warning") and not text.startswith("Failed to load resource"):
            self.troubles.append(text)

    def open(self) -> Page:
        page = self.context.new_page()
        page.goto(self.url)
        return page

    def ask(self, text: str) -> None:
        self.page.locator("#message").fill(text)
        self.page.locator("#message").press("Enter")

    def answers(self, state: str = "done", count: int = 1) -> Locator:
        """Wait for so many answers in this state."""
        found = self.page.locator(f'.answer[data-state="{state}"]')
        expect(found).to_have_count(count)
        return found

    def stored(self) -> dict[str, str]:
        return self.page.evaluate("({...localStorage})")

    def check(self) -> None:
        assert self.troubles == []
        assert [url for url in self.requested if not url.startswith((self.url, "data:"))] == []


def said(body: dict[str, Any]) -> str:
    return body["messages"][-1]["content"]
