"""The page in Chromium: against canned answers under the server's content policy, and against the server itself."""

import json
import os
import re
import subprocess
from pathlib import Path
from urllib.parse import urlencode

import chromium
import numpy as np
import pytest
from asking import TOKEN, Application, listening
from page_server import MODELS, PAGE, PageServer, item
from served_models import served

from hyenadna.serve import schemas

SEQUENCE = "ACGTTGCATGTCGCATGATGCATGAGAGCTNNGTAACGGT"
NAMED = ["textbox", "button", "radio", "combobox", "slider", "spinbutton", "heading", "table", "link", "progressbar"]
"""Roles that a screen reader announces by a name."""


@pytest.fixture(scope="module")
def server():
    with PageServer() as server:
        yield server
        server.shutdown()


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    if chromium.PROGRAM is None:
        pytest.skip("there is no Chromium (Debian: apt install chromium)")
    with chromium.browser(tmp_path_factory.mktemp("chromium")) as browser:
        yield browser


@pytest.fixture
def tab(browser, server):
    server.reset()
    tab = chromium.Tab(browser)
    yield tab
    server.hold.set()
    # no script failed, and nothing came from elsewhere or stood in the page's own text
    assert tab.complaints() == []
    tab.close()


def opened(tab, server, **fragment):
    tab.open(server.url + ("#" + urlencode(fragment) if fragment else ""))
    tab.until("document.documentElement?.dataset.ready === 'yes'")
    if "run" in fragment:
        tab.until("!document.getElementById('results').hidden || !document.getElementById('problem').hidden")


def text(tab, selector):
    return tab.evaluate(f"document.querySelector({json.dumps(selector)}).innerText")


def focused(tab):
    return tab.evaluate("document.activeElement.id || document.activeElement.value || document.activeElement.className")


def press_until(tab, key, name):
    for _ in range(40):
        if focused(tab) == name:
            return
        tab.key(key)
    raise AssertionError(f"{name} is not reached by {key}; it stops at {focused(tab)}")


def test_files_hold_nothing_inline_and_nothing_foreign() -> None:
    for file in PAGE.iterdir():
        content = file.read_text()
        assert content.count("\n") < 400, file.name
        assert re.sub("http://www.w3.org/2000/svg", "", content).find("://") < 0, file.name
    html = (PAGE / "index.html").read_text()
    assert not re.search(r"\sstyle=|\son\w+=|<style|<script(?! type=\"module\" src=)", html)
    assert re.findall(r'(?:src|href)="([^"#]+)"', html) == [
        "page/icon.svg", "page/page.css", "page/page.js", "page/icon.svg", "openapi.json",
    ]  # fmt: skip


def test_by_keyboard_alone(tab, server) -> None:
    opened(tab, server)
    press_until(tab, "Tab", "sequence")
    tab.command("Input.insertText", text=SEQUENCE)
    press_until(tab, "Tab", "likelihood")
    tab.key("ArrowDown")
    assert focused(tab) == "substitutions"
    press_until(tab, "Tab", "run")
    tab.key("Enter")
    tab.until("!document.getElementById('results').hidden")
    assert focused(tab) == "results-title"
    press_until(tab, "Tab", "scroller")
    expected = item("substitutions", 1, {"sequence": SEQUENCE})["log_likelihood_ratio"]
    tab.key("ArrowRight")
    said = tab.evaluate("document.activeElement.getAttribute('aria-valuetext')")
    assert said.startswith("Position 2, reference C: A ") and said == text(tab, ".readout")
    numbers = [float(number.replace("−", "-")) for number in re.findall(r"[ACGT] ([+−\d.]+)", said.split(":")[1])]
    assert numbers == pytest.approx([expected[1][base] for base in (0, 2, 3)], abs=6e-3)
    tab.key("End")
    assert "Position 40" in tab.evaluate("document.activeElement.getAttribute('aria-valuetext')")
    task, _, body = server.requests[0]
    assert (task, body) == ("substitutions", {"sequences": [{"sequence": SEQUENCE}], "strand": "forward"})


