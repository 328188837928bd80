"""Drive the report in headless Chromium: in a frame of a given width, with its errors recorded."""

import html
import json
import re
import shutil
import subprocess

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser"))), None)

# Errors are recorded before the page's own script runs; the policy of the page stays in force.
_RECORDER = """<script>
addEventListener("error", event => parent.problems.push(String(event.message)));
addEventListener("securitypolicyviolation", event => parent.problems.push(event.violatedDirective));
console.error = (...words) => parent.problems.push(words.join(" "));
</script>"""

_DRIVER = """<!DOCTYPE html><meta charset="utf-8"><title>driver</title>
<script>
var problems = [];
const wait = time => new Promise(done => setTimeout(done, time));
async function drive(frame) {
  const page = frame.contentDocument, view = frame.contentWindow;
  const go = async hash => { view.location.hash = hash; await wait(60); };
  const shown = () => [...page.querySelectorAll(".view")]
    .filter(item => view.getComputedStyle(item).display !== "none").map(item => item.id);
  const choose = async (name, value) => {
    const field = page.querySelector(`[name=${name}]`);
    field.value = value;
    field.dispatchEvent(new view.Event("change", {bubbles: true}));
    await wait(20);
  };
  const cards = () => [...page.querySelectorAll(".failures > li")].filter(item => !item.hidden);
  const text = (item, name) => item.querySelector(name).textContent;
  const result = {};
  try { SCRIPT } catch (error) { problems.push(String(error)); }
  result.problems = problems;
  const place = document.createElement("pre");
  place.id = "result";
  place.textContent = JSON.stringify(result);
  document.body.append(place);
}
</script>
<body><iframe width="WIDTH" height="900" onload="drive(this)" src="page.html"></iframe>"""


def browse(folder, page, script, width=1280):
    """Run a script on a page in a frame; return the ``result`` it filled, with ``problems``."""
    page = page.replace("<head>", f"<head>{_RECORDER}", 1)
    driver = _DRIVER.replace("SCRIPT", script).replace("WIDTH", str(width))
    (folder / "page.html").write_text(page)
    (folder / "driver.html").write_text(driver)
    options = ["--headless", "--no-sandbox", "--disable-gpu", "--no-first-run"]
    # The driver may look into its frame: both are files of one folder.
    options += ["--allow-file-access-from-files"]
    options += ["--disable-dev-shm-usage", f"--user-data-dir={folder / 'profile'}"]
    options += ["--window-size=1400,1000", "--virtual-time-budget=9000", "--dump-dom"]
    done = subprocess.run(
        [CHROMIUM, *options, f"file://{folder / 'driver.html'}"],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    found = re.search(r'<pre id="result">(.*?)</pre>', done.stdout, re.S)
    assert found, done.stdout[-2000:] + done.stderr[-2000:]
    return json.loads(html.unescape(found[1]))
