"""Guards: weights come whole and verified or not at all, whatever the line and the server do."""

import hashlib
import json
import logging
import multiprocessing
import os
import random
import stat

import pytest

from tests.weights_server import Manners, refusing, serving
from ultrarefiner.errors import ConfigError, OutputError, WeightsError
from ultrarefiner.models.fetch import fetch_row, fetch_weights
from ultrarefiner.models.weights import WeightsFile
from ultrarefiner.models.weights_record import checked_sha256, record_path

CONTENT = random.Random(7).randbytes(3_000_000)
SHA256 = hashlib.sha256(CONTENT).hexdigest()
HALF = 1_500_000


@pytest.fixture(autouse=True)
def straight(monkeypatch):
    """Connect to this machine directly."""
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")


def row(*urls, **changes):
    values = {
        "file": "some+model.pth",
        "urls": urls,
        "bytes": len(CONTENT),
        "licence": "Apache-2.0",
        "terms": "Free use.",
        "citation": "Nobody",
        "family": "sam",
        "trained_on": "Nothing.",
        "checksum": f"sha256:{SHA256}",
    }
    return WeightsFile(**(values | changes))


def fetch(folder, one, **options):
    return fetch_row("some", one, folder / "weights" / one.file, wait=0.01, **options)


def failing(folder, one, **options):
    """Fetch in vain; return the message. There must be no file, and no half one in its place."""
    with pytest.raises(WeightsError) as caught:
        fetch(folder, one, **options)
    target = folder / "weights" / one.file
    assert not target.exists()
    message = str(caught.value)
    assert str(target) in message
    assert "ultrarefiner fetch some" in message
    return message


def left_over(folder):
    return sorted(p.name for p in (folder / "weights").iterdir() if p.name.startswith("."))


def ranges(manners):
    return [wanted for _, wanted, _ in manners.requests]


@pytest.mark.parametrize("checksum", [f"sha256:{SHA256}", None, "md5"])
def test_a_file_is_fetched_whole_recorded_and_nothing_else_is_left(tmp_path, checksum):
    if checksum == "md5":
        checksum = f"md5:{hashlib.md5(CONTENT).hexdigest()}"
    manners = Manners(CONTENT)
    with serving(manners) as url:
        target = fetch(tmp_path, row(f"{url}/some.pth", checksum=checksum))
    assert target.read_bytes() == CONTENT
    assert {p.name for p in target.parent.iterdir()} == {target.name, f"{target.name}.json"}
    record = json.loads((tmp_path / "weights" / f"{target.name}.json").read_text())
    assert record["sha256"] == SHA256
    assert record["url"] == f"{url}/some.pth"
    assert (record["bytes"], record["licence"]) == (len(CONTENT), "Apache-2.0")
    assert len(manners.requests) == 1


def test_a_fetched_file_follows_the_umask(tmp_path):
    before = os.umask(0o027)
    try:
        with serving(Manners(CONTENT)) as url:
            target = fetch(tmp_path, row(f"{url}/some.pth"))
    finally:
        os.umask(before)
    assert stat.S_IMODE(target.stat().st_mode) == 0o640


def test_a_broken_connection_goes_on_where_it_ended(tmp_path):
    manners = Manners(CONTENT, breaks=(HALF, 1))
    with serving(manners) as url:
        assert fetch(tmp_path, row(f"{url}/some.pth")).read_bytes() == CONTENT
    first, second = ranges(manners)
    assert first is None
    start = int(second.removeprefix("bytes=").removesuffix("-"))
    assert 0 < start <= HALF
    assert manners.requests[1][2] == '"one"'
    assert left_over(tmp_path) == []


