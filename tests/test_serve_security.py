import asyncio
import base64
from pathlib import Path

import pytest
from asking import JSON, TOKEN, Application, raw, refused, served, silence

from hyenadna.errors import UsageError
from hyenadna.serve import security
from hyenadna.serve.config import ServeConfig
from hyenadna.serve.security import read_token

ONE = b'{"sequences": [{"sequence": "ACGT"}]}'


@pytest.fixture(scope="module")
def model():
    return served()


@pytest.fixture
def app(model):
    return Application(model)


@pytest.fixture
def locked(model):
    return Application(model, TOKEN)


def basic(password: bytes, user: bytes = b"anybody") -> str:
    return "Basic " + base64.b64encode(user + b":" + password).decode()


class TestToken:
    ROUTES = ("/", "/page/page.js", "/ready", "/metrics", "/openapi.json", "/v1/models", "/v1/embed", "/nothing")

    @pytest.mark.parametrize("path", ROUTES)
    def test_every_route_wants_it(self, locked, path):
        method = "POST" if path == "/v1/embed" else "GET"
        response = refused(locked.ask(method, path, content=b"", headers=JSON), 401, "unauthorized", "token")
        asks = response.headers["www-authenticate"]
        assert asks.startswith("Basic ") if path == "/" or path.startswith("/page/") else asks == "Bearer"

    def test_but_health(self, locked):
        assert locked.ask("GET", "/health").status_code == 200

    @pytest.mark.parametrize(
        "shown",
        ["", "Bearer", "Bearer ", TOKEN.decode(), "Bearer " + TOKEN.decode()[:-1], f"Bearer {TOKEN.decode()}x",
         f"Digest {TOKEN.decode()}", "Basic ", "Basic !!!", basic(b""), basic(b"", TOKEN), basic(TOKEN + b":"),
         "Bearer \xe9\xe9\xe9\xe9"],
    )  # fmt: skip
    def test_another_one(self, locked, shown):
        headers = {"authorization": shown.encode("latin-1")}
        refused(locked.ask("GET", "/ready", headers=headers), 401, "unauthorized", "token")

    @pytest.mark.parametrize("shown", [f"Bearer {TOKEN.decode()}", f"bearer  {TOKEN.decode()}", basic(TOKEN)])
    def test_the_right_one(self, locked, shown):
        for path in ("/ready", "/", "/metrics"):
            assert locked.ask("GET", path, headers={"authorization": shown}).status_code == 200

    def test_nothing_of_a_body_is_read_before(self, locked):
        async def never():
            raise AssertionError

        assert raw(locked, "/v1/likelihood", [], then=never)[0]["status"] == 401

    def test_it_is_compared_in_constant_time(self, locked, monkeypatch):
        compared = []
        monkeypatch.setattr(security.hmac, "compare_digest", lambda a, b: compared.append((a, b)) or False)
        locked.ask("GET", "/ready", headers={"authorization": "Bearer abc"})
        assert compared == [(b"abc", TOKEN)]


class TestTokenFile:
    def test_read(self, tmp_path):
        path = tmp_path / "token"
        path.write_bytes(b" 0123456789abcdef\r\n")
        path.chmod(0o600)
        assert read_token(path) == b"0123456789abcdef"

    @pytest.mark.parametrize(
        ("content", "mode", "match"),
        [
            (b"0123456789abcde", 0o600, "must hold at least 16 ASCII characters without spaces, such as: openssl rand"),
            (b"0123456789 abcdef", 0o600, "without spaces"),
            ("0123456789äbcdefg".encode(), 0o600, "ASCII"),
            (b"0123456789abcdef", 0o604, r"can be read by every user of this machine: chmod 600 .*token"),
        ],
    )
    def test_not_fit(self, tmp_path, content, mode, match):
        path = tmp_path / "token"
        path.write_bytes(content)
        path.chmod(mode)
        with pytest.raises(UsageError, match=match) as caught:
            read_token(path)
        assert content.decode() not in str(caught.value).replace(str(path), "")

    def test_not_there(self, tmp_path):
        with pytest.raises(UsageError, match=r"--token-file .*/none cannot be read: No such file"):
            read_token(tmp_path / "none")


class TestOtherSites:
    @pytest.mark.parametrize("host", ["localhost", "LOCALHOST:8000", "127.0.0.1", "127.0.0.1:99", "[::1]", "[::1]:80"])
    def test_names_of_this_machine(self, app, host):
        assert app.ask("GET", "/ready", headers={"host": host}).status_code == 200

    @pytest.mark.parametrize(
        "host", ["", "evil.example", "evil.example:8000", "localhost.evil.example", "127.0.0.1.evil.example", "::1"]
    )
    def test_another_name(self, app, host):
        refused(app.ask("GET", "/ready", headers={"host": host}), 400, "bad_request", "answers to localhost alone")

    def test_the_address_that_was_given(self, model):
        app = Application(model, host="127.0.0.2")
        assert app.ask("GET", "/ready", headers={"host": "127.0.0.2:8000"}).status_code == 200

    def test_with_a_token_any_name(self, locked):
        headers = {"host": "dna.example", "authorization": f"Bearer {TOKEN.decode()}"}
        assert locked.ask("GET", "/ready", headers=headers).status_code == 200

    def test_no_site_may_read_an_answer(self, app):
        origin = {"origin": "https://evil.example"}
        asked = origin | {"access-control-request-method": "POST", "access-control-request-headers": "content-type"}
        for response in (
            refused(app.ask("OPTIONS", "/v1/likelihood", headers=asked), 405, "method_not_allowed", ""),
            app.ask("GET", "/v1/models", headers=origin),
            app.ask("POST", "/v1/likelihood", content=ONE, headers=JSON | origin),
        ):
            assert not [name for name in response.headers if name.startswith("access-control")]
            assert response.headers["cross-origin-resource-policy"] == "same-origin"
            assert response.headers["cache-control"] == "no-store"


