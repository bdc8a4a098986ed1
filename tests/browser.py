"""A headless browser: Debian's chromium, driven by Playwright, which downloads none."""

import os
import re
import shutil
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

import pytest
from playwright.sync_api import Browser, sync_playwright

PROGRAMS = ("chromium", "chromium-headless-shell", "google-chrome")


@contextmanager
def chromium() -> Generator[Browser]:
    """Start the browser, and end it."""
    program = next(filter(None, map(shutil.which, PROGRAMS)), None)
    if program is None:
        if re.search(r"^ID=ubuntu$", _release(), re.MULTILINE):
            pytest.skip("Ubuntu has no package of chromium, only a snap: install google-chrome")
        raise FileNotFoundError(
            "no chromium: install Debian's package chromium-headless-shell (.ci/install)"
        )
    # it refuses to run as root in its sandbox; what it is shown is ours
    arguments = ["--no-sandbox"] if os.geteuid() == 0 else []
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=arguments)
        try:
            yield browser
        finally:
            browser.close()


def _release() -> str:
    path = Path("/etc/os-release")
    return path.read_text(encoding="utf-8") if path.exists() else ""
