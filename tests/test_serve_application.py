import asyncio
import json
import math
import re
import threading

import numpy as np
import pytest
from asking import DNA, JSON, TOKEN, Application, leaving, raw, refused, served, silence

from hyenadna.errors import HyenaError
from hyenadna.serve import access_log, service
from hyenadna.serve.admission import DeadlineExceeded, Draining, QueueFull
from hyenadna.serve.service import encoded

TASKS = ("likelihood", "embed", "predict", "substitutions")


@pytest.fixture(scope="module")
def model():
    return served()


@pytest.fixture
def app(model):
    return Application(model)


def answering(app: Application, error: Exception):
    async def submit(job, *, deadline):
        raise error

    app.batcher.submit = submit


class TestAnswers:
    def test_items_come_in_order_with_their_ids(self, app):
        body = {"sequences": [{"id": "x", "sequence": "ACGT"}, {"sequence": "AC!"}, {"sequence": "acgtn"}]}
        answer = app.post("likelihood", body).json()
        assert answer["model"] == "small" and [item["id"] for item in answer["items"]] == ["x", "2", "3"]
        good, bad, lower = answer["items"]
        assert good["length"] == 4 and good["scored"] == 3 and good["nats"] < 0 and "per_base" not in good
        assert bad.keys() == {"id", "error"} and bad["error"]["code"] == "not_dna"
        assert lower["scored"] == 3

    def test_per_base_adds_up(self, app):
        (item,) = app.likelihood(DNA, per_base=True).json()["items"]
        assert len(item["per_base"]) == len(DNA) and item["per_base"][0] is None and item["per_base"][4] is None
        assert math.isclose(sum(filter(None, item["per_base"])), item["nats"], rel_tol=1e-6)
        assert math.isclose(item["bits_per_base"], -item["nats"] / item["scored"] / math.log(2), rel_tol=1e-6)

    def test_numbers_have_the_digits_of_float32(self):
        values = np.random.default_rng(0).standard_normal(1000).astype(np.float32) * np.float32(1e-3)
        back = np.array(json.loads(encoded(values.tolist())))
        assert np.max(np.abs(back - values) / np.spacing(np.abs(values))) < 1
        assert len(encoded([0.1, 1.0, None, True, "a\n"])) == len('[0.1,1,null,true,"a\\n"]')
        with pytest.raises(ValueError, match="not finite"):
            encoded({"nats": [math.nan]})

    @pytest.mark.parametrize("adapters", [1, 2])
    def test_each_example_of_the_description_is_answered(self, adapters):
        one = Application(served(adapters))
        paths = one.ask("GET", "/openapi.json").json()
        tried = 0
        for task in TASKS:
            schema = paths["paths"][f"/v1/{task}"]["post"]["requestBody"]["content"]["application/json"]["schema"]
            name = schema["$ref"].rsplit("/", 1)[1]
            for example in paths["components"]["schemas"][name]["examples"]:
                response = one.post(task, example)
                assert response.status_code == 200, response.text
                assert not [item for item in response.json()["items"] if "error" in item]
                tried += 1
        assert tried >= 4

    def test_models_tells_limits_and_adapters(self, model):
        app = Application(model, max_body=1000, max_bases=77)
        answer = app.ask("GET", "/v1/models").json()
        assert answer["limits"]["body_bytes"] == 1000 and answer["limits"]["sequence_bases"] == 77
        assert answer["models"][0]["adapters"].keys() == {"classes", "level"}

    @pytest.mark.parametrize("tokens", [63, 64, 1000, 2048, 5000, 1 << 22])
    def test_the_longest_substitutions_told_are_the_longest_taken(self, model, tokens):
        app = Application(model, max_request_tokens=tokens)
        longest = app.ask("GET", "/v1/models").json()["limits"]["substitutions_bases"]
        assert 0 <= longest <= model.context
        for length in {longest, longest + 1} - {0}:
            response = app.post("substitutions", {"sequences": [{"sequence": "A" * length}]})
            taken = response.status_code == 200 and "error" not in response.json()["items"][0]
            assert taken == (length <= longest)

    def test_state(self, app):
        assert app.ask("GET", "/health").json() == {"status": "ok"}
        assert app.ask("GET", "/ready").json() == {"status": "ready"}
        app.batcher.is_running = False
        refused(app.ask("GET", "/health"), 503, "unavailable", "the model stopped")
        refused(app.ask("GET", "/ready"), 503, "unavailable", "the model stopped")
        refused(app.likelihood(DNA), 503, "unavailable", "the model stopped")

    def test_the_page_and_nothing_beside_it(self, app):
        page = app.ask("GET", "/")
        assert page.headers["content-type"] == "text/html; charset=utf-8" and "<html" in page.text
        assert page.headers["content-security-policy"].startswith("default-src 'self'; ")
        assert "frame-ancestors 'none'" in page.headers["content-security-policy"]
        assert page.headers["x-content-type-options"] == "nosniff" and page.headers["referrer-policy"] == "no-referrer"
        parts = set(re.findall(r'(?:src|href)="(page/[^"]+)"', page.text))
        for name in parts:
            kind = {"css": "text/css", "js": "text/javascript", "svg": "image/svg+xml"}[name.rsplit(".", 1)[1]]
            assert app.ask("GET", f"/{name}").headers["content-type"].split(";")[0] == kind
        assert len(parts) >= 3
        for path in ("/page/../config.py", "/page/%2e%2e/config.py", "/page//etc/passwd", "/page/", "/config.py"):
            refused(app.ask("GET", path), 404, "not_found", "nothing at this address")