def killed_half_way(folder, one):
    """Start to fetch, with a server that breaks after one half, and kill the process."""
    process = multiprocessing.get_context("fork").Process(
        target=fetch_row, args=("some", one, folder / "weights" / one.file), kwargs={"wait": 99}
    )
    process.start()
    while sum(p.stat().st_size for p in folder.rglob("*") if p.is_file()) < HALF // 2:
        process.join(0.02)
    process.kill()
    process.join()
    assert not (folder / "weights" / one.file).exists()
    assert len(left_over(folder)) == 1


def test_a_killed_job_is_gone_on_with_by_the_next_one(tmp_path):
    manners = Manners(CONTENT, breaks=(HALF, 1))
    with serving(manners) as url:
        one = row(f"{url}/some.pth")
        killed_half_way(tmp_path, one)
        assert fetch(tmp_path, one).read_bytes() == CONTENT
    assert ranges(manners)[0] is None
    assert ranges(manners)[-1].startswith("bytes=")
    assert left_over(tmp_path) == []


def test_a_server_without_ranges_is_asked_for_the_whole_file_again(tmp_path):
    manners = Manners(CONTENT, ranges=False, breaks=(HALF, 1))
    with serving(manners) as url:
        assert fetch(tmp_path, row(f"{url}/some.pth")).read_bytes() == CONTENT
    assert len(manners.requests) == 2


@pytest.mark.parametrize("etag", ['"two"', 'W/"two"', None])
@pytest.mark.parametrize("checksum", [f"sha256:{SHA256}", None])
def test_a_file_that_changed_on_the_server_is_fetched_from_the_start(tmp_path, etag, checksum):
    manners = Manners(bytes(len(CONTENT)), breaks=(HALF, 1))
    with serving(manners) as url:
        one = row(f"{url}/some.pth", checksum=checksum)
        killed_half_way(tmp_path, one)
        manners.content, manners.etag = CONTENT, etag
        assert fetch(tmp_path, one).read_bytes() == CONTENT


@pytest.mark.parametrize("etag", ['W/"one"', None])
def test_a_server_that_ignores_if_range_is_not_believed(tmp_path, etag):
    manners = Manners(bytes(len(CONTENT)), breaks=(HALF, 1), etag=etag)
    with serving(manners) as url:
        one = row(f"{url}/some.pth", checksum=None)
        killed_half_way(tmp_path, one)
        # It sends the rest of another file, under another tag.
        manners.content, manners.etag = CONTENT, '"two"'
        assert fetch(tmp_path, one).read_bytes() == CONTENT
    assert ranges(manners)[1].startswith("bytes=")
    assert ranges(manners)[-1] is None


def test_a_line_that_breaks_without_a_new_byte_is_given_up(tmp_path):
    manners = Manners(CONTENT, breaks=(0, 99))
    with serving(manners) as url:
        message = failing(tmp_path, row(f"{url}/some.pth"))
    assert "the connection broke; tried 4 times" in message
    assert len(manners.requests) == 4
    assert left_over(tmp_path) == []


def test_a_busy_server_is_asked_again(tmp_path):
    manners = Manners(CONTENT, status=(503, 2))
    with serving(manners) as url:
        assert fetch(tmp_path, row(f"{url}/some.pth")).read_bytes() == CONTENT
    assert len(manners.requests) == 3


@pytest.mark.parametrize("length", [True, False])
@pytest.mark.parametrize(("cut", "says"), [(HALF, f"{HALF}"), (None, "more than|3000001")])
def test_a_file_of_another_size_is_refused(tmp_path, length, cut, says):
    content = CONTENT[:cut] if cut else CONTENT + b"x"
    with serving(Manners(content, length=length)) as url:
        message = failing(tmp_path, row(f"{url}/some.pth"))
    assert any(part in message for part in says.split("|"))
    assert "3000000 were published" in message
    assert left_over(tmp_path) == []


def test_wrong_bytes_of_the_right_size_are_refused_and_not_resumed(tmp_path):
    manners = Manners(bytes(len(CONTENT)))
    with serving(manners) as url:
        message = failing(tmp_path, row(f"{url}/some.pth"))
        assert SHA256 in message
        assert left_over(tmp_path) == []
        manners.content = CONTENT
        assert fetch(tmp_path, row(f"{url}/some.pth")).read_bytes() == CONTENT
    assert ranges(manners) == [None, None]


