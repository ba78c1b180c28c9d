"""How large and how smooth a report of 30 modules and 10,000 examples is: ``python benchmarks/report_page.py``.

Needs the extra ``browser`` and chromium with its driver. Prints the size of the file, the time to write and
to load it, and the frame times of a zoom of 120 wheel steps, one a frame.
"""

from __future__ import annotations

import sys
import tempfile
import time
from pathlib import Path

from selenium import webdriver

import modcut

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from reporting_cards import deck

ZOOM = """
const done = arguments[0], stage = document.getElementById('map'), times = [];
stage.querySelector('[tabindex="0"]').focus();
let last = performance.now(), n = 0;
const step = (now) => {
  times.push(now - last); last = now;
  const box = stage.getBoundingClientRect();
  stage.dispatchEvent(new WheelEvent('wheel', {deltaY: n % 60 < 30 ? -60 : 60, cancelable: true,
    clientX: box.x + box.width / 3, clientY: box.y + box.height / 2}));
  if (++n < 120) requestAnimationFrame(step); else done(times.slice(2).sort((a, b) => a - b));
};
requestAnimationFrame(step);"""


def main() -> None:
    began = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        path = modcut.report(Path(folder) / "page.html", cards=deck(30, 334))
        wrote = time.perf_counter() - began
        options = webdriver.ChromeOptions()
        options.binary_location = "/usr/bin/chromium"
        for flag in ("headless=new", "no-sandbox", "disable-dev-shm-usage", "window-size=1280,900"):
            options.add_argument(f"--{flag}")
        browser = webdriver.Chrome(options=options, service=webdriver.ChromeService("/usr/bin/chromedriver"))
        try:
            browser.get(path.as_uri())
            time.sleep(1)
            loaded = browser.execute_script("return performance.getEntriesByType('navigation')[0].loadEventEnd")
            frames = browser.execute_async_script(ZOOM)
            errors = browser.get_log("browser")
        finally:
            browser.quit()
        assert not errors, errors
        print(f"size {path.stat().st_size / 1e6:.2f} MB, written in {wrote:.1f} s, loaded in {loaded:.0f} ms")
    middle, slow = frames[len(frames) // 2], frames[int(0.95 * len(frames))]
    print(f"zoom, {len(frames)} frames: median {middle:.1f} ms, 95 % {slow:.1f} ms, longest {frames[-1]:.1f} ms")


if __name__ == "__main__":
    main()