class TestRefusals:
    @pytest.mark.parametrize(
        ("body", "match"),
        [
            (b"", "must be a JSON object"),
            (b"[]", "must be a JSON object"),
            (b"ACGT", "not JSON: Expecting value"),
            (b'{"sequences": [{"sequence": "A"}]', "not JSON: Expecting"),
            (b'{"sequences": [{"sequence": "A"}], "timeout_s": NaN}', "it has no NaN"),
            (b'{"sequences": [], "sequences": [{"sequence": "A"}]}', "a name stands twice in one object"),
            (b'{"sequences": [{"sequence": "\xff"}]}', "not JSON: 'utf-8'"),
            (b"[" * 50_000, "nested too deeply"),
            (b'{"timeout_s": ' + b"9" * 5000 + b"}", "not JSON: Exceeds the limit"),
            ('{"sequences": []}'.encode("utf-16"), "not JSON: 'utf-8'"),
        ],
    )
    def test_not_json(self, app, body, match):
        refused(app.post("likelihood", body), 400, "bad_request", match)

    @pytest.mark.parametrize(
        ("body", "match"),
        [
            ({}, "sequences: Field required"),
            ({"sequences": []}, "sequences: List should have at least 1 item"),
            ({"sequences": ["ACGT"]}, r"sequences\.0: it must be an object; /openapi.json has examples$"),
            ({"sequences": [{"sequence": 5}]}, r"sequences\.0\.sequence: Input should be a valid string"),
            ({"sequences": [{"sequence": "A", "id": 5}]}, r"sequences\.0\.id: Input should be a valid string"),
            ({"sequences": [{"sequence": "A", "id": "x" * 257}]}, r"sequences\.0\.id: String should have at most 256"),
            (
                {"sequences": [{"sequence": "A", "path": "/etc"}]},
                r"sequences\.0\.path: there is no such option here; /openapi.json has examples$",
            ),
            ({"sequences": [{"sequence": "\ud800"}]}, r"sequences\.0\.sequence: Value error, not Unicode text"),
            ({"sequences": [{"sequence": "A"}], "strand": "-"}, "strand: Input should be 'forward', 'reverse' or 'b"),
            ({"sequences": [{"sequence": "A"}], "per_base": "yes"}, "per_base: Input should be a valid boolean"),
            ({"sequences": [{"sequence": "A"}], "timeout_s": 0}, "timeout_s: Input should be greater than 0"),
            (b'{"sequences": [{"sequence": "A"}], "timeout_s": 1e999}', "timeout_s: Input should be a finite number"),
            (
                {"sequences": [{"sequence": "A"}], "SECRETSECRETSECRET" * 9: 1},
                "^(SECRET|ET|CRET)+.{0,5}: there is no such option",
            ),
        ],
    )
    def test_another_form(self, app, body, match):
        response = refused(app.post("likelihood", body), 422, "invalid_request", match)
        assert len(response.text) < 300

    def test_what_was_sent_does_not_come_back(self, app):
        response = app.post("embed", {"sequences": [{"sequence": ["TTAGGCTTAGGC"]}], "pool": "TTAGGC"})
        assert response.status_code == 422 and "TTAGGC" not in response.text

    def test_options_that_the_model_has_not(self, app, model):
        one = {"sequences": [{"sequence": DNA}]}
        refused(app.post("embed", one | {"layer": 3}), 422, "invalid_request", "3")
        refused(app.post("predict", one), 422, "invalid_request", "several adapters; name one of classes, level")
        refused(app.post("predict", one | {"adapter": "x"}), 404, "not_found", "there is classes, level")
        plain = Application(served(adapters=0))
        refused(plain.post("predict", one), 404, "not_found", "no such adapter; hyena serve MODEL --adapter")
        assert "/v1/predict" not in plain.ask("GET", "/openapi.json").json()["paths"]

    def test_limits(self, model):
        app = Application(model, max_sequences=2, max_bases=100, max_request_tokens=300, max_body=2000)
        refused(app.likelihood("A", "C", "G"), 413, "too_large", r"3 sequences; a request takes 2 \(--max-sequences\)")
        refused(app.likelihood("A" * 101), 413, "too_large", r"a sequence of 101 bases; at most 100 .*--max-bases")
        message = r"costs [\d,]+ tokens, at most 300 are taken"
        refused(app.post("substitutions", {"sequences": [{"sequence": DNA}]}), 413, "too_large", message)
        refused(app.likelihood("A" * 2000), 413, "too_large", r"more than 2,000 bytes \(--max-body\)")
        refused(app.post("likelihood", b"{,}" * 100), 413, "too_large", "more than 192 commas, brackets and braces")
        assert app.batcher.deadlines == []
        assert app.likelihood("A" * 100, "C").status_code == 200

    def test_a_body_in_pieces_is_held_to_the_limit(self, model):
        app = Application(model, max_body=1000)
        start, body = raw(app, "/v1/likelihood", [b" " * 400] * 3, then=leaving)
        assert start["status"] == 413 and b"1,000 bytes" in body["body"] and app.service.metrics is not None
        assert (b"connection", b"close") in start["headers"]

    def test_kinds(self, app):
        body = b'{"sequences": [{"sequence": "ACGT"}]}'

        def kind(**headers: str):
            return app.ask("POST", "/v1/likelihood", content=body, headers=headers)

        for content_type in ("text/plain", "application/x-www-form-urlencoded", "multipart/form-data", ""):
            refused(kind(**{"content-type": content_type}), 415, "unsupported_media_type", "application/json")
        refused(kind(**{"content-type": "application/json; charset=latin-1"}), 415, "unsupported_media_type", "UTF-8")
        refused(kind(**JSON, **{"content-encoding": "gzip"}), 415, "unsupported_media_type", "Content-Encoding")
        assert kind(**{"content-type": "Application/JSON; charset=UTF-8"}).status_code == 200

    def test_addresses_and_methods(self, app):
        refused(app.ask("GET", "/v1/invent"), 404, "not_found", "/openapi.json tells")
        refused(app.ask("GET", "/docs"), 404, "not_found", "nothing at this address")
        refused(app.ask("GET", "/v1/embed"), 405, "method_not_allowed", "this address takes POST alone")
        refused(app.ask("POST", "/health"), 405, "method_not_allowed", "this address takes GET and HEAD alone")

    def test_the_queue_is_full(self, app):
        answering(app, QueueFull("8 tokens wait already", 2.2))
        response = refused(app.likelihood(DNA), 429, "queue_full", "8 tokens wait already")
        assert response.headers["retry-after"] == "3"

    def test_too_many_requests_wait(self, app, monkeypatch):
        monkeypatch.setattr(service, "_MOST_REQUESTS", 0)
        response = refused(app.likelihood(DNA), 429, "queue_full", "0 requests wait already")
        assert response.headers["retry-after"] == "1"

    def test_too_late(self, app):
        answering(app, DeadlineExceeded("not done within 1 s"))
        refused(app.likelihood(DNA), 504, "deadline_exceeded", "not done within 1 s")

    def test_the_deadline_is_the_shorter_one(self, model):
        app = Application(model, deadline=30.0)
        for asked in ({}, {"timeout_s": 2}, {"timeout_s": 2.5}, {"timeout_s": 600}):
            assert app.likelihood(DNA, **asked).status_code == 200
        assert app.batcher.deadlines == [30.0, 2, 2.5, 30.0]

    def test_a_defect_says_nothing_of_the_request(self, app, capsys):
        answering(app, ValueError("TTAGGCTTAGGC"))
        response = refused(app.likelihood("TTAGGCTTAGGC"), 500, "internal_error", "its log says where")
        told = capsys.readouterr().err
        assert "TTAGGC" not in response.text + told and "hyena: defect: ValueError in submit (" in told