def test_every_task_shows_its_answer(tab, server) -> None:
    opened(tab, server, sequence=f">one\n{SEQUENCE}\n>bad\nNNN", task="likelihood", strand="both", run=1)
    expected = item("likelihood", 1, {"sequence": SEQUENCE})
    assert f"{expected['bits_per_base']:.4f} bits per base" in text(tab, "#item-result")
    assert server.requests[0][2]["strand"] == "both" and server.requests[0][2]["per_base"] is True
    # the sequence without an answer says why
    tab.evaluate("item.value = 1, item.dispatchEvent(new Event('change'))")
    assert text(tab, "#item-result") == "bad: the model gives no numbers for it"
    opened(tab, server, sequence=SEQUENCE, task="predict:splice", run=1)
    tab.until("!!document.querySelector('.bars')")
    assert server.requests[1][2]["adapter"] == "splice"
    assert "Sequence 1: acceptor" in text(tab, "#item-result")
    rows = tab.evaluate("[...document.querySelectorAll('.bars tbody tr')].map((row) => row.innerText.split(/\\s+/))")
    assert rows == [
        ["acceptor", "0.9000"], ["donor", "0.0800"], ["neither", "0.0200"],
    ]  # fmt: skip
    opened(tab, server, sequence=SEQUENCE, task="embed", pool="max", layer=1, run=1)
    tab.until("document.getElementById('item-result').innerText.includes('128 numbers')")
    assert {"pool": "max", "layer": 1}.items() <= server.requests[2][2].items()


def test_failures_are_told_in_a_line(tab, server) -> None:
    opened(tab, server)

    def told(sequence):
        tab.evaluate(f"sequence.value = {json.dumps(sequence)}, run.click()")
        tab.until("!problem.hidden && cancel.hidden")
        said = text(tab, "#problem")
        tab.evaluate("problem.hidden = true")
        return said

    assert told("") == "There is no sequence: paste one, open a file, or take the example."
    assert told(">x\nACG\n>y\nACJG").startswith("“y”: “J” at position 3 is no nucleotide code. Allowed are")
    assert told(">x\n>y\nACG") == "“x” is empty."
    assert not server.requests
    error = {"error": {"code": "queue_full", "message": "9,000 tokens wait already"}}
    server.refusal = 429, {"retry-after": "7"}, json.dumps(error).encode()
    assert told("ACGT") == "The server is busy: 9,000 tokens wait already. Try again in 7 s."
    server.refusal = 422, {}, json.dumps({"error": {"code": "not_valid", "message": "layer is 9"}}).encode()
    assert told("ACGT") == "layer is 9."
    server.refusal = 502, {"content-type": "text/html"}, b"<h1>Bad gateway</h1>"
    assert told("ACGT") == "HTTP 502 Bad Gateway."
    server.refusal = 200, {}, b'{"model": "star'
    assert told("ACGT") == "The server's answer was cut off; try again."


def test_a_token_is_asked_for_and_kept_in_memory_alone(tab, server) -> None:
    server.token = "it's-secret-0123"
    opened(tab, server, sequence=SEQUENCE, task="likelihood", run=1)
    assert focused(tab) == "token"
    assert "The server asks for a token" in text(tab, "#problem")
    tab.command("Input.insertText", text="wrong-wrong-wrong")
    tab.key("Enter")
    tab.until("problem.innerText.includes('asks for a token')")
    tab.evaluate("token.value = ''")
    tab.command("Input.insertText", text=server.token)
    tab.key("Enter")
    tab.until("!results.hidden")
    assert tab.evaluate("document.getElementById('token-box').hidden")
    assert server.requests[-1][1]["Authorization"] == f"Bearer {server.token}"
    assert tab.evaluate("[localStorage.length, sessionStorage.length, document.cookie]") == [0, 0, ""]
    command = tab.evaluate("curl.textContent")
    assert '"Authorization: Bearer $HYENA_TOKEN"' in command and server.token not in command


