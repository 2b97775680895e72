"""Where an upstream may be: on this machine, and nowhere else."""

from __future__ import annotations

import pytest

from overspill.errors import ConfigurationError, UsageError
from overspill_cloud.app import ModelSpec, parse_model, with_weights
from overspill_cloud.upstream.address import parse_upstream


@pytest.mark.parametrize(
    ("source", "base_url", "uds"),
    [
        ("upstream:http://127.0.0.1:8000#org/m", "http://127.0.0.1:8000", None),
        ("upstream:http://127.9.9.9:1/v1#org/m", "http://127.9.9.9:1", None),
        ("upstream:http://[::1]:8000/#org/m", "http://[::1]:8000", None),
        ("upstream:unix:/run/vllm.sock#org/m", "http://upstream", "/run/vllm.sock"),
    ],
)
def test_loopback_and_unix_sockets_are_taken(source: str, base_url: str, uds: str | None) -> None:
    address = parse_upstream(source)
    assert (address.base_url, address.uds, address.model) == (base_url, uds, "org/m")


@pytest.mark.parametrize(
    "where",
    [
        "http://10.0.0.1:8000",
        "http://0.0.0.0:8000",
        "http://example.org:80",
        "http://localhost:8000",
        "http://[2001:db8::1]:80",
        "http://127.0.0.1.example.org:80",
        "http://[::ffff:10.0.0.1]:80",
    ],
)
def test_another_machine_is_refused_whatever_it_is_called(where: str) -> None:
    with pytest.raises(ConfigurationError, match="not on this machine"):
        parse_upstream(f"upstream:{where}#m")


@pytest.mark.parametrize(
    "source",
    [
        "upstream:http://127.0.0.1:8000",
        "upstream:#m",
        "upstream:http://127.0.0.1#m",
        "upstream:http://127.0.0.1:99999#m",
        "upstream:https://127.0.0.1:8000#m",
        "upstream:http://u:p@127.0.0.1:8000#m",
        "upstream:http://127.0.0.1:8000/admin#m",
        "upstream:http://127.0.0.1:8000/?x=1#m",
        "upstream:ftp://127.0.0.1:8000#m",
        "upstream:unix:relative.sock#m",
    ],
)
def test_other_forms_are_refused(source: str) -> None:
    with pytest.raises(UsageError):
        parse_model(f"name={source}")


def test_weights_are_for_an_upstream_alone() -> None:
    spec = parse_model("big=upstream:http://127.0.0.1:8000#m")
    assert with_weights([spec], ["big=/w"])[0].measured_path == "/w"
    assert spec.measured_path is None
    for text in ("big", "other=/w", "echo=/w"):
        with pytest.raises(UsageError, match="weights"):
            with_weights([spec, ModelSpec("echo", "echo")], [text])


def test_two_upstream_models_without_files_have_two_digests_and_neither_is_echos() -> None:
    one, other, echo = (
        parse_model(text).stands_for
        for text in (
            "a=upstream:http://127.0.0.1:1#m",
            "a=upstream:http://127.0.0.1:1#n",
            "a=echo",
        )
    )
    assert len({one, other, echo}) == 3