class TestTheEnd:
    def test_a_draining_server_takes_no_work(self, app):
        asyncio.run(app.service.drain())
        assert app.batcher.drained
        response = refused(app.ask("GET", "/ready"), 503, "unavailable", "the server is stopping")
        assert response.headers["retry-after"] == "5" and response.headers["connection"] == "close"
        refused(app.likelihood(DNA), 503, "unavailable", "the server is stopping")
        health = app.ask("GET", "/health")
        assert health.status_code == 200 and health.headers["connection"] == "close"

    def test_work_that_comes_as_the_batcher_closes(self, app):
        async def submit(job, *, deadline):
            app.service.is_draining = True
            raise Draining("ending")

        app.batcher.submit = submit
        refused(app.likelihood(DNA), 503, "unavailable", "the server is stopping")

    def test_a_model_that_stops_while_work_waits(self, app):
        async def submit(job, *, deadline):
            app.batcher.is_running = False
            raise HyenaError("the server's model stopped")

        app.batcher.submit = submit
        refused(app.likelihood(DNA), 503, "unavailable", "the model stopped; restart the server")

    def test_what_was_taken_on_is_answered_first(self, app):
        async def run():
            finish, order = asyncio.Event(), []

            async def submit(job, *, deadline):
                await finish.wait()
                return []

            app.batcher.submit = submit
            body = [{"type": "http.request", "body": b'{"sequences":[{"sequence":"A"}]}', "more_body": False}]
            scope = {"type": "http", "method": "POST", "path": "/v1/likelihood", "query_string": b"", "root_path": "",
                     "headers": [(b"host", b"localhost"), (b"content-type", b"application/json")]}  # fmt: skip

            async def receive():
                return body.pop() if body else await silence()

            async def send(message):
                await asyncio.sleep(0)
                order.append(message.get("status", "body"))

            asked = asyncio.create_task(app.asgi(scope, receive, send))
            while not app.service._accepted:
                await asyncio.sleep(0)
            drained = asyncio.create_task(app.service.drain())
            drained.add_done_callback(lambda _: order.append("drained"))
            await asyncio.sleep(0.05)
            assert order == []
            finish.set()
            await asyncio.gather(asked, drained)
            return order

        assert asyncio.run(run()) == [200, "body", "drained"]

    def test_a_client_that_leaves_ends_its_work(self, app, capsys):
        ended = threading.Event()

        async def submit(job, *, deadline):
            try:
                await asyncio.Event().wait()
            finally:
                ended.set()

        app.batcher.submit = submit
        last = {"type": "http.request", "body": b"", "more_body": False}
        steps = [last]

        async def then():
            return steps.pop() if steps else await leaving()

        raw(app, "/v1/likelihood", [b'{"sequences":[{"sequence":"TTAGGC"}]}'], then=then)
        assert ended.is_set() and app.service._accepted == set()
        told = capsys.readouterr().err
        assert re.search(r"Z POST /v1/likelihood 499 \d\.\d{3} s \d+ tokens\n", told) and "TTAGGC" not in told

    def test_a_client_that_leaves_while_it_sends(self, app, capsys):
        raw(app, "/v1/likelihood", [b'{"sequences":'], then=leaving)
        assert "POST /v1/likelihood 408" in capsys.readouterr().err