class TestBody:
    def test_a_slow_one(self, app, monkeypatch):
        monkeypatch.setattr(security, "_BODY_SECONDS", 0.02)
        start, body = raw(app, "/v1/likelihood", [ONE[:10]], then=silence)
        assert start["status"] == 408 and b"did not come within 0.02 seconds" in body["body"]
        assert (b"connection", b"close") in start["headers"]

    def test_one_too_large_is_read_on_for_a_while(self, model, monkeypatch):
        """So that a client that still sends gets to read the answer; but not for ever."""
        app = Application(model, max_body=100)
        rest = [{"type": "http.request", "body": b" " * 50, "more_body": more} for more in (False, True, True)]

        async def then():
            return rest.pop()

        assert raw(app, "/v1/embed", [b" " * 101], then=then)[0]["status"] == 413 and rest == []
        monkeypatch.setattr(security, "_LINGER_SECONDS", 0.02)
        assert raw(app, "/v1/embed", [b" " * 101], then=silence)[0]["status"] == 413
        monkeypatch.setattr(security, "_LINGER_BYTES", 100)
        assert raw(app, "/v1/embed", [b" " * 101, b" " * 200], then=silence)[0]["status"] == 413

    def test_a_declared_size_is_enough(self, model):
        app = Application(model, max_body=100)

        async def never():
            raise AssertionError

        headers = JSON | {"content-length": "101", "expect": "100-continue"}
        assert raw(app, "/v1/embed", [], then=never, headers=headers)[0]["status"] == 413

    def test_many_at_once(self, model, monkeypatch):
        """The bytes of all bodies together are bounded, and are given back."""
        monkeypatch.setattr(security, "_BODIES_AT_ONCE", 2)
        app, statuses = Application(model, max_body=100), []

        async def run():
            gone = asyncio.Event()

            async def client():
                parts = [{"type": "http.request", "body": b" " * 80, "more_body": True}]

                async def receive():
                    if parts:
                        return parts.pop()
                    await gone.wait()
                    return {"type": "http.disconnect"}

                async def send(message):
                    statuses.append(message.get("status"))

                headers = [(b"host", b"localhost"), (b"content-type", b"application/json")]
                scope = {"type": "http", "method": "POST", "path": "/v1/embed", "headers": headers}
                await app.asgi(scope, receive, send)

            first = [asyncio.create_task(client()) for _ in range(2)]
            await asyncio.sleep(0)
            await client()
            assert statuses[0] == 429
            gone.set()
            await asyncio.gather(*first)

        asyncio.run(run())
        assert app.likelihood("ACGT").status_code == 200


class TestConfig:
    @pytest.mark.parametrize(
        ("given", "match"),
        [
            ({"host": "0.0.0.0"}, r"--host 0\.0\.0\.0 can be reached from other machines: give --token-file"),
            ({"host": "192.168.1.2"}, "can be reached from other machines"),
            ({"host": "::"}, "can be reached from other machines"),
            ({"host": "myhost"}, "can be reached from other machines"),
            ({"port": 65536}, "--port is 65536; it must be from 0, a free one, to 65535"),
            ({"threads": 0}, "--threads is 0; it must be at least 1"),
            ({"max_body": 0}, "--max-body is 0; it must be at least 1"),
            ({"wait_ms": -1.0}, "--wait-ms is -1.0; it must be from 0 to 1000"),
            ({"deadline": float("nan")}, "--deadline is nan; it must be a number of seconds above 0"),
            ({"queue_tokens": 5}, "--max-request-tokens 4194304 is more than --queue-tokens 5"),
            ({"max_generate": 0}, "--max-generate is 0; it must be at least 1"),
            ({"generating_tokens": 5}, "--max-generate 65536 is more than --generating-tokens 5: such a request could"),
            ({"adapter": ("x",)}, "--adapter 'x': it takes NAME=PATH, such as promoters="),
            ({"adapter": ("x=",)}, "it takes NAME=PATH"),
            ({"adapter": ("x=a", "x=b")}, "--adapter 'x=b': the name 'x' is taken already"),
        ],
    )
    def test_refused(self, given, match):
        with pytest.raises(UsageError, match=match):
            ServeConfig(**given)

    @pytest.mark.parametrize("host", ["127.0.0.1", "127.0.0.2", "::1", "localhost"])
    def test_loopback(self, host):
        assert ServeConfig(host=host).on_loopback

    def test_elsewhere_with_a_token(self, tmp_path):
        assert not ServeConfig(host="0.0.0.0", token_file=tmp_path).on_loopback
        assert ServeConfig(adapter=("x=a=b",)).adapters == {"x": Path("a=b")}


def test_the_token_is_shown_nowhere(locked, capsys):
    response = locked.ask("GET", "/ready", headers={"authorization": f"Bearer {TOKEN.decode()}x"})
    assert TOKEN.decode() not in response.text + str(response.headers) + capsys.readouterr().err
