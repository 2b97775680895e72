"""Policies load strictly: every mistake names the file, the key and the mend."""

from __future__ import annotations

import contextlib
import hashlib
import tomllib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from overspill.errors import ConfigurationError
from overspill.trust.policy import default_policy, load_policy, parse_policy
from overspill.trust.template import (
    DEV_TEMPLATE,
    PINNED_TEMPLATE,
    dev_policy,
    pinned_policy,
)
from overspill.types.evidence import Assurance

DIGEST = "ab" * 32
GOOD = f"""
version = 1
min_assurance = "SOFTWARE"
accept = ["pinned-operator"]
freshness = "nonce"
[reference]
models = {{ river = "{DIGEST}" }}
[pinned-operator]
keys = ["{DIGEST}"]
"""
GOOD_DEV = f"""
version = 1
min_assurance = "NONE"
accept = ["dev-ed25519"]
freshness = "nonce"
dev_unsafe = true
[reference]
models = {{ river = "{DIGEST}" }}
[dev-ed25519]
roots = ["{DIGEST}"]
"""


def complaint(text: str) -> ConfigurationError:
    with pytest.raises(ConfigurationError) as caught:
        parse_policy(text, "my-policy.toml")
    assert "my-policy.toml" in caught.value.message
    assert "\n" not in str(caught.value)
    assert caught.value.mend
    return caught.value


def test_a_good_policy_says_what_it_says():
    policy = parse_policy(GOOD)
    assert policy.min_assurance is Assurance.SOFTWARE
    assert policy.operator_keys == {bytes.fromhex(DIGEST)}
    assert policy.reference.models == {"river": bytes.fromhex(DIGEST)}
    assert policy.max_age_s == 3600
    assert policy.kems == {0x647A}
    assert not policy.dev_unsafe
    assert policy.sha256 == hashlib.sha256(GOOD.encode()).digest()
    assert parse_policy(GOOD_DEV).dev_roots == {bytes.fromhex(DIGEST)}


def test_the_default_is_a_hardware_tee():
    policy = default_policy()
    assert policy.min_assurance is Assurance.HARDWARE_TEE
    assert not policy.dev_unsafe
    assert not policy.dev_roots
    assert not policy.operator_keys
    assert not policy.ek_roots


def test_the_floor_defaults_to_a_hardware_tee():
    error = complaint(GOOD.replace('min_assurance = "SOFTWARE"\n', ""))
    assert "min_assurance" in error.message
    assert "HARDWARE_TEE" in error.message


@pytest.mark.parametrize(
    ("old", "new", "named"),
    [
        ("version = 1", "version = 2", "version"),
        ("version = 1", "version = true", "version"),
        ("version = 1", "version = 1.0", "version"),
        ("version = 1\n", "", "version"),
        ('"SOFTWARE"', '"software"', "min_assurance"),
        ('"SOFTWARE"', "1", "min_assurance"),
        ('"SOFTWARE"', '"NONE"', "min_assurance"),
        ('"SOFTWARE"', '"HARDWARE_TPM"', "min_assurance"),
        ('["pinned-operator"]', "[]", "accept"),
        ('["pinned-operator"]', '"pinned-operator"', "accept"),
        ('["pinned-operator"]', "[1]", "accept"),
        ('["pinned-operator"]', '["sev-snp"]', "pinned-operator"),
        ('["pinned-operator"]', '["nvidia-gpu"]', "alone"),
        ('["pinned-operator"]', '["pinned-operator", "sev-snp"]', "release"),
        (
            'accept = ["pinned-operator"]',
            'unreleased = true\naccept = ["pinned-operator", "sev-snp"]',
            "sev-snp",
        ),
        ('["pinned-operator"]', '["pinned"]', "is unknown"),
        ('["pinned-operator"]', '["pinned-operator", "dev-ed25519"]', "dev-ed25519"),
        ('accept = ["pinned-operator"]\n', "", "accept"),
        ('freshness = "nonce"\n', "", "freshness"),
        ('"nonce"', '"witnesses"', "freshness"),
        ('"nonce"', '"none"', "freshness"),
        ('"nonce"', '"nonce"\nmax_age_s = 0', "max_age_s"),
        ('"nonce"', '"nonce"\nmax_age_s = 3601', "max_age_s"),
        ('"nonce"', '"nonce"\nmax_age_s = true', "max_age_s"),
        ('"nonce"', '"nonce"\nmax_age_s = "60"', "max_age_s"),
        ('"nonce"', '"nonce"\nkems = []', "kems"),
        ('"nonce"', '"nonce"\nkems = ["RSA"]', "kems"),
        ('"nonce"', '"nonce"\nmax_age = 60', "max_age"),
        ('"nonce"', '"nonce"\ndev_unsafe = true', "dev_unsafe"),
        ('"nonce"', '"nonce"\ndev_unsafe = 1', "dev_unsafe"),
        ("[reference]", "[references]", "references"),
        ("models", "model", "model"),
        (f'{{ river = "{DIGEST}" }}', "{}", "models"),
        (f'{{ river = "{DIGEST}" }}', "{ river = 1 }", "models"),
        (f'{{ river = "{DIGEST}" }}', f'{{ river = "{DIGEST}00" }}', "models"),
        (f'{{ river = "{DIGEST}" }}', f'["{DIGEST}"]', "models"),
        (" }\n", " }\nconfigs = []\n", "configs"),
        (" }\n", " }\nadapters = {}\n", "adapters"),
        (" }\n", ' }\nwheels = ["x"]\n', "wheels"),
        (f'keys = ["{DIGEST}"]', "keys = []", "keys"),
        (f'keys = ["{DIGEST}"]', "", "keys"),
        (f'keys = ["{DIGEST}"]', 'keys = ["abc"]', "keys"),
        (f'keys = ["{DIGEST}"]', f'keys = ["{"  " + DIGEST[2:]}"]', "keys"),
        (f'keys = ["{DIGEST}"]', f'keys = ["{DIGEST}"]\nroots = []', "roots"),
        ("[pinned-operator]", "[pinned]", "pinned"),
        (f'[pinned-operator]\nkeys = ["{DIGEST}"]\n', "", "pinned-operator"),
        ("[reference]", f'[dev-ed25519]\nroots=["{DIGEST}"]\n[reference]', "dev-ed25519"),
        ("[reference]", "[[reference]]", "reference"),
        ("version = 1", "version = ", "TOML"),
    ],
)
def test_every_mistake_is_named(old, new, named):
    assert old in GOOD
    assert named in complaint(GOOD.replace(old, new, 1)).message


