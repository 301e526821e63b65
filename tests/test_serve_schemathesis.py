"""Requests that schemathesis makes up from the OpenAPI description, good and bad: every answer is as described."""

import hypothesis
import pytest
import schemathesis
from asking import TOKEN, Application, served
from schemathesis import GenerationMode
from server_process import serving

SHOWN = {"Authorization": f"Bearer {TOKEN.decode()}"}
TASKS = {"/v1/likelihood", "/v1/embed", "/v1/predict", "/v1/substitutions", "/v1/generate"}
STATE = {"/v1/models", "/health", "/ready", "/metrics"}


def ask_everything(schema: schemathesis.BaseSchema, examples: int) -> set[str]:
    """Every operation by requests that fit its description, and those with a body by others; the paths asked."""
    checks, asked = schema.config.checks, set()
    # a request may ask for its answer in no time, and may hold more sequences than are taken
    checks.not_a_server_error.expected_statuses = [*checks.not_a_server_error.expected_statuses, "504"]
    checks.negative_data_rejection.expected_statuses = [*checks.negative_data_rejection.expected_statuses, "413"]
    positive, accepted = checks.positive_data_acceptance, checks.positive_data_acceptance.expected_statuses
    for found in schema.get_all_operations():
        operation = found.ok()
        # options of a generation, each allowed, may exclude each other or be too much together
        more = ["413", "422"] if operation.path == "/v1/generate" else []
        positive.expected_statuses = [*accepted, *more]
        for mode in GenerationMode if operation.body else [GenerationMode.POSITIVE]:

            @hypothesis.settings(
                max_examples=examples, deadline=None, derandomize=True, database=None,
                suppress_health_check=list(hypothesis.HealthCheck),
            )  # fmt: skip
            @hypothesis.given(case=operation.as_strategy(generation_mode=mode))
            def ask(case):
                case.call_and_validate(headers=SHOWN)

            ask()
        asked.add(operation.path)
    return asked


def test_in_this_process():
    schema = schemathesis.openapi.from_asgi("/openapi.json", Application(served(), TOKEN).asgi, headers=SHOWN)
    assert ask_everything(schema, examples=2) == TASKS | STATE


@pytest.mark.slow
def test_of_a_server(tmp_path):
    token = tmp_path / "token"
    token.write_bytes(TOKEN)
    token.chmod(0o600)
    with serving("--token-file", str(token), "--max-generate", "2000") as server:
        schema = schemathesis.openapi.from_url(f"{server.url}/openapi.json", headers=SHOWN)
        assert ask_everything(schema, examples=100) == TASKS - {"/v1/predict"} | STATE
        assert server.end() == 143
        assert "defect" not in server.told()