@pytest.mark.parametrize("kind", ["text/html; charset=utf-8", "application/octet-stream"])
@pytest.mark.parametrize("length", [True, False])
def test_a_web_page_instead_of_the_file_is_named(tmp_path, kind, length):
    page = b"<!DOCTYPE html><title>Log in</title>".ljust(len(CONTENT))
    with serving(Manners(page, kind=kind, length=length)) as url:
        message = failing(tmp_path, row(f"{url}/some.pth"))
    assert "a web page instead of the file" in message
    assert left_over(tmp_path) == []


def test_an_answer_in_json_instead_of_the_file_is_named(tmp_path):
    answer = b'{"status": 404, "message": "no such record"}'.ljust(len(CONTENT))
    with serving(Manners(answer, kind="application/octet-stream")) as url:
        message = failing(tmp_path, row(f"{url}/some.pth", checksum=None))
    assert "a web page instead of the file" in message
    assert left_over(tmp_path) == []


def test_mirrors_come_first_and_each_source_is_listed_with_its_reason(tmp_path):
    wrong, absent = Manners(bytes(len(CONTENT))), Manners(CONTENT, paths=())
    with serving(wrong) as first, serving(absent) as second, refusing() as third:
        one = row(f"{second}/some.pth", f"{third}/some.pth")
        message = failing(tmp_path, one, mirrors=[f"{first}/folder/"])
    mirrored, missing, dead = message.splitlines()[1:4]
    assert "its bytes are not those of" in mirrored
    assert f"{second}/some.pth: HTTP 404" in missing
    assert f"{third}/some.pth: no connection: refused" in dead
    # A plus sign in an address would mean a space to many servers.
    assert wrong.requests[0][0] == "/folder/some%2Bmodel.pth"


def test_the_next_source_is_used_when_the_first_one_fails(tmp_path):
    manners = Manners(CONTENT)
    with refusing() as dead, serving(manners) as url:
        target = fetch(tmp_path, row(f"{url}/some.pth"), mirrors=[dead])
    assert target.read_bytes() == CONTENT


def test_what_one_source_sent_is_never_joined_with_what_another_sends(tmp_path):
    broken = Manners(bytes(len(CONTENT)), breaks=(HALF, 99), ranges=False)
    good = Manners(CONTENT)
    with serving(broken) as first, serving(good) as second:
        one = row(f"{first}/some.pth", f"{second}/some.pth", checksum=None)
        assert fetch(tmp_path, one).read_bytes() == CONTENT
    assert ranges(good) == [None]


def test_without_internet_the_message_says_what_to_put_where(tmp_path):
    with refusing() as dead:
        message = failing(tmp_path, row(f"{dead}/a.pth", f"{dead}/b.pth"))
    for part in (f"{dead}/a.pth", f"{dead}/b.pth", "3 MB", "Apache-2.0", "login node"):
        assert part in message
    assert left_over(tmp_path) == []


def test_a_name_that_is_not_known_is_no_connection(tmp_path, monkeypatch):
    for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
    message = failing(tmp_path, row("http://no-such-host.invalid/some.pth"))
    assert "no connection: the name is not known here" in message


def test_terms_have_to_be_accepted_by_name(tmp_path):
    manners = Manners(CONTENT)
    with serving(manners) as url:
        one = row(f"{url}/some.pth", accept=True, terms="No commercial use.")
        with pytest.raises(WeightsError, match=r"No commercial use\..*accept: \[some\].*--accept"):
            fetch(tmp_path, one, accepted=["other"])
        assert manners.requests == []
        target = fetch(tmp_path, one, accepted=["some"])
    record = json.loads((tmp_path / "weights" / f"{target.name}.json").read_text())
    assert record["terms_accepted"] is True


