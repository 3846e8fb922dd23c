"""A look at the page finds each fault, and none where all is well."""

import pytest
from playwright.async_api import Browser

from tests.page.conftest import LOOKS, PHONE, SMALLEST

pytestmark = [pytest.mark.asyncio(loop_scope="package")]

PAGE = """<body style="margin:0;font:16px sans-serif;background:#fff;color:#222"><main id="messages">{}</main></body>"""
BUTTON = '<button style="width:99px;height:{}px;margin:{}px;cursor:pointer">Join</button>'
PICTURE = "data:image/svg+xml,<svg xmlns='http://www.w3.org/2000/svg' width='1000' height='9'/>"
FAULTS = {
    "scrolls sideways": '<div style="width:500px">wide</div>',
    "sticks out": '<div class="card" style="width:90px;white-space:nowrap">a card with a long line of words</div>',
    "is cut": '<p style="width:60px;overflow:hidden;white-space:nowrap;text-overflow:ellipsis">much is said here</p>',
    "the placeholder of": '<input style="width:60px;height:30px" placeholder="what would you like to say?">',
    "is 99 × 20 pixels": BUTTON.format(20, 4),
    "is too near to": BUTTON.format(30, 1) * 2,
    "lies on": "<p>one</p><p style='margin-top:-30px'>other</p>",
    "has a contrast of 2.": '<p style="color:#aaa">pale</p>',
    "has a contrast of 3.": '<p style="background:#223;color:#fff6">pale on dark</p>',
    "takes no focus": '<div style="cursor:pointer">Click me</div>',
    "is 8.8 pixels high": f'<img alt="Run 1" width="300" height="3" src="{PICTURE}">',
}
WELL = (
    '<p title="much is said here" style="width:60px;overflow:hidden;white-space:nowrap;text-overflow:ellipsis">'
    f'much is said here</p>{BUTTON.format(30, 4) * 2}<a href="#" style="cursor:pointer">A link</a>'
    f'<img alt="Run 1" width="360" height="3" src="{PICTURE}">'
)


async def test_each_fault_is_found_and_none_where_all_is_well(browser: Browser) -> None:
    page = await browser.new_page(viewport={"width": PHONE[0], "height": PHONE[1]})

    async def found(html: str) -> list[str]:
        await page.set_content(PAGE.format(html))
        await page.evaluate("Promise.all([...document.images].map(image => image.decode()))")
        faults: list[str] = await page.evaluate(LOOKS, {"smallest": SMALLEST})
        return faults

    for fault, html in FAULTS.items():
        faults = await found(html)
        assert any(fault in each for each in faults), f"{fault}: {faults}"
    assert await found(WELL) == []
    await page.close()
