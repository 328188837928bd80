"""Guards what the report does in a browser: one page at a time, a gallery that sorts, no overflow."""

import pytest
from report_browser import CHROMIUM, browse

from ultrarefiner.io import read_json

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed")


@pytest.fixture(scope="module")
def study(report_study):
    return report_study


@pytest.fixture(scope="module")
def page(report_page_html):
    return report_page_html


def test_views_switch_by_address_and_keyboard_focus_follows(page, tmp_path):
    script = """
      result.links = [...page.querySelectorAll("nav a")].map(item => item.hash.slice(1));
      result.first = shown();
      result.seen = [];
      for (const name of result.links) {
        await go(name);
        const current = [...page.querySelectorAll("nav [aria-current]")].map(item => item.hash);
        result.seen.push([shown(), current, page.activeElement.id, page.title]);
      }
      await go("main");
      result.kept = shown();
      await go("nowhere");
      result.unknown = shown();
      await go("dataset-x");
      page.querySelector("nav a").click();
      await wait(60);
      result.clicked = [shown(), page.activeElement.tagName];
    """
    result = browse(tmp_path, page, script)
    assert result["problems"] == []
    names = result["links"]
    assert names == ["overview", "busbra", "busi", "stu", "cross", "failures", "methods"]
    assert result["first"] == ["overview"]
    for name, (shown, current, focus, title) in zip(names, result["seen"], strict=True):
        assert shown == [name] and current == [f"#{name}"] and focus == f"{name}-title"
        assert title.endswith("A <study> & more") and (name == "overview") == title.startswith("A ")
    # The skip link leads to the content of the page that is open.
    assert result["kept"] == ["methods"]
    assert result["unknown"] == ["overview"] == result["clicked"][0]


def test_gallery_sorts_and_filters_what_its_cards_show(study, page, tmp_path):
    script = """
      await go("failures");
      const list = () => cards().map(item => [item.dataset.name, text(item, ".dice"), text(item, ".hd95"),
        text(item, ".delta"), text(item, ".by"), item.dataset.area, text(item, ".outcome")]);
      const count = () => page.querySelector(".count").textContent;
      result.hidden = page.querySelector(".controls").hidden;
      result.all = list();
      result.said = count();
      for (const by of ["hd95", "small", "large", "name", "delta"]) { await choose("sort", by); result[by] = list(); }
      await choose("sort", "dice");
      await choose("method", "transunet");
      result.coarse = list();
      await choose("method", "sam-oracle_box");
      result.oracle = list();
      await choose("method", "");
      await choose("dataset", "stu");
      await choose("label", "malignant");
      result.chosen = list();
      result.chosen_said = count();
      await choose("outcome", "missed");
      result.missed = list();
      page.querySelector(".controls").reset();
      await wait(30);
      result.reset = list();
      result.live = page.querySelector(".count").getAttribute("aria-live");
    """
    result = browse(tmp_path, page, script)
    assert result["problems"] == []
    failed = read_json(study["overlays"] / "index.json")["failures"]
    by_case = {item["case"]: item for item in failed}
    assert len(failed) == 12 and result["said"] == "12 cases" and result["live"] == "polite"
    assert result["hidden"] is False
    assert sorted(row[0] for row in result["all"]) == sorted(by_case)

    def shown(row, method=None):
        item = by_case[row[0]]
        at = item["method"].partition("@")
        return item["scores"][method or at[0]]

    for row in result["all"]:
        assert float(row[1]) == round(shown(row)["dice"], 3)
    dice = [shown(row)["dice"] for row in result["all"]]
    assert dice == sorted(dice)
    far = [shown(row)["hd95"] for row in result["hd95"]]
    assert far == sorted(far, reverse=True) and far[0] > far[-1]
    areas = [float(row[5]) for row in result["small"]]
    assert areas == sorted(areas) == [float(row[5]) for row in result["large"]][::-1]
    assert [row[0] for row in result["name"]] == sorted(by_case)
    loss = [shown(r)["dice"] - shown(r, "transunet")["dice"] for r in result["delta"]]
    assert loss == sorted(loss)
    for row in result["coarse"]:
        assert float(row[1]) == round(shown(row, "transunet")["dice"], 3)
        assert row[4].startswith("transunet")
    assert all("sam-oracle_box" in row[4] and "(oracle)" in row[4] for row in result["oracle"])
    marks = {row[0].partition("__")[0]: row[4] for row in result["oracle"]}
    assert "†" in marks["busi"] and "‡" in marks["stu"] and "†" not in marks["busbra"]
    wanted = {i["case"] for i in failed if (i["dataset"], i["label"]) == ("stu", "malignant")}
    assert {row[0] for row in result["chosen"]} == wanted
    assert result["chosen_said"] == f"{len(wanted)} of 12 cases"
    assert [row[0] for row in result["missed"]] == ["stu__malignant_3"]
    assert result["missed"][0][6] == "missed"
    assert result["reset"] == result["all"]


