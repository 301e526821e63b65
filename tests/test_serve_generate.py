"""Generation over HTTP: answers whole and in events, limits, failures, deadlines, and clients that leave."""

import asyncio
import json
import math
import re
import threading

import pytest
from asking import TOKEN, Application, leaving, refused, served
from batching import LIMITS, LONG, pass_time

from hyenadna.errors import NotFiniteError
from hyenadna.inference.decoding import Decoding
from hyenadna.inference.generate import stream
from hyenadna.inference.generation import Piece
from hyenadna.serve import generation, service
from hyenadna.serve.admission import QueueFull
from hyenadna.serve.batcher import Batcher

PROMPT = "ACGTTGCA"
BODY = {"prompt": PROMPT, "length": 12, "count": 2, "seed": 3}


@pytest.fixture(scope="module")
def model():
    return served()


@pytest.fixture
def app(model):
    return Application(model)


def events(text: str) -> list[tuple[str, dict]]:
    """Names and data, as a client reads them; a comment has none."""
    found = []
    for block in text.split("\n\n")[:-1]:
        fields = dict(line.split(": ", 1) for line in block.split("\n") if not line.startswith(":"))
        if fields:
            found.append((fields["event"], json.loads(fields["data"])))
    return found


class Broken:
    """In place of a generation: two bases, then an error."""

    def __init__(self, error):
        self.error, self.left = error, 2

    def __iter__(self):
        return self

    def __next__(self):
        if not self.left:
            raise self.error
        self.left -= 1
        return Piece(self.left, "A", -1.0)


class TestAnswers:
    def test_it_is_what_the_library_writes(self, app, model):
        answer = app.post("generate", BODY | {"per_base": True}).json()
        pieces = list(stream(model.network, PROMPT, length=12, count=2, decoding=Decoding(), seed=3))
        assert answer["model"] == "small" and answer["seed"] == 3 and len(answer["items"]) == 2
        for row, item in enumerate(answer["items"]):
            own = [piece for piece in pieces if piece.row == row]
            assert item["sequence"] == "".join(piece.base for piece in own) and item["row"] == row
            assert item["per_base"] == pytest.approx([piece.nats for piece in own], rel=1e-6)
            assert math.isclose(item["nats"], sum(piece.nats for piece in own), rel_tol=1e-6)
            assert math.isclose(item["bits_per_base"], -item["nats"] / 12 / math.log(2), rel_tol=1e-6)
            assert (item["length"], item["scored"], item["stopped"]) == (12, 12, "length")

    def test_its_nats_are_those_of_likelihood(self, app):
        """By the other endpoint: of prompt and sequence together, less the prompt."""
        (item,) = app.post("generate", BODY | {"count": 1}).json()["items"]
        both, prompt = app.likelihood(PROMPT + item["sequence"], PROMPT).json()["items"]
        assert math.isclose(item["nats"], both["nats"] - prompt["nats"], rel_tol=1e-4)

    def test_streamed_or_not(self, app):
        plain = app.post("generate", BODY)
        streamed = app.post("generate", BODY | {"stream": True})
        assert streamed.headers["content-type"] == "text/event-stream; charset=utf-8"
        assert streamed.headers["x-accel-buffering"] == "no" and "content-length" not in streamed.headers
        assert streamed.text.startswith(": ")
        *pieces, (last, whole) = events(streamed.text)
        assert last == "done" and whole == plain.json() == app.post("generate", BODY).json()
        for row, item in enumerate(whole["items"]):
            own = [part for name, data in pieces for part in data["pieces"] if part["row"] == row and name == "bases"]
            assert "".join(part["bases"] for part in own) == item["sequence"]
            assert math.isclose(sum(sum(part["nats"]) for part in own), item["nats"], rel_tol=1e-6)

    def test_seeds_and_decoding(self, app):
        def written(**options):
            return [item["sequence"] for item in app.post("generate", BODY | options).json()["items"]]

        assert written(seed=4) != written() == written(seed=3)
        one, other = written(temperature=0)
        assert one == other == written(top_k=1, seed=9)[0]
        assert written(dynamic="entropy", max_temperature=0.6) != written()
        # a sequence does not depend on how many are written with it
        assert written(count=1) == written()[:1]

    def test_without_a_prompt(self, app):
        (item,) = app.post("generate", {"length": 5, "per_base": True}).json()["items"]
        assert item["per_base"][0] is None and None not in item["per_base"][1:]
        assert (item["length"], item["scored"]) == (5, 4)
        assert math.isclose(item["nats"], sum(item["per_base"][1:]), rel_tol=1e-6)
        (alone,) = app.post("generate", {"length": 1}).json()["items"]
        assert (alone["scored"], alone["nats"], alone["bits_per_base"]) == (0, 0, None)

    def test_the_example_is_answered(self, app):
        described = app.ask("GET", "/openapi.json").json()
        schema = described["components"]["schemas"]["GenerateRequest"]
        (example,) = schema["examples"]
        assert app.post("generate", example).status_code == 200
        limits = {name: schema["properties"][name].get("maximum") for name in ("length", "count")}
        assert limits == {"length": app.service.model.context, "count": 1024}
        assert schema["properties"]["prompt"]["maxLength"] == app.service.model.context - 1
        for given in ({"length": 62}, {"prompt": 61 * "A", "length": 1}, {"prompt": f" {61 * 'a'}\n", "length": 1}):
            assert app.post("generate", given).status_code == 200
        content = described["paths"]["/v1/generate"]["post"]["responses"]["200"]["content"]
        assert content.keys() == {"application/json", "text/event-stream"}
        assert [name for name, _ in events(content["text/event-stream"]["example"])] == ["bases", "done"]

    def test_options_are_those_of_the_library(self, app):
        """Each option of Decoding, with its default and what is allowed; but for the head that no server has."""
        schema = app.ask("GET", "/openapi.json").json()["components"]["schemas"]["GenerateRequest"]["properties"]
        for name, value in vars(Decoding()).items():
            assert schema[name].get("default") == value
            for bound in ("minimum", "maximum"):
                if bound in schema[name] and name not in ("min_temperature", "max_temperature", "typical_kmer"):
                    Decoding(**{"repetition_penalty": 1, name: schema[name][bound]})


