"""The page's generation in Chromium: sequences appear while they are written, and can be stopped, saved and shared."""

import json
import re
from urllib.parse import parse_qs, urlsplit

import pytest
from asking import TOKEN
from page_server import events
from test_page import CONTRAST, NAMED, Real, app, browser, focused, opened, press_until, real, server, tab, text

from hyenadna.serve import schemas

__all__ = ["app", "browser", "real", "server", "tab"]  # fixtures

PROMPT = "ACGTTGCATG"
ASKED = {"sequence": PROMPT, "task": "generate", "length": 60, "count": 2, "seed": 4}


def answer(**options):
    """What the canned server writes."""
    body = {"prompt": PROMPT, "length": 60, "count": 2, "seed": 4} | options
    return json.loads(events(body)[-1].partition("data: ")[2])


def shown(tab):
    return tab.evaluate("[...document.querySelectorAll('.written')].map((one) => one.textContent)")


def test_it_appears_while_it_is_written_and_can_be_stopped(tab, server) -> None:
    opened(tab, server)
    server.hold.clear()
    tab.evaluate(f"sequence.value = '{PROMPT}'")
    press_until(tab, "Tab", "likelihood")
    press_until(tab, "ArrowDown", "generate")
    tab.evaluate(
        "document.getElementById('generate-length').value = 60, document.getElementById('generate-seed').value = 4"
    )
    press_until(tab, "Tab", "run")
    tab.key("Enter")
    tab.until("document.querySelector('.written')?.textContent.length === 30")
    halves = [item["sequence"][:30] for item in answer(count=1)["items"]]
    assert shown(tab) == halves and focused(tab) == "cancel" and text(tab, "#cancel") == "Stop"
    # a screen reader hears of the whole now and then, and not of every base
    assert text(tab, "#status") == "Writing 1 sequence of 60 bases …"
    assert not tab.evaluate("!!document.querySelector('.written').closest('[aria-live], [role=status], [role=log]')")
    tab.key("Enter")
    tab.until("cancel.hidden")
    assert re.fullmatch(r"Stopped after \d+\.\d s\.", text(tab, "#status")) and focused(tab) == "run"
    assert shown(tab) == halves and "30 bases, then it was stopped" in text(tab, "#item-result")
    task, _, body = server.requests[0]
    schemas.GenerateRequest.model_validate(body)
    assert task == "generate" and body["prompt"] == PROMPT and body["stream"] is True


def test_all_of_it(tab, server) -> None:
    opened(tab, server, **ASKED, temperature=0.5, run=1)
    tab.until("!!document.querySelector('canvas')")
    one, other = answer()["items"]
    assert text(tab, "#asked") == "Generate, by starter, 2 sequences of 60 bases, seed 4, temperature 0.5"
    assert focused(tab) == "results-title" and shown(tab) == [one["sequence"]]
    assert all(f"{item['bits_per_base']:.4f}" in text(tab, "#overview") for item in (one, other))
    tab.evaluate("item.value = 1, item.dispatchEvent(new Event('change'))")
    assert shown(tab) == [other["sequence"]] and "60 bases, all that were asked for" in text(tab, "#item-result")
    press_until(tab, "Tab", "scroller")
    tab.key("End")
    assert f"Position 60, {other['sequence'][-1]}: ln p" in tab.evaluate("document.activeElement.ariaValueText")
    saved = "navigator.clipboard.writeText = (text) => { globalThis.copied = text; return Promise.resolve(); }"
    tab.evaluate(saved + ", document.getElementById('copy-fasta').click()")
    tab.until("!!globalThis.copied")
    header, *lines = tab.evaluate("copied").split(">")[2].splitlines()
    assert "".join(lines) == other["sequence"]
    facts = dict(part.split("=") for part in header.split()[1:])
    assert facts | {"nats": 0, "bits_per_base": 0} == {"seed": "4", "row": "1", "scored": "60", "nats": 0,
        "bits_per_base": 0, "method": "temperature:0.5", "stopped": "length"}  # fmt: skip
    assert float(facts["bits_per_base"]) == pytest.approx(other["bits_per_base"], abs=1e-6)
    assert float(facts["nats"]) == pytest.approx(other["nats"], abs=1e-6)
    assert tab.evaluate("curl.textContent").startswith("curl -sSN ")
    tab.evaluate("copied = null, document.getElementById('copy-link').click()")
    tab.until("!!copied")
    fragment = parse_qs(urlsplit(tab.evaluate("copied")).fragment)
    assert {name: fragment[name] for name in (*ASKED, "temperature")} == {
        name: [str(value)] for name, value in (ASKED | {"temperature": 0.5}).items()
    }


def test_without_a_prompt(tab, server) -> None:
    opened(tab, server)
    script = (
        "document.querySelector('[value=generate]').click(), document.getElementById('generate-length').value = 60, "
    )
    tab.evaluate(script + "run.click()")
    tab.until("!!document.querySelector('canvas')")
    (one,) = answer(prompt="", seed=0, count=1)["items"]
    assert shown(tab) == [one["sequence"]] and f"ln p of 59 bases is {one['nats']:.2f}".replace("-", "−") in text(
        tab, "#item-result"
    )