def test_a_password_that_the_browser_asked_for_is_enough(tab, server) -> None:
    server.token, server.locks_page = "0123456789abcdef", True
    tab.open(server.url.replace("//", f"//x:{server.token}@") + "#" + urlencode({"sequence": "ACGT", "run": 1}))
    tab.until("document.documentElement?.dataset.ready === 'yes' && !results.hidden")
    assert tab.evaluate("document.getElementById('token-box').hidden")
    command = tab.evaluate("curl.textContent")
    assert '"Authorization: Bearer $HYENA_TOKEN"' in command and server.token not in command


def test_cancel_ends_the_request(tab, server) -> None:
    opened(tab, server)
    server.hold.clear()
    tab.evaluate(f"sequence.value = '{SEQUENCE}', run.click()")
    tab.until("!cancel.hidden && document.activeElement === cancel")
    assert text(tab, "#status") == "Computing 1 sequence, 40 bases …"
    tab.key("Enter")
    tab.until("cancel.hidden")
    assert re.fullmatch(r"Cancelled after \d+\.\d s\.", text(tab, "#status"))
    assert tab.evaluate("problem.hidden && results.hidden") and focused(tab) == "run"


@pytest.mark.parametrize("length", [40, 120_000])
def test_the_command_is_one_that_a_shell_reads_as_meant(tab, server, length) -> None:
    opened(tab, server)
    body = {"sequences": [{"id": '5\' $HOME `id` \\ "x" !1 é\\n', "sequence": "A" * length}], "strand": "both"}
    command = tab.evaluate(f"import('/page/api.js').then((api) => api.curl('likelihood', {json.dumps(body)}))")
    arguments = subprocess.run(
        ["bash", "-c", 'curl() { for word in "$@"; do printf "%s\\n" "$word"; done; [ -t 0 ] || cat; }\n' + command],
        stdin=subprocess.DEVNULL, capture_output=True, text=True, check=True, timeout=20,
    ).stdout.split("\n")  # fmt: skip
    assert arguments[:4] == ["-sS", "-H", "Content-Type: application/json", f"{server.url}v1/likelihood"]
    assert json.loads(arguments[5] if length == 40 else arguments[6]) == body


def test_files_links_and_tables(tab, server, tmp_path) -> None:
    opened(tab, server)
    file = tmp_path / "two.fa"
    file.write_text(";old\r\n>one with more words\r\nAC gt\r\n12 AC\r\n\r\n>\r\nNNACR\r\n")
    root = tab.command("DOM.getDocument")["root"]["nodeId"]
    node = tab.command("DOM.querySelector", nodeId=root, selector="#file")["nodeId"]
    tab.command("DOM.setFileInputFiles", nodeId=node, files=[str(file)])
    tab.until("sequence.value.length > 0")
    assert text(tab, "#summary").startswith("2 sequences, 11 bases. This server takes up to 100,000 bases a sequence")
    tab.evaluate("run.click()")
    tab.until("!results.hidden")
    assert server.requests[0][2]["sequences"] == [{"id": "one", "sequence": "ACgtAC"}, {"sequence": "NNACR"}]
    items = [item("likelihood", n, given) for n, given in enumerate(server.requests[0][2]["sequences"], 1)]
    script = f"import('/page/results.js').then((m) => m.tsv('likelihood', {json.dumps(items)}, "
    lines = tab.evaluate(script + "[{sequence: 'ACgtAC'}, {sequence: 'NNACR'}]))").splitlines()
    assert lines[:2] == ["id\tposition\tbase\tnats", "one\t1\tA\tNA"] and lines[-1] == "2\t5\tR\tNA"
    assert [float(line.split("\t")[3]) for line in lines[2:7]] == items[0]["per_base"][1:]


