"""What a page of HTML says, element by element."""

from dataclasses import dataclass, field
from html.parser import HTMLParser

_VOID = {"meta", "br", "input", "link", "img", "hr"}


@dataclass
class Element:
    tag: str
    about: dict[str, str]
    inner: list["Element | str"] = field(default_factory=list)

    @property
    def text(self) -> str:
        """All text below it."""
        return "".join(each if isinstance(each, str) else each.text for each in self.inner)

    def every(self, tag: str, **about: str) -> list["Element"]:
        """The elements below it with a tag and attributes."""
        found = []
        for each in self.inner:
            if isinstance(each, Element):
                if each.tag == tag and about.items() <= each.about.items():
                    found.append(each)
                found += each.every(tag, **about)
        return found


class _Reader(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.stack = [Element("page", {})]

    def handle_starttag(self, tag, attrs):
        element = Element(tag, {name: value or "" for name, value in attrs})
        self.stack[-1].inner.append(element)
        if tag not in _VOID:
            self.stack.append(element)

    def handle_endtag(self, tag):
        assert self.stack[-1].tag == tag, f"</{tag}> ends <{self.stack[-1].tag}>"
        self.stack.pop()

    def handle_data(self, data):
        self.stack[-1].inner.append(data)


def parsed(html: str) -> Element:
    """The page; elements that are not closed where they should be are refused."""
    reader = _Reader()
    reader.feed(html)
    reader.close()
    assert len(reader.stack) == 1, f"<{reader.stack[-1].tag}> is not closed"
    return reader.stack[0]
