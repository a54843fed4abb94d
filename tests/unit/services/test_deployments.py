"""What `deploy` says if it can't; with a server: tests/integration/test_services.py."""

from __future__ import annotations

import pytest

from resnet_pipeline.errors import UserError
from resnet_pipeline.services.deployments import deploy


@pytest.mark.parametrize(
    ("address", "said"),
    [
        (None, "PREFECT_API_URL is not set"),
        ("http://user:secret@127.0.0.1:1/api", "http://127.0.0.1:1/api/health does"),
    ],
)
def test_a_server_that_is_not_there_is_one_line(monkeypatch, address, said):
    if address:
        monkeypatch.setenv("PREFECT_API_URL", address)
    with pytest.raises(UserError, match=said) as error:
        deploy("local")
    assert "\n" not in str(error.value) and "secret" not in str(error.value)