class TestRefusals:
    @pytest.mark.parametrize(
        ("given", "status", "match"),
        [
            ({"prompt": "ACGNT"}, 422, "the prompt has 'N' at position 4;"),
            ({"prompt": "AC GT"}, 422, "the prompt has ' ' at position 3;"),
            ({"prompt": "A" * 60, "length": 9}, 413, r"60 bases and 9 more; this model takes 62 at once"),
            ({"length": 0}, 422, "length: Input should be greater than or equal to 1"),
            ({"count": 0}, 422, "count: Input should be greater"),
            ({"seed": -1}, 422, "seed: Input should be greater"),
            ({"seed": 1.5}, 422, "seed: Input should be a valid integer"),
            ({"temperature": -1}, 422, "temperature: Input should be greater"),
            ({"top_k": 5}, 422, "top_k: Input should be less"),
            ({"typical_kmer": 2}, 422, "typical_kmer 2 does nothing while typical_p is 1"),
            ({"dynamic": "diversity"}, 422, "dynamic: Input should be 'entropy'"),
            ({"dynamic": "entropy", "temperature": 0.5}, 422, "leave out one of them"),
            ({"min_temperature": 2}, 422, "min_temperature 2 is above max_temperature 1.3"),
            ({"beams": 4}, 422, "beams: there is no such option here"),
            ({"count": 1025}, 413, r"1,025 sequences; a request takes 1,024 \(--max-sequences\)"),
        ],
    )
    def test_bad_options(self, app, given, status, match):
        code = {413: "too_large", 422: "invalid_request"}[status]
        for streamed in (False, True):
            refused(
                app.post("generate", {"prompt": PROMPT, "length": 4, "stream": streamed} | given), status, code, match
            )
        assert app.batcher.deadlines == []

    def test_limits(self, model):
        app = Application(model, max_generate=99, max_bases=20)
        match = r"5 times a prompt of 8 bases and 12 more are 100 tokens, at most 99 are taken \(--max-generate\)"
        refused(app.post("generate", BODY | {"count": 5}), 413, "too_large", match)
        match = "2 times a prompt of 8 bases and 12 more, 16 times for its typical_kmer, are 640 tokens, at most 99"
        refused(app.post("generate", BODY | {"typical_p": 0.9, "typical_kmer": 3}), 413, "too_large", match)
        refused(app.post("generate", BODY | {"prompt": "A" * 21}), 413, "too_large", "--max-bases")
        assert app.post("generate", BODY | {"count": 4}).status_code == 200
        assert app.ask("GET", "/v1/models").json()["limits"]["generate_tokens"] == 99

    def test_a_token_is_asked_for(self, model):
        refused(Application(model, TOKEN).post("generate", BODY), 401, "unauthorized", "token")

    def test_a_draining_server_writes_nothing(self, app):
        app.service.is_draining = True
        refused(app.post("generate", BODY | {"stream": True}), 503, "unavailable", "the server is stopping")

    @pytest.mark.parametrize("streamed", [False, True])
    def test_no_room(self, app, streamed):
        def full(job, *, deadline):
            raise QueueFull("generations of 90 tokens are under way already", 2.2)

        app.batcher.writing = full
        response = refused(
            app.post("generate", BODY | {"stream": streamed}), 429, "queue_full", "are under way already"
        )
        assert response.headers["retry-after"] == "3"


