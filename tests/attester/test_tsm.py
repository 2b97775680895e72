"""configfs-tsm: what the kernel may do between a write and a read, and what is made of it."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from overspill.errors import ConfigurationError
from overspill_cloud.attester import choose_attester, tsm
from overspill_cloud.attester.tsm import KernelTsmFiles, TsmReports, provider_here
from overspill_cloud.testing import FakeTsm


def plain(inblob: bytes, level: int) -> tuple[bytes, bytes]:
    return b"report over " + inblob, b"certificates"


def opened(files, **options) -> TsmReports:
    return TsmReports(files, sleep=lambda seconds: None, **options)


class Once:
    """Does something before the first access of a kind."""

    def __init__(self, verb, attribute, act, times=1):
        self.at, self.act, self.left = (verb, attribute), act, times

    def __call__(self, verb, attribute):
        if (verb, attribute) == self.at and self.left:
            self.left -= 1
            self.act()


def failing(code):
    def act():
        raise OSError(code, os.strerror(code))

    return act


def test_a_report_is_over_what_was_asked_at_the_lowest_privilege():
    files = FakeTsm(plain)
    report = opened(files).report(b"x" * 64)
    assert (report.provider, report.outblob) == ("sev_guest", b"report over " + b"x" * 64)
    assert report.auxblob == b"certificates"
    assert files.asked == [(b"x" * 64, 0)]


def test_a_provider_without_levels_and_certificates_is_asked_all_the_same():
    files = FakeTsm(plain, provider="tdx_guest", floor=None, has_auxblob=False)
    report = opened(files).report(b"x")
    assert (report.provider, report.auxblob) == ("tdx_guest", b"")


def test_the_folder_is_given_back():
    files = FakeTsm(plain)
    reports = opened(files)
    assert len(files.folders) == 1
    reports.close()
    reports.close()
    assert files.folders == {}


def test_two_processes_have_a_folder_each():
    files = FakeTsm(plain)
    one, two = opened(files), opened(files)
    assert len(files.folders) == 2
    assert one.report(b"1").outblob != two.report(b"2").outblob


@pytest.mark.parametrize("code", [errno.EBUSY, errno.EINTR, errno.EAGAIN, errno.ETXTBSY])
@pytest.mark.parametrize(
    "access",
    [
        ("write", "inblob"),
        ("write", "privlevel"),
        ("read", "outblob"),
        ("read", "generation"),
        ("read", "privlevel_floor"),
    ],
)
def test_a_moments_trouble_is_tried_again(code, access):
    files = FakeTsm(plain)
    reports = opened(files)
    files.before = Once(*access, failing(code))
    assert reports.report(b"x").outblob == b"report over x"


def test_trouble_without_end_is_an_error_and_no_hang():
    files = FakeTsm(plain)
    waits = []
    reports = TsmReports(files, sleep=waits.append)
    files.before = Once("write", "inblob", failing(errno.EBUSY), times=1000)
    with pytest.raises(ConfigurationError, match="in 6 attempts"):
        reports.report(b"x")
    assert len(waits) == tsm.MAX_ATTEMPTS


@pytest.mark.parametrize("code", [errno.EIO, errno.EINVAL, errno.ENOTTY])
def test_a_provider_that_fails_is_named(code):
    files = FakeTsm(plain)
    reports = opened(files)
    files.before = Once("read", "outblob", failing(code), times=1000)
    with pytest.raises(ConfigurationError, match=r"sev_guest gave no report"):
        reports.report(b"x")


@pytest.mark.parametrize("moment", [("read", "outblob"), ("read", "auxblob")])
def test_another_writers_report_is_never_taken_for_ours(moment):
    files = FakeTsm(plain)
    reports = opened(files)
    (name,) = files.folders
    files.before = Once(*moment, lambda: files.write(name, "inblob", b"theirs"))
    assert reports.report(b"ours").outblob == b"report over ours"


def test_a_writer_that_never_stops_is_an_error():
    files = FakeTsm(plain)
    reports = opened(files)
    (name,) = files.folders
    again = Once("read", "outblob", lambda: files.write(name, "inblob", b"theirs"), times=1000)
    files.before = again
    with pytest.raises(ConfigurationError, match="something else wrote"):
        reports.report(b"ours")


def test_a_write_that_was_lost_in_silence_is_noticed():
    """After many writes without a read the kernel drops the next one, and close() says nothing."""
    files = FakeTsm(plain)
    reports = opened(files)
    (folder,) = files.folders.values()
    folder.inblob = b"old"
    folder.write_generation, folder.read_generation = 8, 10  # privlevel fits, inblob does not
    assert reports.report(b"ours").outblob == b"report over ours"
    assert files.asked[-1] == (b"ours", 0)


@pytest.mark.parametrize("size", [0, 65])
def test_only_what_the_interface_takes_is_asked(size):
    with pytest.raises(ConfigurationError, match="1 to 64 bytes"):
        opened(FakeTsm(plain)).report(bytes(size))


def test_a_guest_under_a_paravisor_is_told_so():
    with pytest.raises(ConfigurationError, match="VMPL 2 under a paravisor"):
        opened(FakeTsm(plain, floor=2)).report(b"x")


@pytest.mark.parametrize(
    ("files", "mend"),
    [
        (FakeTsm(plain, provider=None), "sev-guest or tdx-guest"),
        (FakeTsm(plain, before=Once("make", "", failing(errno.EACCES), 9)), "as a user who may"),
        (FakeTsm(plain, before=Once("make", "", failing(errno.ENOENT), 9)), "Linux 6.7"),
    ],
)
def test_a_machine_that_gives_none_is_told_why(files, mend):
    with pytest.raises(ConfigurationError) as caught:
        opened(files)
    assert mend in caught.value.mend
    assert files.folders == {}
    assert provider_here(files) is None


def test_who_reports_here_is_found_without_a_trace():
    files = FakeTsm(plain, provider="tdx_guest")
    assert provider_here(files) == "tdx_guest"
    assert files.folders == {}


@given(
    writes=st.lists(st.sampled_from(["ours", "theirs", "read"]), max_size=12),
    start=st.integers(0, 3),
)
def test_whatever_happened_before_the_report_is_ours(writes, start):
    files = FakeTsm(plain)
    reports = opened(files)
    (name,) = files.folders
    files.folders[name].write_generation = files.folders[name].read_generation = start
    for step, what in enumerate(writes):
        if what == "read" and files.folders[name].inblob:
            files.read(name, "outblob")
        elif what == "theirs":
            files.write(name, "inblob", b"theirs")
        elif what == "ours":
            mine = b"%d" % step
            assert reports.report(mine).outblob == b"report over " + mine
    assert reports.report(b"last").outblob == b"report over last"


# --- the kernel's own files -------------------------------------------------------------------


def test_the_files_are_read_and_written_where_the_kernel_has_them(tmp_path):
    """A folder of ordinary files: no kernel, but the very calls."""
    files = KernelTsmFiles(tmp_path)
    files.make("one")
    (tmp_path / "one" / "provider").write_bytes(b"sev_guest\n")
    (tmp_path / "one" / "inblob").write_bytes(b"")
    assert files.has("one", "provider")
    assert not files.has("one", "auxblob")
    assert files.read("one", "provider") == b"sev_guest\n"
    files.write("one", "inblob", b"abc")
    assert (tmp_path / "one" / "inblob").read_bytes() == b"abc"
    with pytest.raises(FileNotFoundError):
        files.write("one", "privlevel", b"0")  # never made in passing
    for path in (tmp_path / "one").iterdir():
        path.unlink()
    files.remove("one")
    assert list(tmp_path.iterdir()) == []


def test_a_machine_without_the_interface_says_so(tmp_path):
    with pytest.raises(ConfigurationError, match="no attestation reports"):
        TsmReports(KernelTsmFiles(tmp_path / "not" / "mounted"))


# --- the choice -------------------------------------------------------------------------------


def test_the_node_takes_what_the_machine_has(monkeypatch, tmp_path: Path):
    for provider, kind in (
        ("sev_guest", "sev-snp"),
        ("tdx_guest", "tdx"),
        ("arm_cca_guest", "dev"),
    ):
        monkeypatch.setattr(
            "overspill_cloud.attester.provider_here", lambda provider=provider: provider
        )
        assert choose_attester("auto", tmp_path) == kind


def test_without_hardware_the_operators_key_counts_then_development(tmp_path):
    assert choose_attester("auto", tmp_path) == "dev"
    (tmp_path / "operator.key").touch()
    assert choose_attester("auto", tmp_path) == "pinned"


def test_the_operators_word_counts_before_the_machines(tmp_path):
    assert choose_attester("dev", tmp_path) == "dev"
    assert choose_attester("sev-snp", tmp_path) == "sev-snp"