def test_tables_sort_and_oracles_stay_below(page, tmp_path):
    script = """
      await go("busi");
      const table = page.querySelector("[data-table=leading_busi]");
      const heads = [...table.tHead.rows[0].cells];
      const column = heads.findIndex(item => item.textContent === "Dice");
      heads[column].querySelector("button").click();
      const read = () => [...table.querySelectorAll("tbody:not(.divider) tr")]
        .map(row => [row.cells[0].dataset.sort, Number(row.cells[column].dataset.sort), row.className]);
      result.down = read();
      result.order = heads[column].getAttribute("aria-sort");
      heads[column].querySelector("button").click();
      result.up = read();
    """
    result = browse(tmp_path, page, script)
    assert result["problems"] == [] and result["order"] == "descending"
    for rows, backwards in ((result["down"], True), (result["up"], False)):
        plain = [row[1] for row in rows if "oracle" not in row[2]]
        assert plain == sorted(plain, reverse=backwards)
        assert ["oracle" in row[2] for row in rows] == sorted("oracle" in row[2] for row in rows)


@pytest.mark.parametrize("width", [380, 1280])
def test_no_page_scrolls_sideways(page, tmp_path, width):
    script = """
      result.width = view.innerWidth;
      result.wide = [];
      for (const item of page.querySelectorAll("details")) item.open = true;
      for (const link of page.querySelectorAll("nav a")) {
        await go(link.hash.slice(1));
        const root = page.documentElement;
        if (root.scrollWidth > root.clientWidth) {
          const out = [...page.querySelectorAll("main *")].filter(item => !item.closest(".scroll, pre, .unseen")
            && item.getBoundingClientRect().right > root.clientWidth + 1);
          result.wide.push([link.hash, root.scrollWidth, ...out.slice(0, 4).map(item => item.outerHTML.slice(0, 120))]);
        }
      }
    """
    result = browse(tmp_path, page, script, width)
    assert result["problems"] == []
    assert result["width"] == width
    assert result["wide"] == []


def test_a_table_that_fits_has_no_scrollbar(page, tmp_path):
    script = """
      result.tables = 0;
      result.wide = [];
      for (const link of page.querySelectorAll("nav a")) {
        await go(link.hash.slice(1));
        for (const place of page.querySelectorAll(".view:target .scroll:has(table)")) {
          if (place.querySelectorAll("thead th").length > 7) continue;
          result.tables += 1;
          if (place.scrollWidth > place.clientWidth) result.wide.push(place.ariaLabel);
        }
      }
    """
    result = browse(tmp_path, page, script)
    assert result["problems"] == [] and result["tables"] > 8
    assert result["wide"] == []


def test_everything_is_visible_without_the_script(page, tmp_path):
    start, end = page.rindex("<script>"), page.rindex("</script>")
    still = page[:start] + page[end + len("</script>") :]
    script = """
      result.shown = shown();
      result.cards = cards().length;
      result.controls = view.getComputedStyle(page.querySelector(".controls")).display;
    """
    result = browse(tmp_path, still, script)
    names = ["overview", "busbra", "busi", "stu", "cross", "failures", "methods"]
    assert result == {"shown": names, "cards": 12, "controls": "none", "problems": []}
