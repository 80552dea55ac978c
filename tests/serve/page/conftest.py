"""A browser, the page, and a server that says what a test wants."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from typing import Any

import pytest

from tests.serve.scripted import Answer, ScriptedServer, scripted

pytest.importorskip("playwright")
from playwright.sync_api import Browser, sync_playwright

from tests.serve.page.chat import Chat, said

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("chrome")


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    if CHROMIUM is None:
        pytest.skip("needs chromium")
    with sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield opened
        opened.close()


@pytest.fixture
def server() -> Iterator[ScriptedServer]:
    with scripted(lambda body, _: Answer(pieces=["Said: ", said(body)])) as serving:
        yield serving


@pytest.fixture
def options() -> dict[str, Any]:
    """How the browser is; a test may parametrize it."""
    return {}


@pytest.fixture
def chat(browser: Browser, server: ScriptedServer, options: dict[str, Any]) -> Iterator[Chat]:
    context = browser.new_context(**options)
    opened = Chat(context, server.url)
    yield opened
    context.close()
    opened.check()
