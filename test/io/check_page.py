#!/usr/bin/env python3
"""Opens a run's page in headless Chromium: nothing may fail to load, and what should stand on it must stand in the DOM.

    check_page.py PROGRAM     PROGRAM trains for seconds, into the folder that DVLA_TEST_PROGRAM names
Returns 77 where there is no Chromium.
"""
import json
import os
import pathlib
import re
import shutil
import subprocess
import sys
import tempfile


def main():
    browser = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if browser is None:
        print("skipped: there is no Chromium (Debian: chromium)")
        return 77
    with tempfile.TemporaryDirectory() as temporary:
        root = pathlib.Path(temporary) / "runs"
        root.mkdir()
        for name in ("first", "second"):
            done = subprocess.run([sys.argv[1], "--name", name, "--iterations", "12", "--animation", "false", "--quiet", "true"],
                                  env={**os.environ, "DVLA_TEST_PROGRAM": str(root)}, capture_output=True, text=True, timeout=200)
            if done.returncode != 0:
                sys.exit(f"the program failed: {done.stdout}{done.stderr}")
        wrong = []

        def dom(file, *more):
            command = [browser, "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--enable-logging=stderr",
                       "--host-resolver-rules=MAP * ~NOTFOUND", f"--user-data-dir={temporary}/profile", "--virtual-time-budget=5000", *more,
                       "--dump-dom", file.as_uri()]
            shown = subprocess.run(command, capture_output=True, text=True, timeout=120)
            for line in shown.stderr.splitlines():  # what its console says, not what the browser misses of a desktop
                if "CONSOLE" in line or "ERR_" in line:
                    wrong.append(f"{file.name}: {line}")
            return shown.stdout

        def expect(fits, what):
            if not fits:
                wrong.append(what)

        page = root / "first" / "index.html"
        text = page.read_text()
        html = dom(page)
        report = json.loads((root / "first" / "report.json").read_text())
        expect(len(text) < 1.5e6, f"the page has {len(text)} bytes")
        expect("data-ready=" in html, "the script did not come to its end")
        charts = 'data-ready="charts"' in html
        expect(charts or "Chart.js was not there" in html, "neither charts nor a word about them")
        expect(not re.search(r"<(script|link|img)[^>]+(src|href)=\"https?:", html), "something is from a network")
        expect("<h1>first</h1>" in html and "finished" in html, "name and state")
        for title in ("Success", "Return of an episode", "Time of a batch", "Memory", "Faults met", "Policies", "How it was started", "Evaluation by task"):
            expect(f"<h2>{title}</h2>" in html, f"no part '{title}'")
        if charts:
            expect(html.count("<canvas") >= 5, "too few charts")
            expect(re.search(r'<canvas[^>]+aria-label="Success"[^>]+width="[1-9]', html) is not None, "the chart of success was not drawn")
            expect("Permission is hereby granted" in text, "Chart.js stands there without its licence")
        expect("algorithm.learning_rate" in html or "run.iterations" in html, "no knob that was changed")
        number = f"{report['success_rate']:.3g}"
        expect(f"<b>{float(number):g}</b>" in html, f"the success {number} of report.json")
        listing = dom(root / "index.html")
        expect('href="first/index.html"' in listing and 'href="second/index.html"' in listing, "runs/index.html does not list both")
        narrow = dom(page, "--window-size=360,800", "--force-dark-mode")
        expect("data-ready=" in narrow, "not on a phone in the dark")
        if wrong:
            sys.exit("\n".join(wrong))
    print("the page is whole")
    return 0


sys.exit(main())
