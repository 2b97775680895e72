"""The shipped roots: exactly these, each as its vendor published it."""

from __future__ import annotations

from overspill.trust.certificates import is_signed_by
from overspill.trust.roots import vendor_roots

FINGERPRINTS = """
69d063b45344d26a2e94e1f4210de49ef555308287d4c174445c95639a540bcd ARK-Milan
4c6598d19c18719c5dfd4a7d335f674e5bfe1d8f800cea2cf270c10d103db2f1 ARK-Genoa
1f084161a44bb6d93778a904877d4819cafa5d05ef4193b2ded9dd9c73dd3f6a ARK-Turin
44a0196b2b99f889b8e149e95b807a350e7424964399e885a7cbb8ccfab674d3 Intel SGX Root CA
102bf659d5419614c9d8e6aecebc80454eb26b1df6a769ac720b9a690b167b48 NVIDIA Device Identity CA
12977b5115acb0381179279fffeb5a8c4d264971ebb32298023a465fa41df5d1 NVIDIA CoRIM signing Root CA
67d303bd3905fd38db8b20e0793699870e7fa612eaad5dec358293fd8c0bac1b SEV-Milan
c5e081f59b7efab1fe2f8b505e159704e72f29cab7ef7cf628a05a42439082f5 SEV-VLEK-Milan
5464738c1546aed5f2cecf1dc98c5c960a92e8913238a61711bc90ec6e828521 SEV-Genoa
197e610743a917d6b9bb982a5a9226ccc0a15b611be0619e626aca9151457372 SEV-VLEK-Genoa
5b77ef5fe7a7a004fd9032668fba9d0fda22f88c4442069a479636a6ae3b3185 SEV-Turin
104e10a8bd060a3c20a434261a57d0588fd65a88915b4f65b08bdecaf8df1a3c SEV-VLEK-Turin
c0575e76d0303b61d09cde8cbdb70db34a74f38318300d7c0e6ba8cf4bf45aea Intel SGX TCB Signing
ec37d98107bfb7dab6ff8de4d4dda6fde30a6f50b0d7b03eefb5652f1e652969 Intel SGX TCB Signing
"""


def test_fingerprints():
    roots = vendor_roots()
    groups = (roots.amd, roots.intel, roots.nvidia, roots.nvidia_rim, roots.intermediates)
    found = {one.sha256: one.name for group in groups for one in group}
    expected = dict(line.split(" ", 1) for line in FINGERPRINTS.split("\n") if line)
    assert found == expected


def test_roots_sign_themselves_and_nothing_else_is_a_root():
    roots = vendor_roots()
    for one in (*roots.amd, *roots.intel, *roots.nvidia, *roots.nvidia_rim):
        assert one.subject == one.issuer
        assert is_signed_by(one.signature_algorithm, one.public_key, one.signature, one.tbs)
        assert one.path_length is not None
    assert all(one.subject != one.issuer for one in roots.intermediates)


def test_intermediates_chain_to_a_shipped_root():
    """AMD's by RSASSA-PSS, Intel's by ECDSA: both kinds of signature, without any other data."""
    roots = vendor_roots()
    for one in roots.intermediates:
        issuers = [root for root in (*roots.amd, *roots.intel) if root.subject == one.issuer]
        assert [
            is_signed_by(one.signature_algorithm, root.public_key, one.signature, one.tbs)
            for root in issuers
        ] == [True]
        flipped = bytes([one.signature[0] ^ 1]) + one.signature[1:]
        assert not is_signed_by(one.signature_algorithm, issuers[0].public_key, flipped, one.tbs)


def test_the_readme_names_each_file(sources):
    folder = sources / "sdk/overspill/trust/roots"
    readme = (folder / "README.md").read_text()
    files = sorted(file.name for file in folder.glob("*.pem"))
    assert files
    assert [name for name in files if name not in readme] == []
    roots = vendor_roots()
    for one in (*roots.amd, *roots.intel, *roots.nvidia, *roots.nvidia_rim):
        assert one.sha256[:16] in readme