class TestFailures:
    """What goes wrong when the first bases are there already."""

    @pytest.mark.parametrize(
        ("error", "message"),
        [
            (NotFiniteError("no numbers; use float32"), "no numbers; use float32"),
            (ValueError("TTAGGC"), "the model failed"),
        ],
    )
    def test_midway(self, app, monkeypatch, capsys, error, message):
        monkeypatch.setattr(generation, "stream", lambda *_, **options: Broken(error))
        refused(app.post("generate", BODY), 500, "internal_error", message)
        found = events(app.post("generate", BODY | {"stream": True}).text)
        assert found[-1] == ("error", {"error": {"code": "internal_error", "message": message}})
        told = capsys.readouterr().err
        assert told.count("POST /v1/generate 500") == 2 and "TTAGGC" not in told
        assert ("defect: ValueError" in told) == isinstance(error, ValueError)

    def test_a_defect_of_the_server(self, app, monkeypatch, capsys):
        monkeypatch.setattr(service, "by_row", lambda pieces: 1 / 0)
        found = events(app.post("generate", BODY | {"stream": True}).text)
        assert [name for name, _ in found] == ["error"] and "its log says where" in found[0][1]["error"]["message"]
        assert "hyena: defect: ZeroDivisionError" in capsys.readouterr().err


class Live(Application):
    """An application with the batcher itself, for one event loop; the model writes A, one when it is told to."""

    def __init__(self, model, monkeypatch, **config):
        super().__init__(model, **config)
        self.batcher = self.service.batcher = Batcher(model, **LIMITS)
        self.permits, self.closed = threading.Semaphore(0), threading.Event()
        monkeypatch.setattr(generation, "stream", lambda *_, **options: self)

    def __iter__(self):
        return self

    def __next__(self):
        assert self.permits.acquire(timeout=LONG)
        return Piece(0, "A", -1.0)

    def close(self):
        self.closed.set()

    async def client(self, body, *, leave=None):
        """What a client gets that leaves when `leave` is set: messages as they come, and None at the end."""
        got, parts = asyncio.Queue(), [json.dumps(body).encode()]

        async def receive():
            if parts:
                return {"type": "http.request", "body": parts.pop(), "more_body": False}
            await (leave or asyncio.Event()).wait()
            return await leaving()

        async def send(message):
            got.put_nowait(message)

        async def ask():
            await self.asgi(SCOPE | {"headers": list(SCOPE["headers"])}, receive, send)
            got.put_nowait(None)

        await self.batcher.start()
        self.asked = asyncio.create_task(ask())
        return got


SCOPE = {"type": "http", "method": "POST", "path": "/v1/generate", "query_string": b"", "root_path": "",
         "headers": [(b"host", b"localhost"), (b"content-type", b"application/json")]}  # fmt: skip
ONE = {"prompt": PROMPT, "length": 40}


async def text_of(got) -> str:
    """All that comes up to the end."""
    parts = []
    while (message := await asyncio.wait_for(got.get(), LONG)) is not None:
        parts.append(message.get("body", b"").decode())
    return "".join(parts)


