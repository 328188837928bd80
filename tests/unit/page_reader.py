"""Read a report as a browser and a reader do, for the tests."""

import re
from html.parser import HTMLParser

# A number as it is shown: a true minus sign or a plain one, no digits of a name before it.
NUMBER = re.compile(r"(?<![\w.])[-−+]?\d+(?:\.\d+)?(?![\w])")


def numbers(text):
    """Return the numbers in a text."""
    return [float(found.replace("−", "-")) for found in NUMBER.findall(text)]


class Page(HTMLParser):
    """Collects what a reader and a browser see of a page.

    ``tables`` has the rows of each result table by its name, titles first; a cell is its sort key
    and its text.
    """

    def __init__(self, text):
        super().__init__()
        self.tags, self.loads, self.ids, self.captions = [], [], [], []
        self.files, self.tables, self.open, self.views = {}, {}, [], []
        self.rows = None
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        attributes = dict(attributes)
        self.tags.append((tag, attributes))
        if tag not in ("br", "img", "meta", "wbr", "link"):
            self.open.append(tag)
        if attributes.get("id"):
            self.ids.append(attributes["id"])
        if "view" in (attributes.get("class") or "").split():
            self.views.append(attributes["id"])
        self.loads += [
            attributes[k] for k in ("src", "href", "xlink:href", "data") if k in attributes
        ]
        if "download" in attributes:
            self.files[attributes["download"]] = attributes["href"]
        if tag == "table":
            self.rows = self.tables.setdefault(attributes.get("data-table"), [])
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append([attributes.get("data-sort"), ""])
        if tag == "figcaption":
            self.captions.append("")

    def handle_endtag(self, tag):
        while self.open and self.open.pop() != tag:
            pass
        if tag == "table":
            self.rows = None

    def handle_data(self, data):
        if "script" in self.open or "style" in self.open:
            return
        self.text += data
        if self.rows and {"td", "th"} & set(self.open):
            self.rows[-1][-1][1] += data
        if "figcaption" in self.open:
            self.captions[-1] += data

    def records(self, name):
        """Return the rows of a table as dicts of title and [sort key, text]."""
        titles = [cell[1].strip() for cell in self.tables[name][0]]
        rows = [row for row in self.tables[name][1:] if len(row) == len(titles)]
        return [dict(zip(titles, row, strict=True)) for row in rows]