class TestCounting:
    def test_metrics(self, app):
        app.likelihood(DNA)
        app.likelihood("A" * 10, strand="none")
        for path in ("/a", "/b", "/v1/likelihood/x"):
            app.ask("GET", path)
        response = app.ask("GET", "/metrics")
        assert response.headers["content-type"].startswith("text/plain; version=")
        lines = response.text.splitlines()
        assert 'hyena_requests_total{route="/v1/likelihood",status="200"} 1.0' in lines
        assert 'hyena_requests_total{route="/v1/likelihood",status="422"} 1.0' in lines
        assert 'hyena_requests_total{route="other",status="404"} 3.0' in lines
        assert 'hyena_request_seconds_count{route="/v1/likelihood"} 2.0' in lines
        assert {"hyena_queue_tokens 11.0", "hyena_batches_total 3.0", "hyena_tokens_total 400.0"} <= set(lines)
        assert {"hyena_generated_tokens_total 99.0", "hyena_generations 2.0"} <= set(lines)
        assert [line for line in lines if line.startswith("hyena_model_info{") and 'name="small"' in line]
        assert "hyena_requests_in_flight 1.0" in lines  # this one

    def test_the_log_names_no_sequence_and_no_address_of_a_client(self, app, capsys):
        app.likelihood("TTAGGC", "TTAGGCX")
        app.ask("GET", "/TTAGGC?q=TTAGGC")
        app.ask("GET", "/health")
        told = capsys.readouterr().err.splitlines()
        assert [line.split(" ", 1)[1].split(" s ")[0].rsplit(" ", 1)[0] for line in told] == [
            "POST /v1/likelihood 200",
            "GET other 404",
        ]
        assert "TTAGGC" not in "".join(told) and set(access_log._PROBES) >= {"/health"}


