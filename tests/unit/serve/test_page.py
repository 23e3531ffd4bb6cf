"""The page is complete in itself; tests/unit/test_pages.py has the laws of all pages."""

from __future__ import annotations

from asrtool import page
from tests.toy_service import play, serving

FILES = page.files("asrtool.serve")


def test_every_file_is_served_under_a_policy_without_other_hosts(live):
    async def scenario() -> None:
        async with serving(live) as client:
            for name, text in FILES.items():
                path = "/" if name == "index.html" else f"/page/{name}"
                async with client.session.get(path) as answer:
                    assert await answer.text() == text
                    assert answer.headers["X-Content-Type-Options"] == "nosniff"
                    policy = answer.headers["Content-Security-Policy"]
                    assert policy.startswith("default-src 'none'; script-src 'self'")
                    assert "http" not in policy and "unsafe" not in policy

    play(scenario())