def test_a_large_file_is_held_and_not_shown(tab, server, tmp_path) -> None:
    opened(tab, server)
    (tmp_path / "large.fa").write_text(">x\n" + "ACGT" * 100_000)
    root = tab.command("DOM.getDocument")["root"]["nodeId"]
    node = tab.command("DOM.querySelector", nodeId=root, selector="#file")["nodeId"]
    tab.command("DOM.setFileInputFiles", nodeId=node, files=[str(tmp_path / "large.fa")])
    tab.until("sequence.disabled")
    assert text(tab, "#summary").startswith("large.fa: 1 sequence, 400,000 bases.")
    tab.evaluate("clear.click()")
    assert not tab.evaluate("sequence.disabled || sequence.value.length")


def test_canned_answers_are_such_as_the_server_gives() -> None:
    """So that what the page does with them it does with the server's."""
    real = Application(served()).ask("GET", "/v1/models").json()
    assert MODELS["limits"].keys() == real["limits"].keys()
    (canned,), (model,) = MODELS["models"], real["models"]
    assert canned.keys() == model.keys()
    for adapter in canned["adapters"].values():
        assert adapter.keys() == model["adapters"]["head"].keys()
    kinds = {"likelihood": schemas.LikelihoodItem, "substitutions": schemas.SubstitutionsItem,
             "predict": schemas.PredictItem, "embed": schemas.EmbedItem}  # fmt: skip
    for task, kind in kinds.items():
        for sequence in (SEQUENCE, "NNN"):
            found = item(task, 1, {"sequence": sequence})
            assert kind.model_validate(found, strict=True) and found.keys() <= kind.model_fields.keys()


BOTH = [{"id": "a", "sequence": SEQUENCE}, {"id": "b", "sequence": "acgu"}]


class Real:
    """The server itself, behind a token, with an adapter of every kind: asked by its API and by its page."""

    def __init__(self, tab, app, port):
        self._tab, self._app, self._port = tab, app, port

    def items(self, task, **options):
        head = {"authorization": f"Bearer {TOKEN.decode()}"}
        return self._app.ask("POST", f"/v1/{task}", json={"sequences": BOTH} | options, headers=head).json()["items"]

    def shown(self, task, **options):
        fragment = {"task": task, "sequence": ">a\n{sequence}\n".format(**BOTH[0]) + ">b\nacgu", "run": 1} | options
        self._tab.open("about:blank")
        self._tab.open(f"http://x:{TOKEN.decode()}@127.0.0.1:{self._port}/#{urlencode(fragment)}")
        self._tab.until("document.documentElement?.dataset.ready === 'yes' && !(results.hidden && problem.hidden)")
        assert self._tab.evaluate("problem.hidden"), text(self._tab, "#problem")
        return "\n".join(text(self._tab, part) for part in ("#asked", "#overview", "#item-result"))


@pytest.fixture(scope="module")
def app():
    return Application(served(), TOKEN)


@pytest.fixture
def real(tab, app):
    with listening(app) as port:
        yield Real(tab, app, port)


def test_the_server_s_own_answers(real) -> None:
    said = real.shown("likelihood", strand="both")
    assert said.startswith("Likelihood, by small, mean of both; positions and bases are those of the sequence as given")
    assert all(f"{one['bits_per_base']:.4f}" in said for one in real.items("likelihood", strand="both"))
    said = real.shown("substitutions")
    for one in real.items("substitutions"):
        assert f"{np.nanmax(np.abs(np.array(one['log_likelihood_ratio'], float))):#.3g}" in said
    said, (one, _) = real.shown("embed", layer=1), real.items("embed", layer=1)
    assert "Embedding, by small, layer 1, mean of the bases" in said and f"{len(one['embedding'])} numbers" in said
    assert f"{one['embedding'][0]:.4f}" in said


