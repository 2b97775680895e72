"""One suite for every attester: verifiers accept what it vouches for, and nothing else."""

from __future__ import annotations

import stat
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from overspill.errors import ConfigurationError, EvidenceRejected, UsageError
from overspill.trust.policy import default_policy, parse_policy
from overspill.trust.template import dev_policy, pinned_policy, tpm_dev_policy
from overspill.trust.verifier import REGISTRY, verify
from overspill_cloud.attester import (
    DEV_KEY_FILE,
    DEV_ROOT_FILE,
    OPERATOR_KEY_FILE,
    open_attester,
)
from overspill_cloud.attester.keyfile import load_or_create_key


@pytest.fixture(params=["dev", "pinned", "tpm"])
def attester(request, tmp_path):
    """Each attester in turn, opened as a node opens it."""
    if request.param == "tpm":
        request.getfixturevalue("swtpm_state")
    if request.param == "pinned":
        load_or_create_key(tmp_path / OPERATOR_KEY_FILE)
    made = open_attester(request.param, tmp_path)
    yield made
    made.close()


@pytest.fixture
def policy(attester, models):
    """The policy that names this attester's root."""
    makers = {
        "dev-ed25519": lambda: dev_policy(attester.root, models),
        "pinned-operator": lambda: pinned_policy(attester.operator, models),
        "dev-tpm-software": lambda: tpm_dev_policy(attester.root_pem, models),
    }
    return parse_policy(makers[attester.evidence_type]())


@pytest.fixture
def now():
    """A TPM authority's certificates are made now; the rest is at home at any time."""
    return int(time.time())


def test_replicas_that_start_at_once_have_one_key(tmp_path):
    """A policy names one: the node that signed by another would be rejected by every client."""
    with ThreadPoolExecutor(8) as pool:
        for number in range(10):
            state = tmp_path / str(number)
            state.mkdir()
            roots = pool.map(lambda _, state=state: open_attester("dev", state).root, range(8))
            assert len(set(roots)) == 1


def test_what_it_vouches_for_is_accepted(attester, policy, bundle_of, log, at, now):
    result = verify(bundle_of(attester, log, now_unix=now), at(now_unix=now), policy)
    assert result.evidence_type == attester.evidence_type
    assert result.assurance is attester.assurance
    assert REGISTRY[attester.evidence_type].assurance is attester.assurance


def test_a_second_challenge_gets_its_own_answer(attester, policy, bundle_of, log, at, now):
    for nonce in (bytes([1] * 32), bytes([2] * 32)):
        bundle = bundle_of(attester, log, nonce, now_unix=now)
        verify(bundle, at(now_unix=now, nonce=nonce), policy)
        with pytest.raises(EvidenceRejected) as caught:
            verify(bundle, at(now_unix=now), policy)
        assert caught.value.reason == "nonce_mismatch"


def test_the_bundle_for_everybody_has_no_nonce(attester, policy, bundle_of, log, at, now):
    with pytest.raises(EvidenceRejected) as caught:
        verify(bundle_of(attester, log, None, now_unix=now), at(now_unix=now), policy)
    assert caught.value.reason == "nonce_zero"


def test_another_roots_policy_refuses(attester, bundle_of, log, at, models, now):
    for text in (dev_policy(bytes(32), models), pinned_policy(bytes(32), models)):
        with pytest.raises(EvidenceRejected):
            verify(bundle_of(attester, log, now_unix=now), at(now_unix=now), parse_policy(text))


def test_the_default_policy_refuses_all_that_this_version_has(attester, bundle_of, log, at, now):
    with pytest.raises(EvidenceRejected) as caught:
        verify(bundle_of(attester, log, now_unix=now), at(now_unix=now), default_policy())
    reason = "evidence_type_not_accepted" if attester.evidence_type == "pinned-operator" else None
    assert caught.value.reason == (reason or "dev_evidence")


# --- opening ----------------------------------------------------------------------------------


def test_a_dev_key_is_made_once_and_kept_private(tmp_path):
    first, second = open_attester("dev", tmp_path), open_attester("dev", tmp_path)
    assert first.root == second.root
    assert stat.S_IMODE((tmp_path / DEV_KEY_FILE).stat().st_mode) == 0o600
    assert (tmp_path / DEV_ROOT_FILE).read_text().strip() == first.root.hex()


def test_an_operators_key_is_never_made_in_passing(tmp_path):
    with pytest.raises(ConfigurationError, match="no key file"):
        open_attester("pinned", tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_key_open_to_others_is_refused(tmp_path):
    open_attester("dev", tmp_path)
    (tmp_path / DEV_KEY_FILE).chmod(0o644)
    with pytest.raises(ConfigurationError, match="open to others"):
        open_attester("dev", tmp_path)


@pytest.mark.parametrize("content", ["", "no key", "-----BEGIN PRIVATE KEY-----\n"])
def test_a_damaged_key_is_refused(tmp_path, content):
    path = tmp_path / DEV_KEY_FILE
    path.write_text(content)
    path.chmod(0o600)
    with pytest.raises(ConfigurationError, match="no Ed25519"):
        open_attester("dev", tmp_path)


@pytest.mark.parametrize("kind", ["", "none", "sgx", "DEV"])
def test_an_unknown_kind_is_refused(tmp_path, kind):
    with pytest.raises(UsageError, match="no attester"):
        open_attester(kind, tmp_path)