class TestDescription:
    def test_it_is_of_this_server(self, model):
        described = Application(model, max_sequences=9).ask("GET", "/openapi.json").json()
        parts = described["components"]["schemas"]
        layer = parts["EmbedRequest"]["properties"]["layer"]
        assert (layer["minimum"], layer["maximum"]) == (-3, 2)
        assert parts["EmbedRequest"]["properties"]["sequences"]["maxItems"] == 9
        assert parts["PredictRequest"]["properties"]["adapter"]["enum"] == ["classes", "level"]
        assert parts["PredictRequest"]["required"] == ["sequences", "adapter"]
        assert "security" not in described

    def test_it_tells_of_the_token(self, model):
        app = Application(model, TOKEN)
        described = app.ask("GET", "/openapi.json", headers={"authorization": f"Bearer {TOKEN.decode()}"}).json()
        assert described["security"] and described["paths"]["/health"]["get"]["security"] == []


def test_head_is_get_without_the_body(app):
    for path in ("/", "/health", "/ready", "/metrics", "/v1/models", "/openapi.json", "/page/page.js"):
        get, head = app.ask("GET", path), app.ask("HEAD", path)
        assert head.status_code == 200 and head.content == b""
        assert head.headers["content-type"] == get.headers["content-type"]
        if path != "/metrics":
            assert head.headers["content-length"] == str(len(get.content))
    assert app.ask("HEAD", "/v1/embed").headers["allow"] == "POST"
    assert app.ask("HEAD", "/nothing").status_code == 404
    deleted = app.ask("DELETE", "/health")
    assert deleted.status_code == 405 and deleted.headers["allow"] == "GET, HEAD"
