"""Pages of HTML, taken apart."""

from __future__ import annotations

from html.parser import HTMLParser


class Page(HTMLParser):
    """What is open, ids, links and text; void elements of HTML and empty ones of XML need no end."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.ids: list[str | None] = []
        self.links: list[str | None] = []
        self.tags: list[str] = []
        self.text = ""
        self.feed(html)
        self.close()

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.open.append(tag)
        self.tags.append(tag)
        self.ids += [value for key, value in attributes if key == "id"]
        self.links += [value for key, value in attributes if key == "href"]

    def handle_startendtag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def prose(page: Page) -> str:
    return " ".join(page.text.split())
