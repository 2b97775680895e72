"""The policy file: strict to read, frozen, and known by its hash."""

from __future__ import annotations

import hashlib
from dataclasses import FrozenInstanceError, replace

import pytest

from overspill.errors import ConfigurationError
from overspill.routing.policy import RoutingPolicy, parse_policy
from overspill.types.chat import Privacy


def test_a_file_changes_what_it_names_and_keeps_the_rest() -> None:
    policy = parse_policy(
        """
        version = "7"
        floor = "attested"
        threshold = 0.3
        strict = true
        listed_terms = ["Heron"]
        [detectors]
        email = "device"
        phone = "off"
        """
    )
    assert (policy.version, policy.floor, policy.threshold) == ("7", Privacy.ATTESTED, 0.3)
    assert policy.strict
    assert policy.listed_terms == ("Heron",)
    assert policy.detectors["email"] is Privacy.DEVICE
    assert "phone" not in policy.detectors
    assert policy.detectors["card"] is Privacy.DEVICE
    assert policy.switching_price == RoutingPolicy().switching_price


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("", "version"),
        ('version = ""', "version"),
        ('version = "1"\ntreshold = 0.1', "treshold"),
        ('version = "1"\nthreshold = "high"', "threshold"),
        ('version = "1"\nthreshold = true', "threshold"),
        ('version = "1"\nthreshold = nan', "threshold"),
        ('version = "1"\nrelease = 1.5', "release"),
        ('version = "1"\nfloor = "none"', "floor"),
        ('version = "1"\nlisted_terms = ["", 3]', "listed_terms"),
        ('version = "1"\n[detectors]\ncolour = "device"', "colour"),
        ('version = "1"\n[detectors]\ncolour = "off"', "colour"),
        ('version = "1"\n[detectors]\ncard = "maybe"', "card"),
        ('version = "1"\n[detectors]\ncard = 1', "card"),
        ("version = ", "TOML"),
        ('version = "1"\nsha256 = "00"', "sha256"),
    ],
)
def test_a_wrong_file_is_refused_by_name(text: str, named: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        parse_policy(text, "routing.toml")
    assert named in str(caught.value)
    assert str(caught.value).startswith("routing.toml")


def test_the_hash_covers_every_setting() -> None:
    base = RoutingPolicy()
    changed = [
        replace(base, version="x"),
        replace(base, floor=Privacy.DEVICE),
        replace(base, threshold=0.5),
        replace(base, switching_price=0.2),
        replace(base, release=0.9),
        replace(base, strict=True),
        replace(base, detectors={}),
        replace(base, listed_terms=("a",)),
    ]
    hashes = {policy.sha256 for policy in changed}
    assert len(hashes) == len(changed)
    assert base.sha256 not in hashes
    assert RoutingPolicy().sha256 == base.sha256


def test_a_policy_is_frozen() -> None:
    with pytest.raises(FrozenInstanceError):
        RoutingPolicy().threshold = 0.9  # type: ignore[misc]  # that is the point


def test_a_file_is_known_by_its_own_hash() -> None:
    text = 'version = "1"\n'
    assert parse_policy(text).sha256 == hashlib.sha256(text.encode()).hexdigest()


@pytest.mark.parametrize(
    "table", ["[isotonic]\nmoon = [[0, 1]]", "[isotonic]\ndevice = [[1, 1], [0, 0]]"]
)
def test_a_curve_that_is_none_is_refused(table: str) -> None:
    with pytest.raises(ConfigurationError, match="isotonic"):
        parse_policy(f'version = "1"\n{table}')
