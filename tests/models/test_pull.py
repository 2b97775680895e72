"""A pull resumes or says why; what is in place is whole and is what was promised."""

import hashlib
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from overspill.errors import DoesNotFit, ModelInvalid, ModelNotFound, PullFailed, UsageError
from overspill.models import download
from overspill.models.files import PullPlan, RemoteFile
from overspill.models.pull import plan_pull, run_pull
from overspill.models.store import NOTE, PULLING, ModelStore

pytestmark = pytest.mark.anyio
REPO = "maker/tiny-GGUF"
SIZE = 3 << 20


@pytest.fixture
def weights(hub, make_gguf):
    data = make_gguf(SIZE)
    hub.files[REPO] = {"tiny-Q8_0.gguf": data, "README.md": b"read me"}
    return data


@pytest.fixture
def store(tmp_path):
    return ModelStore(tmp_path / "models")


@pytest.fixture
def plan(hub, weights):
    async def make(what=REPO, **options):
        return await plan_pull(what, runtime="llama.cpp", hub=hub.url, **options)

    return make


async def test_a_repository_is_pulled_pinned_and_noted(plan, store, weights, hub, quick):
    told = []
    stored = await run_pull(await plan(), store, options=quick, on_progress=told.append)
    assert stored.path.read_bytes() == weights
    assert stored.sha256 == {"tiny-Q8_0.gguf": hashlib.sha256(weights).hexdigest()}
    assert (stored.name, stored.revision, stored.licence) == (
        "tiny-q8_0",
        hub.commit,
        "apache-2.0",
    )
    assert store.find("tiny-q8_0") == stored
    assert store.models() == (stored,)
    assert told[-1].done_bytes == told[-1].total_bytes == len(weights)
    # The README was never asked for, and nothing but the model and its note is there.
    assert not [path for path, _ in hub.seen if "README" in path]
    assert {path.name for path in stored.folder.iterdir()} == {"tiny-Q8_0.gguf", NOTE}


async def test_a_cut_connection_goes_on_where_it_stopped(plan, store, weights, hub, quick):
    hub.cut_after = [1_000_000, 700_000]
    told = []
    stored = await run_pull(await plan(), store, options=quick, on_progress=told.append)
    assert stored.path.read_bytes() == weights
    first, second, third = hub.asked_ranges()
    assert first is None
    assert 0 < int(second[6:-1]) <= 1_000_000 < int(third[6:-1]) <= 1_700_000
    assert any("resumed at" in p.note for p in told)


async def test_a_server_without_ranges_starts_again_and_says_so(plan, store, weights, hub, quick):
    hub.cut_after, hub.ranges = [1_000_000], False
    told = []
    stored = await run_pull(await plan(), store, options=quick, on_progress=told.append)
    assert stored.path.read_bytes() == weights
    assert any("does not resume" in p.note for p in told)


async def test_wrong_bytes_are_never_in_place(plan, store, weights, hub, quick):
    wrong = bytearray(weights)
    wrong[-1] ^= 1
    hub.serve_instead["tiny-Q8_0.gguf"] = bytes(wrong)
    with pytest.raises(ModelInvalid, match="has the digest"):
        await run_pull(await plan(), store, options=quick)
    assert store.models() == ()
    assert not list(store.folder.glob(f"{PULLING}/*/*"))


@pytest.mark.parametrize("lengths", [True, False])
async def test_more_bytes_than_promised_are_refused(plan, store, weights, hub, quick, lengths):
    hub.lengths = lengths
    hub.serve_instead["tiny-Q8_0.gguf"] = weights + b"more"
    with pytest.raises(ModelInvalid, match="promised"):
        await run_pull(await plan(), store, options=quick)
    assert store.models() == ()