class TestWhileItWrites:
    def test_bases_are_sent_as_they_are_written(self, model, monkeypatch):
        monkeypatch.setattr(service, "_ALIVE_S", 0.01)

        async def run():
            app = Live(model, monkeypatch)
            got = await app.client(ONE | {"stream": True})
            start, first, second = [await got.get() for _ in range(3)]
            assert start["status"] == 200 and first["body"] == second["body"] == b": still there\n\n"
            for number in (1, 2):
                app.permits.release()
                while (body := (await got.get())["body"]).startswith(b":"):
                    pass  # nothing is written, and the connection is alive
                assert events(body.decode()) == [("bases", {"pieces": [{"row": 0, "bases": "A", "nats": [-1]}]})], (
                    number
                )
            assert app.batcher.stats.generations == 1
            app.permits.release(99)
            name, whole = events(await text_of(got))[-1]
            assert name == "done" and whole["items"][0]["sequence"] == 40 * "A"
            assert app.batcher.stats.generated == 40 and app.batcher.stats.generations == 0
            await app.batcher.drain()

        asyncio.run(run())

    def test_not_more_events_than_can_be_seen(self, model, monkeypatch):
        monkeypatch.setattr(service, "_EVENT_S", LONG)

        async def run():
            app = Live(model, monkeypatch)
            app.permits.release(99)
            found = events(await text_of(await app.client(ONE | {"stream": True})))
            # what came with the first look, and what came until all was there
            assert [name for name, _ in found] in (["bases", "done"], ["bases", "bases", "done"])
            await app.batcher.drain()

        asyncio.run(run())

    @pytest.mark.parametrize("streamed", [False, True])
    def test_the_deadline_ends_it_with_what_there_is(self, model, monkeypatch, streamed):
        async def run():
            app = Live(model, monkeypatch)
            app.permits.release(2)
            got = await app.client(ONE | {"stream": streamed, "timeout_s": 9})
            while app.batcher.stats.generated < 2:
                await asyncio.sleep(0)
            pass_time(9)
            text = await text_of(got)
            (item,) = (events(text)[-1][1] if streamed else json.loads(text))["items"]
            assert item["stopped"] == "deadline" and item["sequence"] == "AA" and item["nats"] == -2
            app.permits.release(99)
            await app.batcher.drain()
            assert app.closed.is_set()

        asyncio.run(run())

    @pytest.mark.parametrize("streamed", [False, True])
    def test_a_deadline_before_the_first_base(self, model, monkeypatch, streamed):
        async def run():
            app = Live(model, monkeypatch)
            text = await text_of(await app.client(ONE | {"stream": streamed, "timeout_s": 0.01}))
            error = (events(text)[-1][1] if streamed else json.loads(text))["error"]
            assert error == {"code": "deadline_exceeded", "message":
                             "not a base was written within 0.01 s; allow more time, or come again later"}  # fmt: skip
            app.permits.release(99)
            await app.batcher.drain()

        asyncio.run(run())

    @pytest.mark.parametrize("streamed", [False, True])
    def test_who_leaves_ends_it_within_a_unit(self, model, monkeypatch, capsys, streamed):
        async def run():
            app, leave = Live(model, monkeypatch), asyncio.Event()
            app.permits.release(1)
            got = await app.client(ONE | {"stream": streamed}, leave=leave)
            while not app.batcher.stats.generated:
                await asyncio.sleep(0)
            leave.set()
            await text_of(got)
            assert app.batcher.stats.generations == 0 and app.service._accepted == set()
            # the base in work, and no other
            app.permits.release(1)
            await app.batcher.drain()
            assert app.closed.is_set() and app.batcher.stats.generated == 2

        asyncio.run(run())
        assert re.search(r"Z POST /v1/generate 499 \d", capsys.readouterr().err)

    def test_a_server_that_drains_ends_what_it_writes(self, model, monkeypatch):
        async def run():
            app = Live(model, monkeypatch)
            got = await app.client(ONE | {"stream": True})
            while not app.batcher.stats.generations:
                await asyncio.sleep(0)
            drained = asyncio.create_task(app.service.drain())
            await asyncio.sleep(0)
            assert not drained.done()
            app.permits.release(99)
            assert events(await text_of(got))[-1][1]["items"][0]["length"] == 40
            await drained

        asyncio.run(run())

    def test_a_model_that_stops(self, model, monkeypatch):
        async def run():
            app = Live(model, monkeypatch)
            got = await app.client(ONE | {"stream": True})
            app.batcher._next_batch = None
            app.permits.release(99)
            assert events(await text_of(got))[-1] == (
                "error", {"error": {"code": "unavailable", "message": "the model stopped; restart the server"}}
            )  # fmt: skip
            app.batcher._worker.shutdown()

        asyncio.run(run())