def test_a_file_that_is_there_is_verified_and_not_fetched(tmp_path):
    manners = Manners(CONTENT)
    with serving(manners) as url:
        one = row(f"{url}/some.pth")
        target = fetch(tmp_path, one)
        fetch(tmp_path, one)
        target.write_bytes(bytes(len(CONTENT)))
        with pytest.raises(WeightsError, match="not the published file"):
            fetch(tmp_path, one)
    assert len(manners.requests) == 1


def test_a_file_put_there_by_hand_that_was_cut_off_is_not_trusted(tmp_path):
    one = row("https://nowhere.invalid/some.pth", checksum=None)
    target = tmp_path / "weights" / one.file
    target.parent.mkdir()
    target.write_bytes(CONTENT[:-1])
    with pytest.raises(WeightsError, match=rf"{len(CONTENT) - 1} bytes and the published file"):
        fetch(tmp_path, one)
    assert not record_path(target).exists()
    target.write_bytes(CONTENT)
    fetch(tmp_path, one)
    assert checked_sha256(target) == SHA256


def test_terms_accepted_for_a_file_put_there_by_hand_are_recorded(tmp_path):
    one = row("https://nowhere.invalid/some.pth", accept=True, terms="No commercial use.")
    target = tmp_path / "weights" / one.file
    target.parent.mkdir()
    target.write_bytes(CONTENT)
    fetch(tmp_path, one, accepted=["some"])
    record = json.loads(record_path(target).read_text())
    assert (record["terms_accepted"], record["url"]) == (True, None)


def test_trust_on_first_use_ends_when_the_bytes_change(tmp_path):
    with serving(Manners(CONTENT)) as url:
        target = fetch(tmp_path, row(f"{url}/some.pth", checksum=None))
    assert checked_sha256(target) == SHA256
    target.write_bytes(bytes(len(CONTENT)))
    with pytest.raises(WeightsError, match=r"has changed.*delete"):
        checked_sha256(target)


def fetch_in_a_process(url, folder, results):
    one = row(f"{url}/some.pth")
    results.put(fetch_row("some", one, folder / "weights" / one.file).read_bytes() == CONTENT)


def test_two_processes_fetch_one_file_once(tmp_path):
    manners = Manners(CONTENT)
    context = multiprocessing.get_context("fork")
    results = context.Queue()
    with serving(manners) as url:
        workers = [
            context.Process(target=fetch_in_a_process, args=(url, tmp_path, results))
            for _ in range(4)
        ]
        for worker in workers:
            worker.start()
        assert [results.get(timeout=30) for _ in workers] == [True] * 4
        for worker in workers:
            worker.join()
    assert len(manners.requests) == 1
    assert left_over(tmp_path) == []


def test_a_full_disk_is_named_before_anything_is_written(tmp_path):
    huge = 1 << 60
    with serving(Manners(CONTENT, length=False)) as url, pytest.raises(OutputError) as caught:
        fetch(tmp_path, row(f"{url}/some.pth", bytes=huge))
    assert "are free" in str(caught.value)
    assert left_over(tmp_path) == []


def test_a_folder_that_cannot_be_made_is_named(tmp_path):
    (tmp_path / "weights").write_text("a file")
    with pytest.raises(OutputError, match="weights"):
        fetch(tmp_path, row("http://127.0.0.1:9/some.pth"))


def test_unknown_names_get_the_nearest(tmp_path):
    with pytest.raises(ConfigError, match="Did you mean 'ultrasam'"):
        fetch_weights("ultrasma", tmp_path / "x.pth")


def test_progress_is_logged_where_there_is_no_terminal(tmp_path, caplog):
    with serving(Manners(CONTENT)) as url, caplog.at_level(logging.INFO):
        fetch(tmp_path, row(f"{url}/some.pth"))
    assert "of 3 MB" in caplog.text
    assert SHA256 in caplog.text