async def test_fewer_bytes_than_promised_are_refused(plan, store, weights, hub, quick):
    hub.serve_instead["tiny-Q8_0.gguf"] = weights[: SIZE // 2]
    with pytest.raises(ModelInvalid, match="promised"):
        await run_pull(await plan(), store, options=quick)
    assert store.models() == ()


async def test_an_answer_that_ends_early_without_a_word_is_not_whole(
    plan, store, weights, hub, quick
):
    hub.lengths = False
    hub.serve_instead["tiny-Q8_0.gguf"] = weights[: SIZE // 2]
    with pytest.raises(PullFailed) as failure:
        await run_pull(await plan(), store, options=quick)
    assert "pull again" in failure.value.mend
    assert store.models() == ()


async def test_a_file_that_changed_on_the_server_is_not_mixed_with_an_old_half(
    store, hub, weights, make_gguf, quick
):
    """Without a digest the validator tells the two apart."""
    url = f"{hub.url}/{REPO}/resolve/{hub.commit}/tiny-Q8_0.gguf"
    loose = PullPlan(
        "loose", "elsewhere", "llama.cpp", "w.gguf", (RemoteFile(url, "w.gguf"),), None
    )
    hub.cut_after = [1_000_000, 0, 0]
    with pytest.raises(PullFailed):
        await run_pull(loose, store, options=quick)
    changed = weights[:-4] + b"new!"
    hub.serve_instead["tiny-Q8_0.gguf"] = changed
    stored = await run_pull(loose, store, options=quick)
    assert stored.path.read_bytes() == changed
    assert stored.sha256["w.gguf"] == hashlib.sha256(changed).hexdigest()


async def test_without_validator_and_digest_nothing_is_resumed(store, hub, weights, quick):
    url = f"{hub.url}/{REPO}/resolve/{hub.commit}/tiny-Q8_0.gguf"
    loose = PullPlan("loose", "elsewhere", "llama.cpp", "w.gguf", (RemoteFile(url, "w.gguf"),))
    hub.etags, hub.cut_after = False, [1_000_000]
    stored = await run_pull(loose, store, options=quick)
    assert stored.path.read_bytes() == weights
    assert hub.asked_ranges() == [None, None]


async def test_a_server_that_says_nothing_more_is_noticed(plan, store, hub, weights, quick):
    hub.stop_at = 1_000_000
    with pytest.raises(PullFailed, match="no byte came for too long"):
        await run_pull(await plan(), store, options=quick)


async def test_passing_trouble_on_the_server_is_tried_again(plan, store, hub, weights, quick):
    hub.statuses = [503, 429]
    stored = await run_pull(await plan(), store, options=quick)
    assert stored.path.read_bytes() == weights


@pytest.mark.parametrize(
    ("status", "kind", "says"),
    [
        (401, PullFailed, "models import"),
        (403, PullFailed, "models import"),
        (404, ModelNotFound, "Check the name"),
        (400, PullFailed, "said 400"),
    ],
)
async def test_a_refusal_is_not_tried_again(plan, store, hub, quick, status, kind, says):
    hub.statuses = [status] * 3
    with pytest.raises(kind) as refusal:
        await run_pull(await plan(), store, options=quick)
    assert says in str(refusal.value)
    assert len(hub.asked_ranges()) == 1


async def test_no_redirect_leads_out_of_the_encrypted_road(plan, store, hub, weights, quick):
    hub.redirect_to = "http://mirror.example/tiny.gguf"
    with pytest.raises(PullFailed, match="not encrypted"):
        await run_pull(await plan(), store, options=quick)


async def test_redirects_end(plan, store, hub, weights, quick):
    hub.redirect_to = f"{hub.url}/{REPO}/resolve/{hub.commit}/tiny-Q8_0.gguf"
    with pytest.raises(PullFailed, match="too many redirects"):
        await run_pull(await plan(), store, options=quick)


async def test_a_disk_without_room_is_said_before_a_byte_is_fetched(
    plan, store, hub, weights, quick, monkeypatch
):
    usage = type("usage", (), {"free": SIZE})
    monkeypatch.setattr(download.shutil, "disk_usage", lambda _: usage)
    with pytest.raises(DoesNotFit, match="GB"):
        await run_pull(await plan(), store, options=quick)
    assert hub.asked_ranges() == []


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="Linux only: writes to /dev/full")
async def test_a_disk_that_fills_up_says_so(plan, store, hub, weights, quick):
    planned = await plan()
    partial = store.pulling_folder(planned.name) / "tiny-Q8_0.gguf.partial"
    partial.symlink_to("/dev/full")
    with pytest.raises(DoesNotFit, match="disk is full"):
        await run_pull(planned, store, options=quick)
    assert store.models() == ()


async def test_two_pullers_fetch_it_once(plan, store, hub, weights, quick):
    import anyio

    planned, told, stored, waits = await plan(), [], [], anyio.Event()

    def tell(progress):
        told.append(progress)
        waits.set()

    async def one(on_progress=None):
        stored.append(await run_pull(planned, store, options=quick, on_progress=on_progress))

    hub.stop_at = 1_000_000
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(one)
        await anyio.to_thread.run_sync(hub.reached.wait, 30)
        tasks.start_soon(one, tell)
        await waits.wait()
        hub.stop_at = None
        hub.let_go.set()
    assert "waiting" in told[0].note
    assert stored[0] == stored[1]
    assert len([asked for asked in hub.asked_ranges() if asked is None]) == 1


async def test_a_model_that_is_there_is_not_fetched_again(plan, store, hub, weights, quick):
    first = await run_pull(await plan(), store, options=quick)
    hub.seen.clear()
    assert await run_pull(await plan(), store, options=quick) == first
    assert hub.asked_ranges() == []


async def test_a_newer_revision_is_taken_only_when_asked(
    plan, store, hub, weights, make_gguf, quick
):
    first = await run_pull(await plan(), store, options=quick)
    hub.commit = "f" * 40
    hub.files[REPO]["tiny-Q8_0.gguf"] = newer = make_gguf(SIZE - 32)
    assert (await run_pull(await plan(), store, options=quick)).revision == first.revision
    updated = await run_pull(await plan(), store, options=quick, update=True)
    assert updated.revision == "f" * 40
    assert updated.path.read_bytes() == newer


async def test_a_name_is_not_taken_over_by_another_repository(plan, store, hub, weights, quick):
    await run_pull(await plan(), store, options=quick)
    hub.files["other/tiny-GGUF"] = dict(hub.files[REPO])
    with pytest.raises(UsageError, match="belongs to"):
        await run_pull(await plan("other/tiny-GGUF"), store, options=quick)


def kill_when_it_has(process, partial, wanted):
    """End it by force once so many bytes are on the disk; how many they are."""
    pause = threading.Event()
    for _ in range(3000):
        if partial.exists() and partial.stat().st_size >= wanted:
            break
        pause.wait(0.01)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    return partial.stat().st_size


def start_pull(hub, store):
    script = (
        "import sys, anyio\n"
        "from pathlib import Path\n"
        "from overspill.models.pull import plan_pull, run_pull\n"
        "from overspill.models.store import ModelStore\n"
        "async def main(hub, repo, folder):\n"
        "    plan = await plan_pull(repo, runtime='llama.cpp', hub=hub)\n"
        "    await run_pull(plan, ModelStore(Path(folder)))\n"
        "anyio.run(main, *sys.argv[1:])\n"
    )
    return subprocess.Popen([sys.executable, "-c", script, hub.url, REPO, str(store.folder)])


@pytest.mark.parametrize("share", [0.05, 0.5, 0.99])
async def test_a_killed_pull_goes_on(plan, store, hub, weights, quick, share):
    hub.stop_at = int(len(weights) * share)
    partial = store.folder / PULLING / "tiny-q8_0" / "tiny-Q8_0.gguf.partial"
    wanted = hub.stop_at - download.CHUNK_BYTES
    kept = kill_when_it_has(start_pull(hub, store), partial, wanted)
    assert wanted <= kept <= hub.stop_at
    assert store.models() == ()
    hub.stop_at = None
    hub.seen.clear()
    stored = await run_pull(await plan(), store, options=quick)
    assert stored.path.read_bytes() == weights
    assert hub.asked_ranges() == [f"bytes={kept}-" if kept else None]