def test_the_server_s_own_predictions(tab, real) -> None:
    said, (one, other) = real.shown("predict:head"), real.items("predict", adapter="head")
    assert f"a: {one['prediction']}" in said and f"{max(other['probabilities'].values()):.4f}" in said
    said = real.shown("predict:lora")
    assert all(f"{one['prediction']:#.5g}" in said for one in real.items("predict", adapter="lora"))
    said = real.shown("predict:labels")
    for one in real.items("predict", adapter="labels"):
        assert (", ".join(one["prediction"]) or "none of the labels") in said
    said, (one, _) = real.shown("predict:bases"), real.items("predict", adapter="bases")
    assert f"a: a label for each of {len(SEQUENCE)} bases" in said and one["prediction"] in said
    script = f"import('/page/results.js').then((m) => m.tsv('predict', {json.dumps([one])}, {json.dumps(BOTH[:1])}))"
    head, *rows = [line.split("\t") for line in tab.evaluate(script).splitlines()]
    assert head[2:] == ["base", "prediction", "probability_0", "probability_1"]
    assert "".join(row[3] for row in rows) == one["prediction"]
    assert [float(row[5]) for row in rows] == one["probabilities"]["1"]


@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("width", [360, 1200])
def test_it_fits_and_can_be_read(tab, server, width, theme) -> None:
    tab.size(width, 900)
    tab.media(prefers_color_scheme=theme)
    two = f">{'chr1:100-400_' * 5}\n{SEQUENCE * 6}\n>two\n{SEQUENCE}"
    opened(tab, server, sequence=two, task="substitutions", run=1)
    assert tab.evaluate("document.documentElement.scrollWidth") == width
    assert tab.evaluate(CONTRAST) == []
    tab.size(width, tab.evaluate("document.documentElement.scrollHeight"))
    picture = tab.screenshot()
    assert picture.startswith(b"\x89PNG") and tab.evaluate(COLOURS) > 10
    if "HYENA_ARTEFACTS" in os.environ:
        folder = Path(os.environ["HYENA_ARTEFACTS"])
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"page-{width}-{theme}.png").write_bytes(picture)


def test_screen_readers_find_names(tab, server) -> None:
    opened(tab, server, sequence=SEQUENCE, task="likelihood", run=1)
    nodes = tab.command("Accessibility.getFullAXTree")["nodes"]
    found = [(node["role"]["value"], node.get("name", {}).get("value", "")) for node in nodes if not node["ignored"]]
    assert [role for role, name in found if role in NAMED and not name] == []
    assert ("slider", "Likelihood along the sequence") in found and (
        "textbox",
        "Paste DNA or FASTA, or drop a file here",
    ) in found
    assert {name for role, name in found if role == "group"} >= {"Sequence", "What to compute"}
    assert len([1 for role, _ in found if role == "radio"]) == 4 + len(MODELS["models"][0]["adapters"])


CONTRAST = """(() => {
  const numbers = (colour) => colour.match(/[\\d.]+/g).map(Number);
  const light = (colour) => {
    const linear = (c) => (c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4);
    const [r, g, b] = numbers(colour).map((c) => linear(c / 255));
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const behind = (node) => {
    const colour = getComputedStyle(node).backgroundColor;
    return numbers(colour)[3] === 0 ? behind(node.parentElement) : colour;
  };
  const bad = [];
  for (const node of document.querySelectorAll("body *")) {
    const own = [...node.childNodes].some((child) => child.nodeType === 3 && child.textContent.trim());
    if (!own || node.disabled || !node.checkVisibility() || node.closest("option")) continue;
    const [a, b] = [light(getComputedStyle(node).color), light(behind(node))];
    const ratio = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
    if (ratio < 4.5) bad.push(`${node.tagName} ${node.className} ${ratio.toFixed(2)}`);
  }
  return bad;
})()"""
"""Elements with text that stands out less than 4.5 : 1 (WCAG 2.2, 1.4.3)."""

COLOURS = """new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(() => {
  const canvas = document.querySelector("canvas");
  const data = new Uint32Array(canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height).data.buffer);
  done(new Set(data).size);
})))"""
"""Number of colours in the plot."""
