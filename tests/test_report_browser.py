"""The report in a real browser: nothing runs but its own script, everything is reached by mouse and by keyboard."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import modcut
from reporting_cards import deck
from test_reporting import a_trace, a_tree, effects_table

webdriver = pytest.importorskip(
    "selenium.webdriver", reason="selenium is not installed (pip install 'modcut[browser]')"
)
from selenium.webdriver.common.action_chains import ActionChains  # noqa: E402
from selenium.webdriver.common.by import By  # noqa: E402
from selenium.webdriver.common.keys import Keys  # noqa: E402

CHROMIUM, DRIVER = Path("/usr/bin/chromium"), Path("/usr/bin/chromedriver")
pytestmark = [
    pytest.mark.skipif(not (CHROMIUM.exists() and DRIVER.exists()), reason="chromium or chromium-driver is missing"),
    # selenium closes its sockets when it is collected, which a strict run reports as a leak.
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
]
EVIL = (
    "</script><script>window.hit=1</script><img src=x onerror=window.hit=1>\"'`<svg onload=window.hit=1>"
    '{{ 7*7 }}{% raw %}${window.hit=1}<a href="javascript:window.hit=1">x</a>javascript:window.hit=1'
    "<!--\u202etxet\u2066\u2028]]><style>*{display:none}</style>"
)


@pytest.fixture(scope="module")
def driver() -> Iterator[Any]:
    options = webdriver.ChromeOptions()
    options.binary_location = str(CHROMIUM)
    for flag in ("headless=new", "no-sandbox", "disable-dev-shm-usage", "hide-scrollbars", "window-size=1280,900"):
        options.add_argument(f"--{flag}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    started = webdriver.Chrome(options=options, service=webdriver.ChromeService(str(DRIVER)))
    yield started
    started.quit()


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    cards = deck(6, 40)
    parts = {"trace": a_trace(), "effects": effects_table(), "tree": a_tree(6)}
    return modcut.report(tmp_path_factory.mktemp("report") / "page.html", cards=cards, **parts)


@pytest.fixture
def browser(driver: Any, page: Path) -> Iterator[Any]:
    """The page, freshly loaded at desk width; whatever a test does, the console must stay empty."""
    driver.execute_cdp_cmd(
        "Emulation.setEmulatedMedia", {"features": [{"name": "prefers-reduced-motion", "value": "reduce"}]}
    )
    show(driver, page, 1280)
    yield driver
    assert driver.get_log("browser") == []


def prefer(driver: Any, name: str, value: str) -> None:
    driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [{"name": name, "value": value}]})


def show(driver: Any, path: Path, width: int) -> None:
    size = {"width": width, "height": 850, "deviceScaleFactor": 1, "mobile": width < 600}
    driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    driver.get("about:blank")
    driver.get(path.as_uri())


def one(driver: Any, css: str) -> Any:
    return driver.find_element(By.CSS_SELECTOR, css)


def shown(driver: Any, css: str) -> list[Any]:
    return [e for e in driver.find_elements(By.CSS_SELECTOR, css) if e.is_displayed()]


def until(what: Callable[[], bool]) -> None:
    end = time.monotonic() + 5
    while not what():
        assert time.monotonic() < end, "it did not happen within 5 s"
        time.sleep(0.02)


def focused(driver: Any, get: str = "id") -> str | None:
    value: str | None = driver.switch_to.active_element.get_attribute(get)
    return value


def press(driver: Any, *keys: str) -> None:
    ActionChains(driver, duration=0).send_keys(*keys).perform()


def in_view(driver: Any, css: str) -> bool:
    script = (
        "const r=document.querySelector(arguments[0]).getBoundingClientRect(); return r.top>-5 && r.top<innerHeight"
    )
    return bool(driver.execute_script(script, css))


@pytest.mark.parametrize("module", range(6))
def test_every_card_is_reached_by_click(browser: Any, module: int) -> None:
    one(browser, f"#map .leaf[data-id='{module}'] circle").click()
    assert f"skill number {module}" in one(browser, "#inspector").text
    one(browser, "#inspector a.go").click()
    until(lambda: in_view(browser, f"#module-{module}"))


def test_every_card_is_reached_by_keyboard(browser: Any) -> None:
    browser.execute_script("document.getElementById('outline').querySelector('[tabindex=\"0\"]').focus()")
    press(browser, Keys.HOME)
    seen = set()
    for _ in range(20):
        press(browser, Keys.ENTER)
        if links := browser.find_elements(By.CSS_SELECTOR, "#inspector a.go"):
            seen.add(links[0].get_attribute("href").rsplit("#")[1])
        press(browser, Keys.ARROW_DOWN)
    assert seen == {f"module-{i}" for i in range(6)}
    one(browser, "#inspector a.go").send_keys(Keys.ENTER)
    until(lambda: in_view(browser, "#module-5"))
    until(lambda: focused(browser) == "module-5-head")


def test_tab_passes_the_map_once_and_arrows_walk_in_it(browser: Any) -> None:
    one(browser, "#weakest").send_keys(Keys.TAB)
    first = focused(browser, "data-id")
    assert first is not None
    reached, todo = {first}, [first]
    while todo:
        here = todo.pop()
        for key in ("RIGHT", "DOWN", "LEFT", "UP"):
            browser.execute_script(f"document.querySelector('#map [data-id=\"{here}\"]').focus()")
            press(browser, getattr(Keys, f"ARROW_{key}"))
            there = focused(browser, "data-id")
            assert there is not None
            if there not in reached:
                reached.add(there)
                todo.append(there)
    assert {str(i) for i in range(9)} == reached  # six modules and three groups
    stops = browser.execute_script("return document.querySelectorAll('#map [tabindex=\"0\"]').length")
    assert stops == 1


def test_groups_fold_and_open_in_map_and_outline_alike(browser: Any) -> None:
    assert len(shown(browser, "#map .leaf")) == 6
    group = one(browser, "#outline [aria-expanded]")
    name = group.get_attribute("data-id")
    group.find_element(By.CSS_SELECTOR, ".twist").click()
    assert group.get_attribute("aria-expanded") == "false"
    assert one(browser, f"#map [data-id='{name}']").get_attribute("aria-expanded") == "false"
    assert len(shown(browser, "#map .leaf")) == len(shown(browser, "#outline .chip")) == 4
    one(browser, f"#map [data-id='{name}'] circle").click()
    assert group.get_attribute("aria-expanded") == "true" and len(shown(browser, "#map .leaf")) == 6
    one(browser, "#fold-all").click()
    assert len(shown(browser, "#map .leaf")) == 0 and len(shown(browser, "#map .group")) == 3
    lines = browser.find_elements(By.CSS_SELECTOR, "#map .lines path")
    assert 0 < len(lines) <= 3
    one(browser, "#open-all").click()
    browser.execute_script("document.querySelector('#outline [tabindex=\"0\"]').focus()")
    press(browser, Keys.HOME, Keys.ARROW_LEFT)
    assert len(shown(browser, "#map .leaf")) == 4
    press(browser, Keys.ARROW_RIGHT)
    assert len(shown(browser, "#map .leaf")) == 6


def test_folded_groups_carry_the_sum_of_their_modules_strength(browser: Any) -> None:
    one(browser, "#fold-all").click()
    data = browser.execute_script("return JSON.parse(document.getElementById('data').textContent).map")
    s = data["strength"]
    want = sum(s[i][j] + s[j][i] for i in (0, 1) for j in (2, 3))
    one(browser, "#map [data-id='6'] circle").click()  # choosing a folded group opens it
    one(browser, "#map [data-id='6'] circle").click()
    rows = {
        r.text.split("\n")[0]: r.text for r in browser.find_elements(By.CSS_SELECTOR, "#inspector ul:last-child li")
    }
    assert f"{want:.3g}" in rows["pair 1"]


def scale(browser: Any) -> float:
    return float(
        browser.execute_script("return document.querySelector('#map > g').transform.baseVal.consolidate().matrix.a")
    )


def test_zoom_by_buttons_keys_wheel_and_drag(browser: Any) -> None:
    stage = one(browser, "#map")
    one(browser, "#zoom-in").click()
    assert scale(browser) == pytest.approx(1.5)
    one(browser, "#zoom-fit").click()
    assert scale(browser) == pytest.approx(1.0)
    browser.execute_script("document.querySelector('#map [tabindex=\"0\"]').focus({preventScroll: true})")
    press(browser, "+")
    assert scale(browser) == pytest.approx(1.5)
    before = one(browser, "#map > g").get_attribute("transform")
    ActionChains(browser, duration=0).key_down(Keys.SHIFT).send_keys(Keys.ARROW_LEFT).key_up(Keys.SHIFT).perform()
    assert one(browser, "#map > g").get_attribute("transform") != before
    press(browser, "0")
    assert scale(browser) == pytest.approx(1.0)
    turn = "new WheelEvent('wheel', {deltaY: -200, clientX: 400, clientY: 400, cancelable: true})"
    browser.execute_script(f"arguments[0].dispatchEvent({turn})", stage)
    assert scale(browser) > 1.2
    before = one(browser, "#map > g").get_attribute("transform")
    ActionChains(browser, duration=20).move_to_element_with_offset(stage, -300, 200).click_and_hold().move_by_offset(
        60, 20
    ).release().perform()
    assert one(browser, "#map > g").get_attribute("transform") != before


def test_two_fingers_zoom(browser: Any) -> None:
    show(browser, Path(browser.current_url.removeprefix("file://")), 390)
    browser.execute_script("document.getElementById('map').scrollIntoView()")
    box = browser.execute_script("const r=document.getElementById('map').getBoundingClientRect(); return [r.x, r.y]")
    for kind, gap in (("touchStart", 30), ("touchMove", 60), ("touchMove", 90)):
        points = [{"x": box[0] + 150 + way * gap, "y": box[1] + 120, "id": i} for i, way in ((0, -1), (1, 1))]
        browser.execute_cdp_cmd("Input.dispatchTouchEvent", {"type": kind, "touchPoints": points})
    browser.execute_cdp_cmd("Input.dispatchTouchEvent", {"type": "touchEnd", "touchPoints": []})
    assert scale(browser) > 1.5


def test_interface_cards_open_from_the_map_and_from_links(browser: Any) -> None:
    one(browser, "#map .leaf[data-id='0'] circle").click()
    browser.find_elements(By.CSS_SELECTOR, "#inspector li button")[0].click()
    link = one(browser, "#inspector a[href^='#interface-']")
    name = link.get_attribute("href").rsplit("#")[1]
    link.click()
    until(lambda: one(browser, f"#{name}").get_attribute("open") is not None and in_view(browser, f"#{name}"))
    assert "correlation" not in one(browser, f"#{name} table").text and "0.6" in one(browser, f"#{name} table").text


def test_the_method_is_a_drawer_that_keeps_and_gives_back_the_focus(browser: Any) -> None:
    link = one(browser, "nav a[href='#method']")
    link.send_keys(Keys.ENTER)
    drawer = one(browser, "#method")
    assert drawer.is_displayed() and "digest of the weights" in drawer.text and "mean" in drawer.text
    assert browser.execute_script("return document.getElementById('method').contains(document.activeElement)")
    press(browser, Keys.ESCAPE)
    until(lambda: not drawer.is_displayed())
    assert focused(browser, "href") == link.get_attribute("href")


def test_more_examples_come_as_heat_maps(browser: Any) -> None:
    card = one(browser, "#module-0")
    before = len(card.find_elements(By.CSS_SELECTOR, ".heats li"))
    button = card.find_element(By.CSS_SELECTOR, "button[data-more]")
    browser.execute_script("arguments[0].scrollIntoView({block: 'center'})", button)
    button.click()
    assert len(card.find_elements(By.CSS_SELECTOR, ".heats li")) == before + 25
    inks = {browser.execute_script(
        "return getComputedStyle(document.querySelector(arguments[0])).backgroundColor", f"#module-0 .h{n}"
    ) for n in (2, 9)}  # fmt: skip
    assert len(inks) == 2


@pytest.mark.parametrize("width", [320, 390, 768, 1280])
def test_the_page_never_scrolls_sideways(browser: Any, page: Path, width: int) -> None:
    show(browser, page, width)
    for details in browser.find_elements(By.TAG_NAME, "details"):
        browser.execute_script("arguments[0].open = true", details)
    assert browser.execute_script("return document.documentElement.scrollWidth") <= width


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_is_readable_in_light_and_dark(browser: Any, page: Path, scheme: str) -> None:
    prefer(browser, "prefers-color-scheme", scheme)
    show(browser, page, 1280)
    # WCAG 2 contrast of ordinary text is at least 4.5; ink over the strongest heat is the worst case of the page.
    ratio = browser.execute_script("""
      const paint = document.createElement('canvas').getContext('2d', {willReadFrequently: true});
      const rgb = (c, over) => { for (const f of [over, c]) { paint.fillStyle = f; paint.fillRect(0,0,1,1); }
        return [...paint.getImageData(0,0,1,1).data].slice(0,3); };
      const light = (c) => { const [r,g,b] = c.map(v =>
          { v/=255; return v<=.03928 ? v/12.92 : ((v+.055)/1.055)**2.4 });
        return .2126*r+.7152*g+.0722*b };
      const contrast = (a, b) => { const [x,y] = [light(a), light(b)].sort((p,q)=>q-p); return (x+.05)/(y+.05) };
      const paper = getComputedStyle(document.body).backgroundColor, ink = getComputedStyle(document.body).color;
      const out = [contrast(rgb(ink, paper), rgb(paper, paper)),
        contrast(rgb(getComputedStyle(document.querySelector('.note')).color, paper), rgb(paper, paper))];
      for (const e of document.querySelectorAll('.heat .h9'))
        out.push(contrast(rgb(ink, paper), rgb(getComputedStyle(e).backgroundColor, paper)));
      return Math.min(...out)""")
    assert ratio >= 4.5


def test_landmarks_names_and_headings_are_there_for_screen_readers(browser: Any) -> None:
    for css in (
        "main",
        "nav[aria-label]",
        "header h1",
        "footer",
        "[role=tree][aria-labelledby]",
        "#inspector[aria-live]",
    ):
        assert one(browser, css)
    nameless = browser.execute_script("""
      const css = 'button, a, input, [role=button], [role=treeitem], svg[role=img], article, section';
      const told = e => ['aria-label', 'aria-labelledby'].some(a => e.getAttribute(a)) || e.labels?.length;
      return [...document.querySelectorAll(css)].filter(e => !(e.textContent.trim() || told(e)))
        .map(e => e.outerHTML.slice(0, 80))""")
    assert nameless == []
    assert len(browser.execute_script("return [...document.querySelectorAll('h1')].map(e => e.textContent)")) == 1


def test_a_crafted_text_runs_nothing_and_changes_no_markup(driver: Any, tmp_path: Path) -> None:
    parts: dict[str, Any] = {
        "cards": deck(4, 30, text=EVIL),
        "trace": a_trace(text=EVIL),
        "effects": effects_table(EVIL),
    }
    path = modcut.report(tmp_path / "evil.html", **parts, title=EVIL, meta={"summary": EVIL, "command": EVIL})
    plain = modcut.report(tmp_path / "plain.html", cards=deck(4, 30), trace=a_trace(), effects=effects_table())
    tags = (
        "return [...document.querySelectorAll('script, style, iframe, img, a[href^=javascript], svg[onload]')].length"
    )
    counts = []
    for file in (plain, path):
        show(driver, file, 1280)
        for details in driver.find_elements(By.TAG_NAME, "details"):
            driver.execute_script("arguments[0].open = true", details)
        for button in driver.find_elements(By.CSS_SELECTOR, "button[data-more]"):
            driver.execute_script("arguments[0].click()", button)
        for circle in driver.find_elements(By.CSS_SELECTOR, "#map [data-id]"):
            driver.execute_script("arguments[0].dispatchEvent(new MouseEvent('click', {bubbles: true}))", circle)
        counts.append(driver.execute_script(tags))
        assert driver.execute_script("return window.hit") is None
        assert driver.get_log("browser") == []
    assert counts[0] == counts[1] == 3
    assert "window.hit=1" in driver.find_element(By.ID, "cards").text and "49" not in one(driver, "h1").text
    assert driver.execute_script("return /[\\u202a-\\u202e\\u2066-\\u2069]/.test(document.body.innerText)") is False


def test_the_policy_stops_a_script_that_got_in(driver: Any, page: Path, tmp_path: Path) -> None:
    path = tmp_path / "planted.html"
    planted = "<script>window.hit=1</script><img src=x onerror='window.hit=1'><p style='color:red' id='red'>x</p>"
    path.write_text(page.read_text(encoding="utf-8").replace("</main>", planted + "</main>"), encoding="utf-8")
    show(driver, path, 1280)
    until(lambda: len(shown(driver, "#map .leaf")) == 6)  # its own script does run
    assert driver.execute_script("return window.hit") is None
    assert any("Content Security Policy" in e["message"] for e in driver.get_log("browser"))


def test_without_its_script_the_page_still_shows_everything(driver: Any, page: Path) -> None:
    driver.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": True})
    try:
        show(driver, page, 1280)
        assert shown(driver, ".still svg") and not shown(driver, "#map")
        assert "digest of the weights" in one(driver, "#method").text
        assert len(shown(driver, "article.card")) == 6
    finally:
        driver.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": False})


def test_paper_shows_the_still_map_all_cards_and_the_method(browser: Any) -> None:
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "print"})
    try:
        assert shown(browser, ".still svg") and not shown(browser, ".explorer") and not shown(browser, "nav")
        assert one(browser, "#method").is_displayed()
        made = browser.execute_cdp_cmd("Page.printToPDF", {"printBackground": False})
        assert len(made["data"]) > 50_000
    finally:
        browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": ""})


def test_thirty_modules_and_ten_thousand_examples_stay_small_and_smooth(driver: Any, tmp_path: Path) -> None:
    path = modcut.report(tmp_path / "big.html", cards=deck(30, 334))
    assert path.stat().st_size < 5_000_000
    show(driver, path, 1280)
    loaded = driver.execute_script(
        "const n=performance.getEntriesByType('navigation')[0]; return n.loadEventEnd-n.startTime"
    )
    examples = driver.execute_script(
        "const d=JSON.parse(document.getElementById('data').textContent).examples;"
        "return Object.values(d).reduce((n, e) => n + e.length, 0) + document.querySelectorAll('.heats li').length"
    )
    assert examples >= 10_000
    assert loaded < 5000  # a loaded two-core machine; about half a second where it is quiet
    frames = driver.execute_async_script("""
      const done = arguments[0], stage = document.getElementById('map'), times = [];
      stage.querySelector('[tabindex="0"]').focus();
      let last = performance.now(), n = 0;
      const step = (now) => {
        times.push(now - last); last = now;
        const box = stage.getBoundingClientRect();
        stage.dispatchEvent(new WheelEvent('wheel', {deltaY: n < 30 ? -60 : 60, cancelable: true,
          clientX: box.x + box.width / 3, clientY: box.y + box.height / 2}));
        if (++n < 60) requestAnimationFrame(step); else done(times.slice(2).sort((a, b) => a - b));
      };
      requestAnimationFrame(step);""")
    assert frames[len(frames) // 2] < 50
