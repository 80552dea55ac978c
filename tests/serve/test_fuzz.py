"""Whatever the server's own OpenAPI document allows, and much that it does not: never a 5xx."""

from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from schemathesis import GenerationMode

from tests.serve.running import Running, running


@pytest.fixture(scope="module")
def server(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    page = tmp_path_factory.mktemp("page")
    (page / "index.html").write_text("<p>")
    with running(folder, max_tokens=8, max_len=512, page=page) as begun:
        yield begun


@pytest.mark.parametrize("mode", list(GenerationMode))
def test_no_request_breaks_the_server(server: Running, mode: GenerationMode) -> None:
    api = schemathesis.openapi.from_url(f"{server.url}/openapi.json")
    statuses: Counter[tuple[str, int]] = Counter()
    for found in api.get_all_operations():
        operation = found.ok()
        if mode == GenerationMode.NEGATIVE and not operation.body:
            continue  # nothing can be wrong

        @settings(
            max_examples=150, derandomize=True, suppress_health_check=list(HealthCheck),
            phases=[Phase.explicit, Phase.generate],
        )  # fmt: skip
        @given(case=operation.as_strategy(generation_mode=mode))
        def check(case: schemathesis.Case) -> None:
            if isinstance(case.body, dict):
                case.body.pop("model", None)  # or nearly all are of models that are not there
            response = case.call(timeout=60)
            statuses[case.path, response.status_code] += 1
            assert response.status_code < 500, (case.as_curl_command(), response.text)
            if response.status_code >= 400:
                error = response.json()["error"]
                assert set(error) == {"message", "type", "param", "code"} and error["message"]

        check()
    assert not server.service.drivers[0].has_failed
    wanted = 200 if mode == GenerationMode.POSITIVE else 400
    for path in ("/v1/chat/completions", "/v1/completions", "/v1/embeddings"):
        assert statuses[path, wanted], statuses