def test_one_at_a_time(tab, server) -> None:
    """A link that is followed meanwhile changes the fields and begins nothing."""
    opened(tab, server, **ASKED)
    server.hold.clear()
    tab.evaluate("run.click()")
    tab.until("document.querySelector('.written')?.textContent.length === 30")
    tab.evaluate("location.hash = '#task=generate&sequence=GGG&run=1'")
    tab.until("sequence.value === 'GGG'")
    server.hold.set()
    tab.until("cancel.hidden")
    assert [body["prompt"] for _, _, body in server.requests] == [PROMPT]
    assert shown(tab) == [answer()["items"][0]["sequence"]]


def test_a_view_follows_what_is_written_unless_it_was_scrolled(tab, server) -> None:
    opened(tab, server)
    tab.evaluate("""(async () => {
      const { Writing } = await import('/page/generate.js'), writing = new Writing({ count: 2, length: 9999, seed: 0 });
      const pieces = [0, 1].map((row) => ({ row, bases: 'ACGT'.repeat(900), nats: Array(3600).fill(-1) }));
      results.hidden = false;
      document.getElementById('item-result').replaceChildren(writing.root);
      writing.add(pieces);
      const [one, other] = document.querySelectorAll('.written');
      other.scrollTop = 0;
      writing.add(pieces);
      globalThis.left = [one, other].map((view) => [view.scrollTop, view.scrollHeight - view.clientHeight]);
    })()""")
    tab.until("!!globalThis.left")
    (one, one_most), (other, other_most) = tab.evaluate("left")
    assert other == 0 and abs(one - one_most) <= 1 and one_most == other_most > 100


def test_failures_are_told_in_a_line(tab, server) -> None:
    opened(tab, server, **ASKED)

    def told(sequence=PROMPT, **fields):
        for name, value in fields.items():
            tab.evaluate(f"document.getElementById('generate-{name}').value = '{value}'")
        tab.evaluate(f"sequence.value = {json.dumps(sequence)}, run.click()")
        tab.until("!problem.hidden && cancel.hidden")
        said = text(tab, "#problem")
        tab.evaluate("problem.hidden = true")
        return said

    assert told("ACGNT") == "“N” at position 4: a generation goes on from A, C, G and T alone."
    assert told(">x\nAC\n>y\nGT") == "There are 2 sequences; a generation goes on from one."
    assert told(length=1025) == "“Length” takes a number from 1 to 1,024, without a fraction."
    assert told(length=60, top_p=0) == "“Top-p” takes a number from 0.000001 to 1." and focused(tab) == "generate-top_p"
    assert not server.requests
    error = {"error": {"code": "queue_full", "message": "generations of 9 tokens are under way already"}}
    server.refusal = 429, {"retry-after": "7"}, json.dumps(error).encode()
    assert told(top_p=1) == "The server is busy: generations of 9 tokens are under way already. Try again in 7 s."
    server.refusal = None
    server.failure = 'event: error\ndata: {"error":{"code":"internal_error","message":"the model failed"}}\n\n'
    assert told() == "the model failed."
    # what was written stays
    assert "30 bases, then it was stopped" in text(tab, "#item-result")
    server.failure = ""
    assert told() == "The server's answer was cut off; try again."


@pytest.mark.parametrize(("width", "theme"), [(360, "dark"), (1200, "light")])
def test_it_fits_and_can_be_read(tab, server, width, theme) -> None:
    tab.size(width, 900)
    tab.media(prefers_color_scheme=theme)
    opened(tab, server, **ASKED | {"length": 500}, run=1)
    tab.until("!!document.querySelector('canvas')")
    assert tab.evaluate("document.documentElement.scrollWidth") == width
    assert tab.evaluate(CONTRAST) == []
    nodes = tab.command("Accessibility.getFullAXTree")["nodes"]
    found = [(node["role"]["value"], node.get("name", {}).get("value", "")) for node in nodes if not node["ignored"]]
    assert [role for role, name in found if role in NAMED and not name] == []
    assert {"Length", "Sequences", "Seed", "Temperature"} <= {name for role, name in found if role == "spinbutton"}


def test_the_server_s_own(real: Real, tab) -> None:
    """With the token, by the stream, and what the API gives without one."""
    options = {"length": 12, "count": 2, "seed": 4}
    tab.evaluate("0")
    tab.open(
        f"http://x:{TOKEN.decode()}@127.0.0.1:{real._port}/#task=generate&sequence={PROMPT}&length=12&count=2&seed=4&run=1"
    )
    tab.until("document.documentElement?.dataset.ready === 'yes' && !!document.querySelector('canvas')")
    head = {"authorization": f"Bearer {TOKEN.decode()}"}
    items = real._app.ask("POST", "/v1/generate", json={"prompt": PROMPT} | options, headers=head).json()["items"]
    assert shown(tab) == [items[0]["sequence"]]
    assert all(f"{item['bits_per_base']:.4f}" in text(tab, "#overview") for item in items)
    canned = answer()["items"][0]
    assert canned.keys() == items[0].keys() and schemas.GenerateItem.model_validate(canned, strict=True)
