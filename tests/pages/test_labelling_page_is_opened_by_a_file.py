"""The browser comes to the labelling page from a private file: the cookie must be sent from the first page on."""

from __future__ import annotations

import re
import threading
from pathlib import Path
from typing import Any

import pytest
from flamest.agent.labelling.book import LabelBook
from flamest.agent.labelling.browser import RedirectFile
from flamest.agent.labelling.server import LabelRequest, PageServer, listen
from flamest.base.process import Shutdown

pytestmark = pytest.mark.pages


def test_the_private_file_leads_a_browser_to_the_page(browser: Any, tmp_path: Path) -> None:
    listener = listen(0)
    shutdown = Shutdown()
    server = PageServer(LabelRequest(tmp_path, open_browser=False), LabelBook(tmp_path), listener)
    thread = threading.Thread(target=server.run, args=(shutdown,))
    thread.start()
    file = None
    try:
        assert server.ready.wait(30)
        file = RedirectFile(server.new_address())
        page = browser.new_page()
        page.goto(file.path.as_uri())
        page.wait_for_url(re.compile(rf"http://127\.0\.0\.1:{listener.getsockname()[1]}/[\w-]+/$"), timeout=20_000)
        state = page.evaluate("() => fetch('api/state').then(answer => answer.status)")
        assert state == 200
        assert page.evaluate("() => document.cookie") == ""
        page.close()
    finally:
        if file is not None:
            file.close()
        shutdown.request()
        thread.join(30)
        listener.close()