@pytest.mark.parametrize(
    ("old", "new", "named"),
    [
        ("dev_unsafe = true", "dev_unsafe = false", "dev_unsafe"),
        ("dev_unsafe = true\n", "", "dev_unsafe"),
        ('"NONE"', '"SOFTWARE"', "min_assurance"),
        ('"NONE"', '"HARDWARE_TEE"', "min_assurance"),
        (f'roots = ["{DIGEST}"]', "roots = []", "roots"),
        (f'[dev-ed25519]\nroots = ["{DIGEST}"]\n', "", "dev-ed25519"),
        ('["dev-ed25519"]', '["dev-tpm-software"]', "dev-ed25519"),
    ],
)
def test_dev_evidence_has_to_be_asked_for_in_full(old, new, named):
    assert old in GOOD_DEV
    assert named in complaint(GOOD_DEV.replace(old, new, 1)).message


def test_development_and_pinned_evidence_do_not_mix():
    mixed = GOOD_DEV.replace('["dev-ed25519"]', '["dev-ed25519", "pinned-operator"]')
    assert "mixes" in complaint(mixed + f'[pinned-operator]\nkeys = ["{DIGEST}"]\n').message


def test_ek_roots_are_certificates():
    text = GOOD_DEV.replace("dev-ed25519", "dev-tpm-software")
    assert "ek_roots" in complaint(text.replace("roots = [", "ek_roots = [")).message


def test_a_missing_or_binary_file_is_named(tmp_path):
    with pytest.raises(ConfigurationError, match="absent"):
        load_policy(tmp_path / "absent.toml")
    binary = tmp_path / "binary.toml"
    binary.write_bytes(b"\xff\xfe")
    with pytest.raises(ConfigurationError, match="binary"):
        load_policy(binary)
    good = tmp_path / "good.toml"
    good.write_text(GOOD)
    assert load_policy(good).source == str(good)


toml_values = st.recursive(
    st.booleans() | st.integers() | st.text(max_size=20) | st.floats(allow_nan=False),
    lambda inner: st.lists(inner, max_size=3),
    max_leaves=6,
)


def _toml(value) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str):
        escaped = "".join(c if c.isalnum() or c in " -_." else f"\\U{ord(c):08x}" for c in value)
        return f'"{escaped}"'
    if isinstance(value, list):
        return "[" + ", ".join(_toml(item) for item in value) + "]"
    return repr(value)


@given(
    st.sampled_from(
        ["version", "min_assurance", "accept", "freshness", "max_age_s", "kems", "dev_unsafe"]
    ),
    toml_values,
)
def test_any_value_loads_or_is_refused_by_one_type(key, value):
    lines = [line for line in GOOD.splitlines() if not line.startswith(f"{key} =")]
    text = f"{key} = {_toml(value)}\n" + "\n".join(lines)
    tomllib.loads(text)
    with contextlib.suppress(ConfigurationError):
        assert parse_policy(text)


@given(st.text(max_size=300))
def test_any_text_loads_or_is_refused_by_one_type(text):
    with pytest.raises(ConfigurationError):
        parse_policy(text)


def test_deep_nesting_is_refused():
    with pytest.raises(ConfigurationError):
        parse_policy("x = " + "[" * 100_000)


# --- templates --------------------------------------------------------------------------------


@pytest.mark.parametrize("template", [PINNED_TEMPLATE, DEV_TEMPLATE])
def test_templates_do_not_load_before_they_are_filled_in(template):
    assert "<" in template
    assert "64 hexadecimal digits" in complaint(template).mend


@pytest.mark.parametrize("make", [pinned_policy, dev_policy])
def test_filled_templates_load(make):
    models = {"river": bytes(32), "brook": bytes([1] * 32)}
    policy = parse_policy(make(bytes([2] * 32), models))
    assert policy.reference.models == models


@given(st.text(min_size=1, max_size=20))
def test_a_models_name_cannot_break_out_of_a_template(name):
    from overspill.errors import UsageError

    try:
        text = dev_policy(bytes(32), {name: bytes(32)})
    except UsageError:
        return
    assert parse_policy(text).reference.models == {name: bytes(32)}
